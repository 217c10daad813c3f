"""deduplicate_text and filter_text against datatrove's MinHash pipeline and its same filters.

Both sides have two processes, and read and write Parquet. Ours runs on 4 full shards of the corpus in a warm cluster.
datatrove would take an hour for these, so it runs on every n-th document of two of the shards, and its start-up is not
counted. Parameters are the same: 5-word shingles, 14 bands of 8; Gopher repetition, Gopher quality, C4, FineWeb with
published thresholds. Words differ: those of datatrove are spaCy's, ours are those of data/words.py.
"""

from collections.abc import Iterator

from tests.benchmarks import corpus
from tests.benchmarks.stage_runs import run_stage, warm_session
from tests.benchmarks.step_speed import Row
from tests.benchmarks.tokenize_speed import Speed, compared, datatrove

SHARDS, CORES = 4, 2
RIVAL_BYTES = 4_000_000
"""bytes of text for each process of the rival"""
FILTERS = {"gopher_quality": True, "gopher_repetition": True, "c4": True, "fineweb": True}


def dedup_rows() -> Iterator[Row]:
    yield from _rows("deduplicate_text", {}, "deduplicate", "its 4 stages of MinHash")


def filter_rows() -> Iterator[Row]:
    yield from _rows("filter_text", FILTERS, "filter", "the same filters")


def _rows(name: str, fields: dict[str, object], work: str, rival_work: str) -> Iterator[Row]:
    whole = corpus.corpus()
    with warm_session() as (session, folder):
        text, small, rival_text = (
            corpus.subset(whole, SHARDS, folder / "text"),
            corpus.cut_run(whole, 1_000_000, CORES, folder / "small"),
            corpus.cut_run(whole, RIVAL_BYTES, CORES, folder / "rival"),
        )
        # without rules, which would keep none of these few documents
        first = run_stage(session, name, {}, {"text": corpus.input_of(small, "text")}, folder)
        yield Row(
            what=f"{name}: 2 MB in a cluster that was just started",
            ours=f"{first.seconds:.1f} s after Ray's {session.started_seconds or 0:.1f} s",
            rival="",
            ratio="",
        )
        ran = run_stage(session, name, fields, {"text": corpus.input_of(text, "text")}, folder)
        theirs = datatrove(work, rival_text, folder)
        ours = Speed(text_bytes=corpus.size_of(text), seconds=ran.seconds, cpu_seconds=ran.cpu_seconds)
    before = ran.manifest.datasets["text"].rows + sum(ran.manifest.dropped.values())
    kept = ran.manifest.datasets["text"].rows / before
    sizes = f"{ours.text_bytes / 1e6:,.0f} MB; the rival on {theirs.text_bytes / 1e6:.0f} MB"
    yield from compared(f"{name}, {sizes}, {kept:.0%} of {before:,} kept", ours, f"datatrove, {rival_work}", theirs)
