"""deduplicate_text in this process: near-duplicates are compared, over any number of parts and hops."""

import random
from pathlib import Path

import pytest

from data.manifest import Manifest
from data.shards import read_table
from pipelines.engine import shuffle
from pipelines.engine.errors import UserError
from pipelines.engine.resources import Resources
from pipelines.engine.runner import run_task
from pipelines.engine.stage import load_stage
from pipelines.engine.task import Task, future_input, resolve_inputs
from pipelines.stages import deduplicate_text
from tests.programs.in_process import InProcess

MEMBERS, COPIES = 20, 3


def write_corpus(folder: Path) -> None:
    """Pages with one header of most of their words, and copies of the first pages with few other words."""
    draw = random.Random(3)
    words = [f"w{number}" for number in range(5000)]
    header = draw.sample(words, 160)
    pages = [[*header, *draw.sample(words, 60)] for _ in range(MEMBERS)]
    pages += [[*page[:-2], "changed", "here"] for page in pages[:COPIES]]
    for number, page in enumerate(pages):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02d}.txt").write_text(" ".join(page))


def run(folder: Path, **fields: object) -> tuple[Manifest, list[str], list[str]]:
    """(manifest, texts that stay, reasons of the dropped ones)."""
    root = str(folder / "runs")
    collect = load_stage("collect_text")
    config = collect.config(source="pages", shard_bytes=7_000)
    given = resolve_inputs(collect, config, {"input": [str(folder / "pages")]}, root)
    collected = Task(stage=collect, config=config, inputs=given, root=root)
    stage = load_stage("deduplicate_text")
    inputs = {"text": (future_input(collected, "text"),)}
    task = Task(stage=stage, config=stage.config(**fields), inputs=inputs, root=root)
    run_task(collected, Resources(), InProcess(), say=lambda _: None)
    manifest = run_task(task, Resources(), InProcess(), say=lambda _: None)

    def rows(dataset: str, column: str) -> list[str]:
        return [
            value
            for shard in manifest.datasets[dataset].shards
            for value in read_table(f"{task.directory}/{shard.name}", [column])[column].to_pylist()
        ]

    return manifest, rows("text", "text"), rows("clusters", "reason")


def test_pages_with_one_header_stay_and_their_copies_go(tmp_path: Path) -> None:
    write_corpus(tmp_path / "pages")
    manifest, texts, reasons = run(tmp_path)
    assert len(manifest.datasets["text"].shards) >= 3
    assert len(texts) == MEMBERS
    assert reasons == ["near_duplicate"] * COPIES
    _, unverified, _ = run(tmp_path, min_similarity=0.0)
    assert len(unverified) < MEMBERS


def test_parts_and_hops_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus(tmp_path / "pages")
    _, whole, reasons = run(tmp_path)
    monkeypatch.setattr(deduplicate_text, "PART_TEXT_BYTES", 1_000)
    monkeypatch.setattr(shuffle, "MOST_READS", 1)
    monkeypatch.setattr(shuffle, "FEW_PARTS", 2)
    assert run(tmp_path, part_rows=120)[1:] == (whole, reasons)


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_a_similarity_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(UserError, match=r"min_similarity is .*; allowed are 0 to 1"):
        deduplicate_text.Config(min_similarity=value)
