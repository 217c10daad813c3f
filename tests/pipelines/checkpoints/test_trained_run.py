"""Which runs can be opened again, step by step."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data.manifest import MANIFEST_NAME, Dataset
from pipelines.checkpoints.loaded import committed_files
from pipelines.checkpoints.trained_run import has_steps, open_run
from pipelines.engine.runner import CONFIG_NAME
from tests.programs.cached_runs import publish_run
from tests.programs.examples import example_job, made_up_feed
from tests.programs.fake_runs import FakeRuns, add_text_path
from training.backends.torch_backend import TorchBackend
from training.loop import run_training

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


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def exchange(path: Path) -> None:
    """With the same file of another checkpoint."""
    path.write_bytes((path.parents[1] / "step-00000010" / path.name).read_bytes())


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("COMMIT", Path.unlink),
        ("COMMIT", cut),
        ("COMMIT", exchange),
        ("lineage.parquet", cut),
        ("optimizer.safetensors", Path.unlink),
    ],
)
def test_a_finished_run_that_lacks_a_checkpoint_is_no_run_of_fewer_steps(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    reference = saved(tmp_path, "train_model")
    directory = tmp_path / reference
    job = example_job(directory / "checkpoints")
    run_training(job, TorchBackend("cpu"), made_up_feed(job))
    files, _ = committed_files(str(directory))
    publish_run(str(directory), "train_model", {key: Dataset(shards=shards) for key, shards in files.items()}, "")
    assert open_run(reference, str(tmp_path)).step is None
    damage(directory / "checkpoints" / "step-00000005" / name)
    message = rf"got {directory}, whose checkpoints/step-00000005/\S* is not the one that its manifest lists"
    with pytest.raises(ValueError, match=message):
        open_run(reference, str(tmp_path))
    (directory / MANIFEST_NAME).unlink()
    assert open_run(reference, str(tmp_path)).step is None, "of a run in progress, what is committed counts"


def test_a_run_of_another_stage_is_refused_with_the_stages_that_train(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a run of filter_text; give a run of train_model"):
        open_run(saved(tmp_path, "filter_text"), str(tmp_path))


def test_imported_weights_have_no_steps_nor_has_a_stage_that_is_gone() -> None:
    assert has_steps("train_model")
    assert not has_steps("import_model")
    assert not has_steps("train_something_else")
