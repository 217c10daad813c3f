"""Files that a manifest lists are read as it lists them, or refused by name."""

import json
import pickle
import random
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data import schema, storage
from data.errors import UserError
from data.loader import SequenceReader
from data.manifest import MANIFEST_NAME, Dataset, ListedUri, Manifest, Shard, listed, publish_manifest, read_manifest
from data.order import splitmix64
from data.sealed import SEAL, seal
from data.shards import read_table, write_file, write_table

LENGTH, ROWS, GROUP = 8, 12, 4


def sequences(seed: int) -> pa.Table:
    tokens = (splitmix64(seed, ROWS * LENGTH) % 500).astype("int32").reshape(ROWS, LENGTH)
    ones = (tokens * 0 + 1).astype("int32")
    columns: dict[str, Any] = {
        "tokens": tokens.tolist(),
        "segment_ids": ones.tolist(),
        "positions": [list(range(LENGTH))] * ROWS,
        "loss_mask": (ones > 0).tolist(),
        "documents": [[{"id": f"{seed}-{row}", "start": 0, "end": LENGTH}] for row in range(ROWS)],
        "text_bytes": [LENGTH] * ROWS,
        "sequence_hash": schema.sequence_hashes(tokens, ones, ones > 0),
    }
    return pa.table(columns, schema=schema.SEQUENCES)


@pytest.fixture
def shards(tmp_path: Path) -> list[Shard]:
    """Two shards of packed rows with equal numbers of rows."""
    return [
        write_table(str(tmp_path), f"sequences/{number}.parquet", sequences(number), row_group_rows=GROUP)
        for number in range(2)
    ]


def readers(directory: Path, shard: Shard) -> list[Any]:
    """A reader of the whole shard, of one column, and of single row groups."""
    uri = listed(str(directory), shard)
    return [
        lambda: read_table(uri, schema.SEQUENCES),
        lambda: read_table(uri, ["documents"]),
        lambda: SequenceReader([uri], GROUP).read([(0, 5)]),
    ]


def test_a_listed_file_is_read_by_whoever_reads_it(tmp_path: Path, shards: list[Shard]) -> None:
    for read in readers(tmp_path, shards[0]):
        read()
    uri = pickle.loads(pickle.dumps(listed(str(tmp_path), shards[0])))  # as it travels to a worker
    assert isinstance(uri, ListedUri)
    assert uri.shard == shards[0]
    assert uri == str(uri)


def test_exchanged_shards_are_refused_by_whoever_reads_them(tmp_path: Path, shards: list[Shard]) -> None:
    first, second = (tmp_path / shard.name for shard in shards)
    first.rename(tmp_path / "aside")
    second.rename(first)
    (tmp_path / "aside").rename(second)
    for shard in shards:
        for read in readers(tmp_path, shard):
            with pytest.raises(ValueError, match=f"{shard.name} is not the file that its manifest lists"):
                read()


@pytest.mark.parametrize(
    ("wrong", "difference"),
    [
        ({"rows": ROWS + 1}, f"it has {ROWS} rows, not {ROWS + 1}"),
        ({"bytes": 900}, "its size is not 900 bytes"),
        ({"bytes": 1 << 20}, "its size is not 1,048,576 bytes"),
        ({"bytes": 0}, "its size is not 0 bytes"),
        ({"footer": "0" * 16}, "its footer has the digest"),
    ],
)
def test_an_entry_of_another_file_is_refused(
    tmp_path: Path, shards: list[Shard], wrong: dict[str, Any], difference: str
) -> None:
    for read in readers(tmp_path, replace(shards[0], **wrong)):
        with pytest.raises(ValueError, match=difference):
            read()


def test_another_sha256_is_refused_by_whoever_reads_the_whole_file(tmp_path: Path, shards: list[Shard]) -> None:
    for shard in (replace(shards[0], sha256="0" * 64), replace(shards[0], sha256="0" * 64, footer=None)):
        with pytest.raises(ValueError, match=r"0\.parquet is not the file that its manifest lists .got .* with sha256"):
            read_table(listed(str(tmp_path), shard), schema.SEQUENCES)
    with pytest.raises(ValueError, match="is not the file that its manifest lists"):  # no digest of a footer: whole
        read_table(listed(str(tmp_path), shard), ["documents"])
    with pytest.raises(ValueError, match=r"lists \(it is missing\)"):
        read_table(listed(str(tmp_path), replace(shards[0], name="gone.parquet")))
    written = write_file(str(tmp_path), "tokenizer.model", b"pieces")
    (tmp_path / "tokenizer.model").write_bytes(b"piecez")
    with pytest.raises(ValueError, match=r"tokenizer\.model is not the file that its manifest lists"):
        storage.read_bytes(listed(str(tmp_path), written))
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(ValueError, match=r"lists \(it is missing\)"):
        storage.read_bytes(listed(str(tmp_path), written))


