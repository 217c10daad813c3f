"""A small mixed corpus of real text with the faults of real corpora: exact and near duplicates, bad records."""

import gzip
import html
import importlib.metadata
import json
import random
import sysconfig
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard


def mixed_corpus(folder: Path, documents: int = 300, seed: int = 0) -> Path:
    """`documents` (passages of the standard library as .jsonl, .jsonl.gz, .jsonl.zst, text files) and `evaluation`.

    The same bytes for a seed.
    """
    draw = random.Random(seed)
    lines = [
        line
        for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-h]*.py"))
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True)
    ]
    passages = []
    for _ in range(documents):
        start = draw.randrange(len(lines) - 60)
        passages.append("".join(lines[start : start + draw.randint(5, 60)]))
    passages += draw.sample(passages, documents // 20)  # exact
    passages += [text.replace("the", "a", 1) + "#" for text in draw.sample(passages, documents // 20)]  # near
    draw.shuffle(passages)
    (folder / "evaluation").mkdir(parents=True, exist_ok=True)
    for name in ("questions", "answers"):
        items = [{"q": " ".join(draw.choice(passages).split()[3:40]), "id": k} for k in range(10)]
        (folder / "evaluation" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, items)))
    folder = folder / "documents"
    folder.mkdir()
    quarter = len(passages) // 4
    records = [json.dumps({"text": text, "number": number}) for number, text in enumerate(passages)]
    bad = ["{broken", '{"no": "text"}', '{"text": "\\ud800"}', '{"text": "   "}', '{"text": null}']
    plain = "\n".join([*records[:quarter], *bad, ""])
    (folder / "a.jsonl").write_text(plain)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(records[quarter : 2 * quarter]).encode(), mtime=0))
    (folder / "c.jsonl.zst").write_bytes(zstandard.compress("\n".join(records[2 * quarter : 3 * quarter]).encode()))
    for number, text in enumerate(passages[3 * quarter :]):
        (folder / "tree" / str(number % 7)).mkdir(parents=True, exist_ok=True)
        (folder / "tree" / str(number % 7) / f"{number}.txt").write_text(text)
    (folder / "tree" / "latin1.txt").write_bytes("caf\xe9".encode("latin-1"))
    return folder.parent


def web_corpus(folder: Path) -> Path:
    """What the installed packages say of themselves, as `web.warc.gz`, `table.parquet` and `lines.jsonl` below
    `documents`; 40 words of every tenth are an item of `evaluation/described.jsonl`.

    Most texts are in two of the files; a third of them are there with a person's address and phone number too.
    """
    documents = folder / "documents"
    documents.mkdir()
    (folder / "evaluation").mkdir()
    descriptions = {
        (package.read_text("METADATA") or "").partition("\n\n")[2] for package in importlib.metadata.distributions()
    }
    prose = [
        part
        for text in sorted(descriptions)
        for part in text.split("\n\n")
        if part.endswith((".", "!")) and len(part.split()) > 15 and part[0].isalnum() and "/" not in part
    ]
    # as they are, and as pages of sentences: of the former the rules keep nothing, of the latter much
    texts = [text for text in sorted(descriptions) if len(text) > 3000][::4]
    texts += ["\n\n".join(prose[start : start + 8]) for start in range(0, len(prose), 8)]
    web = [b"WARC/1.0\r\nWARC-Type: warcinfo\r\nContent-Length: 0\r\n\r\n\r\n\r\n"]
    for number, text in enumerate(texts):
        page = "".join(f"<p>{html.escape(part)}</p>" for part in text.split("\n\n"))
        status = "200 OK" if number % 9 else "404 Not Found"
        kind = "text/html; charset=utf-8" if number % 7 else "image/png"
        body = (
            f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n\r\n<html><body><main>{page}</main></body></html>".encode()
        )
        head = (
            f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a.example/{number}\r\n"
            f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        web.append(head.encode() + body + b"\r\n\r\n")
    (documents / "web.warc.gz").write_bytes(b"".join(gzip.compress(record, mtime=0) for record in web))
    personal = [f"{text}\n\nWrite to jane.doe@mail.firma.de or call +49 30 1234567." for text in texts[::3]]
    column = pa.array([*texts, None, "  ", *personal], pa.string())
    pq.write_table(pa.table({"text": column}), documents / "table.parquet")
    (documents / "lines.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in texts[::2]) + "{half\n"
    )
    items = [{"q": " ".join(text.split()[20:60])} for text in texts[::10]]
    (folder / "evaluation" / "described.jsonl").write_text("\n".join(map(json.dumps, items)))
    return folder
