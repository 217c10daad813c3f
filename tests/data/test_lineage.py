"""A document is found in every row that holds a part of it, and a row's documents are those it was packed from."""

from pathlib import Path

import numpy as np
import pytest

from data.lineage import Place, documents_of_rows, find_document
from data.packing import Document, pack_documents
from data.shards import write_table

LENGTH = 16


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    """Two shards; document 1 lies over the rows 0 to 2 of the first, document 3 in both."""
    lengths = [[("0" * 31 + "0", 10), ("0" * 31 + "1", 30), ("0" * 31 + "3", 8)], [("0" * 31 + "3", 5), ("a" * 32, 27)]]
    uris = []
    for shard, documents in enumerate(lengths):
        rows = [
            Document(id=name, tokens=np.arange(count, dtype=np.int32), text_bytes=count) for name, count in documents
        ]
        write_table(str(tmp_path), f"{shard}.parquet", pack_documents(rows, LENGTH), row_group_rows=2)
        uris.append(str(tmp_path / f"{shard}.parquet"))
    return uris


def test_a_document_is_found_in_every_row_of_it(shards: list[str]) -> None:
    assert find_document(shards, "0" * 31 + "1") == [Place(0, 0, 0, 6), Place(0, 1, 6, 22), Place(0, 2, 22, 30)]
    assert [(place.shard, place.row) for place in find_document(shards, "0" * 31 + "3")] == [(0, 2), (1, 0)]
    assert find_document(shards, "f" * 32) == []


def test_a_row_tells_its_documents(shards: list[str]) -> None:
    documents_by_row = documents_of_rows(shards, [(0, 2), (1, 0), (0, 0)])
    assert [span["id"][-1] for span in documents_by_row[0, 2]] == ["1", "3"]
    assert [(span["id"][-1], span["start"], span["end"]) for span in documents_by_row[0, 0]] == [
        ("0", 0, 10),
        ("1", 0, 6),
    ]
    for row, documents in documents_by_row.items():
        for span in documents:
            assert Place(*row, span["start"], span["end"]) in find_document(shards, span["id"])


def test_a_row_that_is_not_there_is_refused(shards: list[str]) -> None:
    with pytest.raises(ValueError, match=r"got row 3 of .*; it has 3 rows"):
        documents_of_rows(shards, [(0, 3)])
    with pytest.raises(ValueError, match="got shard 2; the dataset has 2 shards"):
        documents_of_rows(shards, [(2, 0)])
