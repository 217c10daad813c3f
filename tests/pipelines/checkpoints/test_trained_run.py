"""Which runs can be opened again, step by step."""

import json
from pathlib import Path

import pytest

from pipelines.checkpoints.trained_run import has_steps, open_run
from pipelines.engine.runner import CONFIG_NAME
from tests.programs.fake_runs import FakeRuns, add_text_path

FINGERPRINT = "0123456789abcdef"


def saved(root: Path, stage: str) -> str:
    """The reference of a run that has only its config and packed rows to read."""
    runs = FakeRuns(root=str(root))
    add_text_path(runs, dropped={})
    inputs = {"sequences": [f"pack_sequences/{runs.tasks['pack'].fingerprint}"]}
    directory = root / stage / FINGERPRINT
    directory.mkdir(parents=True)
    (directory / CONFIG_NAME).write_text(json.dumps({"stage": stage, "config": {"steps": 4}, "inputs": inputs}))
    return f"{stage}/{FINGERPRINT}"


def test_a_run_of_training_is_opened_by_its_reference_and_by_its_checkpoint(tmp_path: Path) -> None:
    run = open_run(saved(tmp_path, "train_model"), str(tmp_path))
    assert (run.stage.name, run.config, run.step) == ("train_model", {"steps": 4}, None)
    assert [source.dataset for source in run.inputs["sequences"]] == ["sequences"]
    assert open_run(f"{run.directory}/checkpoints/step-00000003", str(tmp_path)).step == 3


def test_a_run_of_another_stage_is_refused_with_the_stages_that_train(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a run of filter_text; give a run of train_model"):
        open_run(saved(tmp_path, "filter_text"), str(tmp_path))


def test_imported_weights_have_no_steps_nor_has_a_stage_that_is_gone() -> None:
    assert has_steps("train_model")
    assert not has_steps("import_model")
    assert not has_steps("train_something_else")
