"""The data stages one after another on a mixed corpus: counts, bytes, and what a kill -9 at any commit leaves."""

import gzip
import itertools
import json
import os
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data.manifest import Manifest
from model import gemma2_tiny
from pipelines.engine import shuffle
from pipelines.engine.resources import Resources
from pipelines.engine.runner import run_task
from pipelines.engine.stage import load_stage
from pipelines.engine.task import Task, resolve_inputs
from tests.programs.chaos_log import chaos_run
from tests.programs.corpora import web_corpus
from tests.programs.in_process import CHAIN, InProcess, chain, run_chain
from tests.programs.undisturbed import Reference, compare, drive, finished, listed

POINTS, POINTS_IN_MAKE_TEST = 25, 2


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(tmp_path_factory.mktemp("reference"))


@pytest.mark.slow
def test_documents_in_are_documents_out_and_rejects_by_reason(reference: Reference) -> None:
    made = reference.manifests
    collected = made["collect_text"]
    assert collected.datasets["rejects"].rows == sum(collected.dropped.values())
    assert collected.dropped == {"invalid_json": 1, "invalid_utf8": 2, "no_text": 2}
    before = collected.datasets["text"].rows
    for name in ("filter_text", "deduplicate_text"):
        after = made[name].datasets["text"].rows
        assert before == after + sum(made[name].dropped.values()), name
        before = after
    assert made["deduplicate_text"].datasets["clusters"].rows == sum(made["deduplicate_text"].dropped.values())
    assert made["deduplicate_text"].dropped["exact_duplicate"] >= 10
    assert made["deduplicate_text"].dropped["near_duplicate"] >= 5
    assert made["decontaminate_text"].datasets["text"].rows == before
    report = made["decontaminate_text"].datasets["hits"].facts["evaluation_sets"]
    for name in ("questions", "answers"):
        assert report[name]["items"] == report[name]["items_found"] + report[name]["too_short"] == 10
        assert report[name]["documents"] >= report[name]["items_found"] > 0
    assert made["tokenize_text"].datasets["tokens"].rows == before
    tokens = made["tokenize_text"].datasets["tokens"].tokens
    packed = made["pack_sequences"].datasets
    assert packed["sequences"].tokens + packed["heldout"].tokens == tokens


@pytest.mark.slow
def test_counts_add_up_from_web_archives_and_parquet_with_every_rule_on(tmp_path: Path) -> None:
    corpus = web_corpus(tmp_path)
    rules = dict.fromkeys(("gopher_quality", "gopher_repetition", "c4", "fineweb"), True)
    changed = {
        "filter_text": {**rules, "languages": ("en",), "pii_email": "redact", "pii_phone": "drop"},
        "decontaminate_text": {"action": "drop"},
    }
    tasks = chain(str(tmp_path / "runs"), str(corpus), changed)
    made = {name: run_task(task, Resources(), InProcess(), say=lambda _: None) for name, task in tasks.items()}
    collected = made["collect_text"]
    given = pq.read_metadata(corpus / "documents" / "table.parquet").num_rows
    given += len((corpus / "documents" / "lines.jsonl").read_text().splitlines())
    given += gzip.decompress((corpus / "documents" / "web.warc.gz").read_bytes()).count(b"\r\n\r\nWARC/1.0\r\n") + 1
    text = collected.datasets["text"]
    assert given == text.rows + collected.datasets["rejects"].rows + text.facts["passed_over"]
    assert {"http_status", "not_text", "invalid_json", "no_text"} <= set(collected.dropped)
    before = text.rows
    for name in ("filter_text", "deduplicate_text", "decontaminate_text"):
        after = made[name].datasets["text"].rows
        assert before == after + sum(made[name].dropped.values()), name
        assert 0 < after < before, name
        before = after
    for name in ("collect_text", "filter_text"):
        rejects = made[name].datasets["rejects"].shards
        reasons = Counter(
            reason for shard in rejects for reason in read_column(tasks[name].directory, shard.name, "reason")
        )
        assert reasons == made[name].dropped, name
    assert len(made["filter_text"].dropped) >= 8
    assert made["decontaminate_text"].dropped.keys() == {"contaminated"}
    assert made["tokenize_text"].datasets["tokens"].rows == before


