"""Workers that divide a model take the steps of workers that each have all of it, and of one worker."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from model.sharding import MeshShape
from tests.programs.chaos_log import Counts
from tests.programs.divided import HALF, STEPS, divided_job, from_files, groups, runs, same, train
from tests.programs.examples import moved, write_sequences
from training.backends.local_workers import run_workers
from training.backends.names import Device
from training.backends.torch_backend import TorchBackend
from training.checkpoints.records import read_rows
from training.checkpoints.save_load import load_checkpoint
from training.replay import replay
from training.setup import Setup

pytestmark = pytest.mark.slow


GPUS = max((some for some in (1, 2, 4, 8) if some <= torch.cuda.device_count()), default=0)
NO_GPU = "needs a GPU; nccl takes one worker a GPU"


@pytest.fixture(
    scope="module",
    params=[
        ("cpu", 2),
        pytest.param(("cpu", 4), marks=pytest.mark.chaos("training divided over four")),
        pytest.param(("cuda", GPUS), marks=pytest.mark.skipif(not GPUS, reason=NO_GPU)),
    ],
    ids=lambda param: "{}-{}".format(*param),
)
def where(request: pytest.FixtureRequest) -> tuple[Device, int]:
    device, workers = request.param
    return device, workers


@pytest.fixture(scope="module")
def workers(where: tuple[Device, int]) -> int:
    return where[1]


@pytest.fixture(scope="module")
def directory(where: tuple[Device, int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("{}-{}".format(*where))


@pytest.fixture(scope="module")
def outcome(directory: Path, where: tuple[Device, int]) -> dict[str, Any]:
    """Beside the runs of `runs`, one of a worker that is alone: on a CPU, so that a GPU's losses have a reference."""
    device, workers = where
    train(divided_job(str(directory), "one", 1), TorchBackend("cpu"))
    answer: dict[str, Any] = run_workers(Setup(workers=workers, device=device), runs, str(directory))
    return answer


def losses(directory: Path, name: str) -> np.ndarray:
    rows = read_rows(str(directory / name), "metrics")
    assert rows is not None
    return np.array(rows["loss_sum"]) / np.array(rows["targets"])


def column(directory: Path, name: str, of: str) -> list[Any]:
    rows = read_rows(str(directory / name), "metrics")
    assert rows is not None
    return list(rows[of].to_pylist())


@pytest.mark.usefixtures("outcome")
@pytest.mark.parametrize("other", ["one", "whole"])
def test_losses_and_rows_are_those_of_one_worker_and_of_whole_models(
    directory: Path, other: str, counts: Counts
) -> None:
    assert len(losses(directory, "divided")) == STEPS
    counts.add(compared=STEPS)
    np.testing.assert_allclose(losses(directory, "divided"), losses(directory, other), rtol=1e-5)
    np.testing.assert_allclose(
        column(directory, "divided", "grad_norm"), column(directory, other, "grad_norm"), rtol=1e-4
    )
    lineage = [read_rows(str(directory / name), "lineage") for name in ("divided", other)]
    assert lineage[0] is not None
    assert lineage[0].equals(lineage[1])


@pytest.mark.usefixtures("outcome")
def test_bfloat16_and_the_average_of_weights_are_those_of_whole_models(directory: Path) -> None:
    for dtype, tolerance in (("float32", 1e-6), ("bfloat16", 1e-5)):
        names = [f"{kind}-{dtype}" for kind in ("divided", "whole")]
        np.testing.assert_allclose(*(losses(directory, name) for name in names), rtol=tolerance)
        averages = [load_checkpoint(str(directory / name / "step-00000004")).optimizer.average for name in names]  # type: ignore[union-attr]
        assert averages[0].keys() == averages[1].keys()
        for name, tensor in averages[0].items():
            torch.testing.assert_close(tensor, averages[1][name], rtol=0, atol=10 * tolerance)
    assert abs(losses(directory, "divided-bfloat16") / losses(directory, "divided-float32") - 1).max() > 1e-4


@pytest.mark.usefixtures("outcome")
def test_a_resumed_run_ends_in_the_same_bytes(directory: Path) -> None:
    commits = [
        json.loads((directory / name / f"step-{STEPS:08d}" / "COMMIT").read_text())["files"]
        for name in ("divided", "resumed")
    ]
    tensors = [name for name in commits[0] if name.endswith(".safetensors")]
    assert len(tensors) == 2
    assert all(commits[0][name] == commits[1][name] for name in tensors)


