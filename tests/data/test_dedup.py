import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from data import dedup, schema

# Few different texts, so that many are alike.
SPLITS = st.lists(st.lists(st.sampled_from("abcdefg"), max_size=8), min_size=1, max_size=5)
PROPERTY = settings(deadline=None, max_examples=50)


def texts(values: list[str], first: int) -> pa.Table:
    rows = [
        {
            "id": f"{first + number:032x}",
            "content_hash": schema.content_hash(value),
            "text": value,
            "source": "s",
            "metadata": "{}",
            "masked_spans": [],
        }
        for number, value in enumerate(values)
    ]
    return pa.Table.from_pylist(rows, schema.TEXT)


def deduplicate(split: list[list[str]], buckets: int) -> tuple[list[pa.Table], list[pa.Table]]:
    """All three passes, as the stage makes them: (kept TEXT, CLUSTERS) of each shard."""
    starts = [sum(map(len, split[:shard])) for shard in range(len(split))]
    tables = [texts(values, start) for values, start in zip(split, starts, strict=True)]
    spread = [dedup.spread(table.select(["id", "content_hash"]), shard, buckets) for shard, table in enumerate(tables)]
    drops = pa.concat_tables(
        [dedup.duplicates_in(pa.concat_tables([parts[bucket] for parts in spread])) for bucket in range(buckets)]
    )
    made = [dedup.drop_rows(table, dedup.of_shard(drops, shard)) for shard, table in enumerate(tables)]
    return [kept for kept, _ in made], [clusters for _, clusters in made]


@PROPERTY
@given(SPLITS, st.integers(1, 5))
def test_the_first_of_each_content_is_kept_over_any_split_into_shards(split: list[list[str]], buckets: int) -> None:
    everything = [value for shard in split for value in shard]
    first = {}
    for number, value in enumerate(everything):
        first.setdefault(value, f"{number:032x}")
    kept, clusters = deduplicate(split, buckets)
    assert [id for table in kept for id in table["id"].to_pylist()] == list(first.values())
    dropped = [row for table in clusters for row in table.to_pylist()]
    assert dropped == [
        {"id": f"{number:032x}", "kept_id": first[value], "content_hash": schema.content_hash(value)}
        for number, value in enumerate(everything)
        if first[value] != f"{number:032x}"
    ]


@PROPERTY
@given(SPLITS)
def test_the_number_of_buckets_changes_nothing(split: list[list[str]]) -> None:
    one, many = deduplicate(split, 1), deduplicate(split, 7)
    assert all(
        a.equals(b) for one_side, other in zip(one, many, strict=True) for a, b in zip(one_side, other, strict=True)
    )


@PROPERTY
@given(SPLITS)
def test_what_was_deduplicated_holds_no_duplicate(split: list[list[str]]) -> None:
    kept, _ = deduplicate(split, 3)
    again, clusters = deduplicate([table["text"].to_pylist() for table in kept], 3)
    assert [table["text"] for table in again] == [table["text"] for table in kept]
    assert not any(table.num_rows for table in clusters)


@PROPERTY
@given(SPLITS, st.integers(1, 4))
def test_each_document_goes_to_one_bucket_with_all_that_are_like_it(split: list[list[str]], buckets: int) -> None:
    seen: dict[str, int] = {}
    for shard, values in enumerate(split):
        parts = dedup.spread(texts(values, 0), shard, buckets)
        assert sum(part.num_rows for part in parts) == len(values)
        for bucket, part in enumerate(parts):
            for content in part["content_hash"].to_pylist():
                assert seen.setdefault(content, bucket) == bucket


def test_tables_keep_their_schemas_when_nothing_is_in_them() -> None:
    (kept,), (clusters,) = deduplicate([[]], 2)
    assert kept.schema.equals(schema.TEXT, check_metadata=True)
    assert clusters.schema.equals(schema.CLUSTERS, check_metadata=True)