def read_column(directory: str, name: str, column: str) -> list[str]:
    values: list[str] = pq.read_table(f"{directory}/{name}", columns=[column])[column].to_pylist()
    return values


@pytest.mark.slow
def test_clusters_are_the_same_in_one_part_as_in_many(reference: Reference, tmp_path: Path) -> None:
    tasks = chain(str(reference.root), str(reference.corpus))
    task = tasks["deduplicate_text"]
    assert task.config.part_rows < 1000, "several parts, so in rounds"
    whole = replace(task, config=replace(task.config, part_rows=10**9), root=str(tmp_path))
    other = run_task(whole, Resources(), InProcess(), say=lambda _: None)
    ours = reference.manifests["deduplicate_text"]
    assert [shard.sha256 for shard in other.datasets["text"].shards] == [
        shard.sha256 for shard in ours.datasets["text"].shards
    ]
    assert [shard.sha256 for shard in other.datasets["clusters"].shards] == [
        shard.sha256 for shard in ours.datasets["clusters"].shards
    ]


@pytest.mark.slow
def test_a_shuffle_in_two_hops_changes_no_byte(
    reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shuffle, "MOST_READS", 0)
    monkeypatch.setattr(shuffle, "FEW_PARTS", 0)
    tasks = chain(str(reference.root), str(reference.corpus))
    for name in ("deduplicate_text", "pack_sequences"):
        other = run_task(replace(tasks[name], root=str(tmp_path)), Resources(), InProcess(), say=lambda _: None)
        assert other.to_json() == reference.manifests[name].to_json()


@pytest.mark.slow
def test_every_token_of_every_document_is_packed_once(reference: Reference) -> None:
    tasks = chain(str(reference.root), str(reference.corpus))
    lengths: dict[str, int] = {}
    for name in reference.manifests["tokenize_text"].datasets["tokens"].shards:
        table = pq.read_table(f"{tasks['tokenize_text'].directory}/{name.name}")
        lengths |= {row["id"]: len(row["tokens"]) for row in table.select(["id", "tokens"]).to_pylist()}
    spans: dict[str, list[tuple[int, int]]] = {}
    for dataset in reference.manifests["pack_sequences"].datasets.values():
        for shard in dataset.shards:
            table = pq.read_table(f"{tasks['pack_sequences'].directory}/{shard.name}", columns=["documents"])
            for row in table["documents"].to_pylist():
                for span in row:
                    spans.setdefault(span["id"], []).append((span["start"], span["end"]))
    assert spans.keys() == lengths.keys()
    for document, pieces in spans.items():
        ends = [0, *(end for _, end in sorted(pieces))]
        assert [start for start, _ in sorted(pieces)] == ends[:-1], document
        assert ends[-1] == lengths[document]


def check_killed(reference: Reference, root: Path, place: int) -> tuple[int, int, int]:
    drive(root, reference.corpus, kill_at=place)
    complete = listed(reference.root)
    visible = listed(root)
    assert visible.items() <= complete.items(), "something is listed that is not of the undisturbed run"
    done = finished(root)
    drive(root, reference.corpus)
    assert listed(root) == complete
    for file, written in done.items():
        assert file.stat().st_mtime_ns == written, f"{file} was finished and was written again"
    return compare(root, reference.root)


def points(reference: Reference, count: int, seed: int) -> list[int]:
    """Places over the whole chain, one drawn from each of `count` equal parts of it."""
    draw = random.Random(seed)
    ends = [round(reference.places * k / count) for k in range(count + 1)]
    return [draw.randrange(start, end) for start, end in itertools.pairwise(ends)]