def test_checkpoints_are_one_models_whoever_wrote_them(
    directory: Path, outcome: dict[str, Any], tmp_path: Path, workers: int
) -> None:
    """The watch compares the sum of the bits, which the checkpoint names, with what the first step finds."""
    assert outcome["back_and_forth"]
    np.testing.assert_allclose(losses(directory, "from-one")[10:], losses(directory, "one")[10:], rtol=1e-5)
    shutil.copytree(directory / "divided" / HALF, tmp_path / "from-divided" / HALF)
    summary = train(divided_job(str(tmp_path), "from-divided", 1), TorchBackend("cpu"))
    assert (summary.first_step, summary.steps) == (10, STEPS)
    mine = column(tmp_path, "from-divided", "loss_sum")
    np.testing.assert_allclose(mine[-10:], column(directory, "divided", "loss_sum")[10:], rtol=1e-5)
    checkpoints = [load_checkpoint(str(directory / name / HALF)) for name in ("divided", "whole")]
    for name, tensor in checkpoints[0].weights.items():
        torch.testing.assert_close(tensor, checkpoints[1].weights[name], rtol=0, atol=1e-4)
    assert not same(checkpoints[0].weights, load_checkpoint(str(directory / "divided" / "step-00000020")).weights)


def test_each_worker_holds_its_share_of_parameters_and_moments(outcome: dict[str, Any], workers: int) -> None:
    assert len(outcome["shares"]) == workers
    assert max(outcome["shares"]) < 1.1 / workers  # sizes that are not divisible are rounded up


def test_a_flipped_bit_of_one_workers_part_stops_all(outcome: dict[str, Any], workers: int) -> None:
    assert len(outcome["flipped"]) == workers
    for said in outcome["flipped"]:
        assert re.match(r"step 6 found weights with the checksum .* memory of one of the workers changed", said)


def test_a_bad_step_names_the_same_rows_as_with_whole_models(outcome: dict[str, Any]) -> None:
    (said,), (expected,) = set(outcome["bad"]), set(outcome["bad_whole"])
    named = [re.search(r"worst first: (\S+) \(loss inf", message) for message in (said, expected)]
    assert named[0] is not None
    assert named[1] is not None
    assert named[0][1] == named[1][1]
    rest = [re.findall(r"; (\S+) \(loss ([\d.]+), gradient ([\d.]+)\)", message) for message in (said, expected)]
    assert len(rest[0]) == 7
    assert [row for row, *_ in rest[0]] == [row for row, *_ in rest[1]]
    for of in (1, 2):
        np.testing.assert_allclose(*([float(figures[of]) for figures in side] for side in rest), rtol=2e-3)


@pytest.mark.chaos("training divided, replayed")
def test_a_replay_divides_the_model_as_the_run_did(tmp_path: Path, counts: Counts) -> None:
    """So it finds the same bits, and a moment that changed in the checkpoint that it begins from."""
    job = write_sequences(tmp_path, divided_job(str(tmp_path), "run", 2, steps=4, checkpoint_every_steps=2))
    job = moved(job, mesh=MeshShape(data=2), threads=1)
    run_workers(job.setup, from_files, job)
    result = replay(job, 4)
    assert (result.first_step, result.steps, result.differences) == (2, 2, ())
    half = Path(job.checkpoints_uri) / "step-00000002"
    moments = safetensors.torch.load_file(half / "optimizer.safetensors")
    moments["second.model.norm.weight"][3] *= 2
    safetensors.torch.save_file(moments, half / "optimizer.safetensors")
    commit = json.loads((half / "COMMIT").read_text())
    commit["files"]["optimizer.safetensors"] = {
        "bytes": (half / "optimizer.safetensors").stat().st_size,
        "sha256": hashlib.sha256((half / "optimizer.safetensors").read_bytes()).hexdigest(),
    }
    (half / "COMMIT").write_text(json.dumps(commit))
    assert replay(job, 4).differences
    counts.add(compared=2)


@pytest.mark.chaos("training divided in groups")
def test_groups_of_workers_that_each_divide_a_model_take_the_steps_of_one(tmp_path: Path, counts: Counts) -> None:
    train(divided_job(str(tmp_path), "one", 1), TorchBackend("cpu"))
    outcome = run_workers(Setup(workers=4, device="cpu"), groups, str(tmp_path))
    assert outcome["back_and_forth"]
    assert outcome["shares"] == pytest.approx([0.5] * 4, abs=0.02)
    for name in ("groups", "groups-resumed"):
        np.testing.assert_allclose(losses(tmp_path, name), losses(tmp_path, "one"), rtol=1e-5)
        assert column(tmp_path, name, "weights_checksum") == column(tmp_path, "groups", "weights_checksum")
        counts.add(compared=STEPS)
