import json
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import storage
from data.manifest import MANIFEST_NAME, Dataset, Manifest, Shard, publish_manifest, read_manifest

NAMES = st.text("abcdefgh_", min_size=1, max_size=8)
PARTS = st.text(st.characters(min_codepoint=32, exclude_characters="/:"), min_size=1, max_size=9).filter("..".__ne__)
SHARDS = st.builds(
    Shard,
    name=st.lists(PARTS, min_size=1, max_size=3).map("/".join),
    rows=st.integers(0, 2**40),
    bytes=st.integers(0, 2**50),
    tokens=st.integers(0, 2**50),
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
MANIFESTS = st.builds(
    Manifest,
    stage=NAMES,
    version=st.integers(1, 9),
    fingerprint=st.text("0123456789abcdef", min_size=16, max_size=16),
    config=st.dictionaries(NAMES, VALUES, max_size=3),
    inputs=st.dictionaries(
        NAMES, st.lists(st.fixed_dictionaries({"reference": NAMES, "content": NAMES}), max_size=2), max_size=3
    ),
    datasets=st.dictionaries(
        NAMES,
        st.builds(
            Dataset, shards=st.lists(SHARDS, max_size=3).map(tuple), facts=st.dictionaries(NAMES, VALUES, max_size=2)
        ),
        max_size=3,
    ),
    dropped=st.dictionaries(NAMES, st.integers(0, 10**9), max_size=3),
    tokenizer_sha256=st.none() | st.text("0123456789abcdef", min_size=64, max_size=64),
    setup=st.none() | st.dictionaries(NAMES, VALUES, max_size=2),
)


def manifest(rows: int = 3) -> Manifest:
    shards = (
        Shard(name="text/00000.parquet", rows=rows, bytes=100, tokens=5, sha256="a" * 64),
        Shard(name="text/00001.parquet", rows=4, bytes=10, tokens=6, sha256="b" * 64),
    )
    return Manifest(
        stage="filter_text",
        version=1,
        fingerprint="0" * 16,
        config={"max_characters": 10},
        inputs={},
        datasets={"text": Dataset(shards=shards)},
        dropped={"empty": 2},
    )


@settings(deadline=None, max_examples=50)
@given(MANIFESTS)
def test_a_manifest_is_read_back_as_it_was_written(written: Manifest) -> None:
    text = written.to_json()
    again = Manifest.from_json(text)
    assert again == written
    assert again.to_json() == text


def test_the_bytes_do_not_depend_on_the_order_of_keys() -> None:
    first = replace(manifest(), config={"a": 1, "b": {"c": 1, "d": 2}}, dropped={"x": 1, "y": 2})
    other = replace(manifest(), config={"b": {"d": 2, "c": 1}, "a": 1}, dropped={"y": 2, "x": 1})
    assert first.to_json() == other.to_json()


def test_totals_are_sums_over_the_shards() -> None:
    (dataset,) = manifest().datasets.values()
    assert (dataset.rows, dataset.bytes, dataset.tokens) == (7, 110, 11)
    document = json.loads(manifest().to_json())
    assert document["datasets"]["text"]["totals"] == {"rows": 7, "bytes": 110, "tokens": 11}


def test_a_directory_without_a_manifest_holds_nothing(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "text/00000.parquet"), b"rows")
    assert read_manifest(str(tmp_path)) is None


def test_the_first_to_publish_wins_and_the_second_learns_it(tmp_path: Path) -> None:
    assert publish_manifest(str(tmp_path), manifest())
    assert not publish_manifest(str(tmp_path), manifest())
    assert read_manifest(str(tmp_path)) == manifest()


def test_a_manifest_in_memory_is_created_and_read_like_any_other() -> None:
    place = f"memory://{uuid.uuid4().hex}/run"
    assert read_manifest(place) is None
    assert publish_manifest(place, manifest())
    assert not publish_manifest(place, manifest())
    assert read_manifest(place) == manifest()
    with pytest.raises(RuntimeError, match="not deterministic"):
        publish_manifest(place, manifest(rows=4))
    storage.remove_tree(place)


def test_two_results_for_one_fingerprint_are_an_error(tmp_path: Path) -> None:
    publish_manifest(str(tmp_path), manifest())
    with pytest.raises(RuntimeError, match="not deterministic"):
        publish_manifest(str(tmp_path), manifest(rows=4))
    assert read_manifest(str(tmp_path)) == manifest()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"format": 1}',
        manifest().to_json().replace(b'"rows"', b'"lines"'),
        manifest().to_json().replace(b'"stage"', b'"step"'),
        manifest().to_json().replace(b'"format": 2', b'"format": 3'),
        manifest().to_json()[:200],
    ],
    ids=["empty", "cut", "list", "null", "bytes", "format only", "shard field", "field", "format", "cut later"],
)
def test_what_is_no_manifest_is_refused_with_its_place(tmp_path: Path, text: bytes) -> None:
    storage.write_bytes(str(tmp_path / MANIFEST_NAME), text)
    with pytest.raises(ValueError, match=f"{MANIFEST_NAME} is not a manifest of format 2.* name the directory of a"):
        read_manifest(str(tmp_path))