@pytest.mark.slow
def test_a_driver_killed_at_a_commit_leaves_nothing_wrong_and_is_continued(
    reference: Reference, tmp_path: Path
) -> None:
    for place in points(reference, POINTS_IN_MAKE_TEST, seed=int(os.environ.get("CHAOS_SEED", "1"))):
        _, lost, doubled = check_killed(reference, tmp_path / str(place), place)
        assert (lost, doubled) == (0, 0)


@pytest.mark.chaos
@pytest.mark.parametrize("number", range(POINTS))
def test_a_driver_killed_at_any_commit_is_continued(reference: Reference, tmp_path: Path, number: int) -> None:
    with chaos_run("driver killed at a commit", number) as counts:
        place = points(reference, POINTS, seed=2)[number]
        counts.compared, counts.lost, counts.doubled = check_killed(reference, tmp_path, place)
        counts.kills = 1
        assert (counts.lost, counts.doubled) == (0, 0)


@pytest.mark.slow
def test_a_plan_tells_how_often_each_source_is_gone_through(reference: Reference) -> None:
    packed = chain(str(reference.root), str(reference.corpus))["pack_sequences"]
    rows = reference.manifests["pack_sequences"].datasets["sequences"].rows
    stage = load_stage("train_model")
    config = stage.config(
        model=gemma2_tiny(vocab_size=1024), steps=20, global_batch=rows // 10, mixture=("0:corpus=1", "5:corpus=2")
    )
    inputs = resolve_inputs(stage, config, {"sequences": [packed.directory]}, str(reference.root))
    notes = list(stage.module.plan_notes(config, inputs))
    share = rows // 10 / rows
    assert notes == [
        f"steps 0 to 5: corpus {5 * (rows // 10):,} rows, {5 * share:.2f} epochs so far",
        f"steps 5 to 20: corpus {15 * (rows // 10):,} rows, {20 * share:.2f} epochs so far",
    ]


@pytest.mark.slow
def test_the_chain_is_the_same_on_ray(reference: Reference, tmp_path: Path, ray_session: InProcess) -> None:
    run_chain(str(tmp_path), str(reference.corpus), ray_session)
    assert listed(tmp_path) == listed(reference.root)
    assert {name for name, _, _ in CHAIN} == {file.parents[1].name for file in tmp_path.glob("*/*/_MANIFEST.json")}


@pytest.mark.slow
def test_a_classifier_is_trained_and_used(reference: Reference, tmp_path: Path) -> None:
    labelled = tmp_path / "labelled.jsonl"
    draw = random.Random(0)
    words = {"good": ["fine", "clear", "sound"], "bad": ["spam", "buy", "click"]}
    rows = [{"text": " ".join(draw.choices(words[label], k=9)), "label": label} for label in ("good", "bad") * 300]
    labelled.write_text("\n".join(map(json.dumps, rows)))
    root, session = str(tmp_path / "runs"), InProcess()

    def made(name: str, fields: dict[str, object], inputs: dict[str, list[str]]) -> tuple[str, Manifest]:
        stage = load_stage(name)
        config = stage.config(**fields)
        task = Task(stage=stage, config=config, inputs=resolve_inputs(stage, config, inputs, root), root=root)
        return task.directory, run_task(task, Resources(), session, say=lambda _: None)

    where, trained = made("train_classifier", {"kept_label": "good", "weights": 1 << 14}, {"labelled": [str(labelled)]})
    measured = trained.datasets["classifier"].facts["calibration"]
    assert measured["roc_auc"] == 1.0
    texts = [json.dumps({"text": text}) for text in ("a clear and sound text", "click to buy spam")]
    (tmp_path / "texts.jsonl").write_text("\n".join(texts))
    collected, _ = made("collect_text", {}, {"input": [str(tmp_path / "texts.jsonl")]})
    _, filtered = made("filter_text", {"min_classifier_score": (0.5,)}, {"text": [collected], "classifier": [where]})
    assert filtered.dropped == {"classifier": 1}
    with pytest.raises(ValueError, match="got 1 classifiers and 0 scores"):
        made("filter_text", {}, {"text": [collected], "classifier": [where]})
