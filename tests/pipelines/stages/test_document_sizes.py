"""Documents of every size through `tokenize_text`: a million tiny ones, 100 MB in one; bounded memory, the same ids."""

import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import schema, shards
from data.tokenizer import Tokenizer
from tests.programs.places import REPOSITORY

LARGE_BYTES, TINY_DOCUMENTS = 100_000_000, 1_000_000
SCRIPT = """
import resource, sys
from data import shards
from data.tokenizer import Tokenizer
from pipelines.stages.tokenize_text import Config, _Tokenize
uri, model, target = sys.argv[1:]
work = _Tokenize(Config(), model, Tokenizer.load(model).sha256)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
made = work(uri)
for output in [made] if hasattr(made, "parts") else made:
    shards.write_table(target, "tokens.parquet", output.parts["tokens"].table)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    from data.tokenizer import train_tokenizer

    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(train_tokenizer([file.read_text() for file in sorted(REPOSITORY.glob("data/*.py"))], 1024))
    return str(path)


def tokenized(folder: Path, texts: list[str], model: str) -> tuple[pa.Table, int]:
    """(TOKENS, peak memory in bytes over what the process had before)."""
    rows = [
        {
            "id": schema.document_id("s", "f", number),
            "content_hash": "",
            "text": text,
            "source": "s",
            "metadata": "",
            "masked_spans": [],
        }
        for number, text in enumerate(texts)
    ]
    shards.write_table(str(folder), "text.parquet", pa.Table.from_pylist(rows, schema.TEXT))
    words = [sys.executable, "-c", SCRIPT, str(folder / "text.parquet"), model, str(folder)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return pq.read_table(folder / "tokens.parquet"), int(done.stdout)


@pytest.mark.chaos("documents of every size")
def test_a_document_of_100_megabytes_has_its_ids_in_bounded_memory(tmp_path: Path, model: str) -> None:
    draw = random.Random(0)
    lines = [line for file in sorted(REPOSITORY.glob("*/*.py")) for line in file.read_text().splitlines(keepends=True)]
    text = "".join(draw.choices(lines, k=LARGE_BYTES // 40))[:LARGE_BYTES]
    table, peak = tokenized(tmp_path, [text], model)
    assert table.num_rows == 1
    assert table["text_bytes"].to_pylist() == [len(text.encode())]
    assert peak < 16 * LARGE_BYTES, f"{peak:,} bytes for a document of {LARGE_BYTES:,}"
    start = text[: text.index("\n", 50_000) + 1]
    ids = Tokenizer.load(model).encode(start.rstrip("\n"))
    assert table["tokens"][0].values[1 : len(ids) + 1].to_pylist() == ids


@pytest.mark.chaos("documents of every size")
def test_a_million_tiny_documents_are_tokenized_in_bounded_memory(tmp_path: Path, model: str) -> None:
    texts = [("", "a", "be it so")[number % 3] for number in range(TINY_DOCUMENTS)]
    table, peak = tokenized(tmp_path, texts, model)
    assert table.num_rows == TINY_DOCUMENTS
    assert peak < 2_000 * TINY_DOCUMENTS, f"{peak:,} bytes for {TINY_DOCUMENTS:,} documents"
    encoder = Tokenizer.load(model)
    expected = [encoder.encode_document(text) for text in texts[:3]]
    assert table["tokens"][:3].to_pylist() == expected