def test_no_flipped_bit_gives_other_rows(tmp_path: Path, shards: list[Shard]) -> None:
    """Footers are tried more than bodies: a flip there renames columns and fields, or moves them."""
    path = tmp_path / shards[0].name
    content = path.read_bytes()
    footer = int.from_bytes(content[-8:-4], "little") + 8
    chosen = random.Random(0)
    places = [chosen.randrange(len(content) - footer, len(content)) for _ in range(150)]
    places += [chosen.randrange(len(content)) for _ in range(50)]
    whole, part, groups = readers(tmp_path, shards[0])
    right = [whole(), part(), groups()["tokens"].tolist()]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << chosen.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"0\.parquet is not the file"):
            whole()
        for number, read in ((1, part), (2, lambda: groups()["tokens"].tolist())):
            with suppress(UserError):
                assert read() == right[number]  # a flip in pages that it did not read


def test_a_column_or_field_of_another_type_is_refused_without_a_manifest(tmp_path: Path) -> None:
    table = sequences(0)
    renamed = pa.list_(pa.field("element", pa.struct([("id", pa.string()), ("star", pa.int32()), ("end", pa.int32())])))
    documents = pa.array([[{"id": "a", "star": 0, "end": 1}]] * ROWS, renamed)
    place = table.schema.names.index("documents")
    write_table(str(tmp_path), "a.parquet", table.set_column(place, pa.field("documents", renamed), documents))
    with pytest.raises(ValueError, match=r"a\.parquet has the column documents with values of .*star: int32"):
        read_table(str(tmp_path / "a.parquet"), schema.SEQUENCES)
    wide = table.set_column(0, "tokens", table["tokens"].cast(pa.list_(pa.int64())))
    write_table(str(tmp_path), "b.parquet", wide, row_group_rows=GROUP)
    with pytest.raises(ValueError, match=r"b\.parquet has the column tokens with values of list<element: int64>"):
        SequenceReader([str(tmp_path / "b.parquet")], GROUP).read([(0, 0)])


@pytest.fixture
def manifest(shards: list[Shard]) -> Manifest:
    return Manifest(
        stage="pack_sequences",
        version=1,
        fingerprint="0" * 16,
        config={"text": '\n "self_sha256": "' + "0" * 64},
        inputs={},
        datasets={"sequences": Dataset(shards=tuple(shards))},
    )


def test_a_falsified_manifest_is_refused(tmp_path: Path, manifest: Manifest) -> None:
    publish_manifest(str(tmp_path), manifest)
    path = tmp_path / MANIFEST_NAME
    text = path.read_bytes()
    assert read_manifest(str(tmp_path)) == manifest
    falsified = [
        text.replace(b'"rows": 12', b'"rows": 13', 1),
        text.replace(b'"rows": 12', b'"rows":  12', 1),
        text.replace(SEAL.encode(), b"self_sha255"),
        text.replace(b'"format": 2', b'"format": 1'),
        seal({**json.loads(text), "format": 3}),
        text + b" ",
    ]
    for content in falsified:
        assert content != text
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{MANIFEST_NAME} is not a manifest of format 2"):
            read_manifest(str(tmp_path))


def test_an_earlier_manifest_is_read_and_its_files_are_checked_whole(tmp_path: Path, manifest: Manifest) -> None:
    document = json.loads(manifest.to_json())
    del document[SEAL]
    for shard in document["datasets"]["sequences"]["shards"]:
        del shard["footer"]
    (tmp_path / MANIFEST_NAME).write_text(json.dumps({**document, "format": 1}))
    earlier = read_manifest(str(tmp_path))
    assert earlier is not None
    (first, second) = earlier.datasets["sequences"].shards
    read_table(listed(str(tmp_path), first), ["documents"])
    with pytest.raises(ValueError, match=f"{first.name} is not the file that its manifest lists"):
        read_table(listed(str(tmp_path), replace(second, name=first.name)), ["documents"])
