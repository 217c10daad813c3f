"""The model card is told by manifests: of the checkpoint, of what it was made from, and of its evaluations."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from model import gemma2_tiny
from pipelines.checkpoints.model_card import Exported, ancestry, model_card
from pipelines.engine.inputs import Input
from pipelines.engine.task import future_input
from tests.programs import resealed
from tests.programs.fake_runs import FakeRuns, whole_path

EXPORTED = Exported(
    name="Student | one", license="apache-2.0", parameters=1234567, config=gemma2_tiny(), dtype="float32",
    tokenizer_sha256="ab" * 32, tokenizer_vocab_size=2048,
)  # fmt: skip


@pytest.fixture
def runs(tmp_path: Path) -> FakeRuns:
    return whole_path(str(tmp_path))


def card(runs: FakeRuns, *, model: str = "distilled", step: int = 40, evaluations: tuple[str, ...] = ()) -> str:
    given = [future_input(runs.tasks[name], "metrics") for name in evaluations]
    return model_card(EXPORTED, checkpoint(runs, model), step, given, runs.root)


def checkpoint(runs: FakeRuns, model: str = "distilled") -> Input:
    return future_input(runs.tasks[model], "checkpoints")


def section(text: str, title: str) -> str:
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_it_tells_data_tokens_teacher_and_losses(runs: FakeRuns) -> None:
    text = card(runs, evaluations=("evaluate_distilled",))
    assert 'license: "apache-2.0"' in text
    assert "# Student \\| one" in text
    training = section(text, "Training")
    assert "distillation: cross-entropy to 50 draws" in training
    assert "Tokens seen: 4,000 targets" in training
    teacher = section(text, "Teacher")
    assert runs.tasks["teacher"].fingerprint in teacher
    assert "Objective: the next token" in teacher
    assert "Loss: " in teacher
    data = section(text, "Data and runs")
    for step in ("collect", "tokenizer", "tokenize", "pack", "teacher", "cache", "distilled"):
        assert data.count(runs.tasks[step].fingerprint) == 1, step
    assert runs.tasks["scratch"].fingerprint not in text
    assert "| 6,400 | 480,000 | 1,900,000 |" in data
    assert "2 not utf8" in data
    assert "| 4,000 | 4.5000 |" in section(text, "Evaluation")


def test_the_loss_is_that_of_the_last_steps_up_to_the_exported_one(runs: FakeRuns) -> None:
    assert "the mean over the last 40 steps" in card(runs)
    early = card(runs, step=20)
    assert "the mean over the last 20 steps" in early
    assert "Tokens seen: 2,000 targets" in early


def test_a_model_without_a_teacher_or_evaluation_says_so_by_having_none(runs: FakeRuns) -> None:
    text = card(runs, model="scratch")
    assert "## Teacher" not in text
    assert "None was given" in section(text, "Evaluation")


def test_initial_weights_have_a_section_of_their_own(runs: FakeRuns) -> None:
    inputs = {"sequences": runs.output("pack", "sequences"), "initial": runs.output("teacher", "checkpoints")}
    distilled = checkpoint(runs)
    datasets = dict(distilled.manifest.datasets)
    task = runs.finish(
        "tuned", "train_model", datasets, inputs=inputs,
        config=checkpoint(runs, "teacher").manifest.config, setup={"device": "cpu", "workers": 1},
    )  # fmt: skip
    shutil.copytree(Path(distilled.directory) / "checkpoints", Path(task.directory) / "checkpoints")
    assert runs.tasks["teacher"].fingerprint in section(card(runs, model="tuned"), "Initial weights")


def test_runs_come_once_and_after_what_they_read(runs: FakeRuns) -> None:
    order = [reference.partition("/")[0] for reference in ancestry(checkpoint(runs), runs.root)]
    before = ["collect_text", "train_tokenizer", "tokenize_text", "pack_sequences", "train_model", "cache_logits"]
    assert order == [*before, "train_model"]


def test_a_run_that_is_not_there_is_named(runs: FakeRuns) -> None:
    shutil.rmtree(runs.tasks["tokenize"].directory)
    with pytest.raises(ValueError, match=rf"no _MANIFEST\.json of tokenize_text/{runs.tasks['tokenize'].fingerprint}"):
        card(runs)


def test_runs_are_found_beside_their_reader_too(runs: FakeRuns, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    assert model_card(EXPORTED, checkpoint(runs), 40, [], str(elsewhere)) == card(runs)


def falsify(document: dict[str, Any]) -> None:
    for dataset in document["datasets"].values():
        for shard in dataset["shards"]:
            shard["sha256"] = "1" * 64


def test_a_run_of_other_bytes_is_refused(runs: FakeRuns) -> None:
    manifest = Path(runs.tasks["pack"].directory) / "_MANIFEST.json"
    resealed.edit(manifest, falsify)
    with pytest.raises(ValueError, match=r"got other bytes of .*the same config was run on another set-up"):
        card(runs)


@pytest.mark.parametrize("other", ["evaluate_teacher", "distilled"])
def test_an_evaluation_of_something_else_is_refused(runs: FakeRuns, other: str) -> None:
    with pytest.raises(ValueError, match=r"evaluated step|is no evaluation"):
        card(runs, evaluations=(other,))


def test_an_evaluation_of_another_step_is_refused(runs: FakeRuns) -> None:
    with pytest.raises(ValueError, match=r"evaluated step 40 of .*; give an evaluation of step 20"):
        card(runs, step=20, evaluations=("evaluate_distilled",))


def test_the_card_of_imported_weights_says_that_they_were_imported(runs: FakeRuns) -> None:
    made: dict[str, Any] = {"checkpoints": dataclasses.replace(checkpoint(runs).data, facts={"steps": [0]})}
    task = runs.finish("import", "import_model", made)
    directory = Path(task.directory)
    recorded = {"weights": [{"content": "content:abc", "reference": "content:abc"}]}
    resealed.edit(directory / "_MANIFEST.json", lambda document: document.update(inputs=recorded))
    assert "Imported, not trained here: files `content:abc`" in card(runs, model="import", step=0)
