"""A file from outside is read as it was fingerprinted, or refused by name."""

import gzip
import json
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import classifier, decontaminate, sources, storage
from data.tokenizer import Tokenizer

MANY = 3000
LINES = b"".join(b'{"text": "document %d of some length"}\n' % number for number in range(MANY))
CHANGED = "changed after the run began"


def write_parquet(path: Path, word: str) -> None:
    pq.write_table(pa.table({"text": [f"{word} {number}" for number in range(500)]}), path)


def pinned(path: Path) -> storage.Pinned:
    return storage.Pinned(str(path), storage.content(str(path)))


def collected(uri: str, skip: bool = False) -> int:
    options = sources.Options(skip_bad_files=skip)
    return sum(batch.text.num_rows for batch in sources.collect("s", [(Path(uri).name, uri)], options, 1 << 15))


FILES: dict[str, tuple[Callable[[Path], object], int]] = {
    "a.jsonl": (lambda path: path.write_bytes(LINES), MANY),
    "a.jsonl.gz": (lambda path: path.write_bytes(gzip.compress(LINES)), MANY),
    "a.txt": (lambda path: path.write_bytes(b"text " * 99_999), 1),
    "a.html": (lambda path: path.write_bytes(b"<p>Some words of a page.</p>"), 1),
    "a.parquet": (lambda path: write_parquet(path, "document"), 500),
}
CHANGES: dict[str, Callable[[Path], object]] = {
    "cut to nothing": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "grown": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
    "a bit": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_changed_after_its_fingerprint_is_refused_by_name(tmp_path: Path, name: str, change: str) -> None:
    path = tmp_path / name
    make, documents = FILES[name]
    make(path)
    uri = pinned(path)
    assert collected(uri) == documents
    assert collected(pickle.loads(pickle.dumps(uri))) == documents  # as it travels to a worker
    CHANGES[change](path)
    for skip in (False, True):  # nor does it become one more bad file
        with pytest.raises(ValueError, match=rf"{name} changed after the run began|{name} is not the file"):
            collected(uri, skip)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    FILES[name][0](path)
    uri = pinned(path)
    batches = sources.collect("s", [(name, uri)], sources.Options(), 1 << 15)
    next(batches)
    with path.open("r+b") as file:  # in place: the reader has it open
        file.seek(-20, os.SEEK_END)
        file.write(b" " * 20)
    with pytest.raises(ValueError, match=CHANGED):
        list(batches)


def test_other_inputs_from_outside_are_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_text(json.dumps({"text": "a word", "label": "1"}) + "\n")
    uri = pinned(path)
    list(decontaminate.read_items(uri, "input", ()))
    path.write_bytes(b"")
    for read in (
        lambda: list(decontaminate.read_items(uri, "input", ())),
        lambda: list(classifier.read_labelled(uri, "input", "text", "label")),
        lambda: Tokenizer.load(uri),
        lambda: storage.read_bytes(uri),
        lambda: storage.check_pinned(uri),
    ):
        with pytest.raises(ValueError, match=CHANGED):
            read()


def read_two(uri: str) -> None:
    with storage.open_pinned(uri) as file:
        file.seek(300)
        file.read(2)


def test_a_reader_that_jumps_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(range(256)) * 4000)
    uri = pinned(path)
    with storage.open_pinned(uri) as file:
        file.seek(-8, os.SEEK_END)
        assert file.read() == bytes(range(248, 256))
        file.seek(300)
        assert file.read(2) == bytes([44, 45])
    path.write_bytes(path.read_bytes()[:500] + b"!" + path.read_bytes()[501:])
    with pytest.raises(ValueError, match=CHANGED):
        read_two(uri)


def test_hashing_while_reading_costs_little(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(os.urandom(32 << 20))
    began = time.perf_counter()
    with storage.open_pinned(pinned(path)) as file:
        while file.read(1 << 16):
            pass
    assert time.perf_counter() - began < 5
