"""A small mixed corpus of real text, with what is wrong in real corpora: duplicates, near ones, bad records."""

import gzip
import json
import random
import sysconfig
from pathlib import Path

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
