"""One step means the same on every device and for any number of processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.programs.places import REPOSITORY
from tests.programs.xla_flags import QUICK_COMPILES
from training.checkpoints.records import latest_checkpoint, read_rows
from training.loop import run_training

RUN = """
import json, os, sys
from pathlib import Path
import torch
from tests.programs.examples import example_job, made_up_feed
from training.backends.make import make_backend
from training.loop import run_training

directory, device, rank, workers = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
if workers > 1:
    torch.distributed.init_process_group("gloo", rank=rank, world_size=workers)
job = example_job(directory, device=device, workers=workers, config={"steps": 20, "global_batch": 8})
summary = run_training(job, make_backend(job.setup, rank), made_up_feed(job, rank, workers))
if workers > 1:
    torch.distributed.destroy_process_group()  # without it, threads of gloo may outlive the interpreter and abort it
print(json.dumps({"compiles": summary.compiles}))
"""


def start(directory: Path, device: str, rank: int = 0, workers: int = 1, port: int = 0) -> subprocess.Popen[str]:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(REPOSITORY),
        "HOME": str(directory.parent),
        "XLA_FLAGS": QUICK_COMPILES,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    command = [sys.executable, "-c", RUN, str(directory), device, str(rank), str(workers)]
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, text=True, stdout=subprocess.PIPE)


def finish(process: subprocess.Popen[str]) -> dict[str, int]:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    summary: dict[str, int] = json.loads(out.splitlines()[-1])
    return summary


def losses(directory: Path) -> np.ndarray:
    rows = read_rows(str(directory), "metrics")
    assert rows is not None
    return np.array(rows["loss_sum"]) / np.array(rows["targets"])


@pytest.mark.slow
def test_twenty_steps_on_xla_are_those_on_the_cpu_and_compile_once(tmp_path: Path) -> None:
    processes = [start(tmp_path / device, device) for device in ("cpu", "xla")]
    summaries = [finish(process) for process in processes]
    np.testing.assert_allclose(losses(tmp_path / "xla"), losses(tmp_path / "cpu"), rtol=1e-5)
    assert len(losses(tmp_path / "cpu")) == 20
    assert summaries[1]["compiles"] == 2  # placing the weights, and the step


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start(tmp_path / "two", "cpu", rank, 2, port) for rank in (0, 1)]
    processes.append(start(tmp_path / "one", "cpu"))
    for process in processes:
        finish(process)
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)
    lineage = [read_rows(str(tmp_path / name), "lineage") for name in ("one", "two")]
    assert lineage[0] is not None
    assert lineage[0].equals(lineage[1])


def test_the_step_moves_every_parameter_and_keeps_its_storage(tmp_path: Path) -> None:
    import torch

    from model import Gemma2
    from tests.programs.examples import example_job, made_up_feed
    from training.backends.torch_backend import TorchBackend
    from training.loss import next_token_loss
    from training.optim import init_state, step_scalars
    from training.step import train_step

    job = example_job(tmp_path)
    backend = TorchBackend("cpu")
    model = Gemma2(job.config.model)
    before = {name: (parameter.data_ptr(), parameter.detach().clone()) for name, parameter in model.named_parameters()}
    _, batch = next(iter(made_up_feed(job)(0, 1)))
    columns = {name: batch[name] for name in ("tokens", "segment_ids", "positions", "loss_mask")}
    scalars = torch.tensor(step_scalars(job.config.optimizer, 0, 10))
    state = init_state(dict(model.named_parameters()))
    values = train_step(
        model, next_token_loss, state, [backend.to_device(columns)], scalars, job.config.optimizer, backend
    )
    assert values[1].item() == batch["loss_mask"].sum()
    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() == before[name][0]
        assert not torch.equal(parameter, before[name][1]), name


def test_a_step_without_any_target_changes_no_moment(tmp_path: Path) -> None:
    import torch

    from tests.programs.examples import example_job, made_up_feed
    from training.backends.torch_backend import TorchBackend

    job = example_job(tmp_path, config={"steps": 2})

    def nothing(start: int, stop: int):  # type: ignore[no-untyped-def]
        for step, batch in made_up_feed(job)(start, stop):
            yield step, {**batch, "loss_mask": np.zeros_like(batch["loss_mask"])}

    summary = run_training(job, TorchBackend("cpu"), nothing)
    assert (summary.loss, summary.tokens_seen) == (0.0, 0)
    from training.checkpoints.save_load import load_checkpoint

    uri = latest_checkpoint(str(tmp_path))
    assert uri is not None
    moments = load_checkpoint(uri).optimizer
    assert moments is not None
    assert not any(torch.any(moment) for moment in [*moments.first.values(), *moments.second.values()])


def test_bfloat16_computes_from_float32_weights_and_moves_them(tmp_path: Path) -> None:
    from tests.programs.examples import example_job, made_up_feed
    from training.backends.torch_backend import TorchBackend
    from training.checkpoints.save_load import load_checkpoint

    losses = {}
    for dtype in ("float32", "bfloat16"):
        job = example_job(tmp_path / dtype, config={"compute_dtype": dtype, "steps": 4})
        summary = run_training(job, TorchBackend("cpu"), made_up_feed(job))
        losses[dtype] = summary.loss
        weights = load_checkpoint(summary.checkpoint_uri).weights
        assert {str(tensor.dtype) for tensor in weights.values()} == {"torch.float32"}
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=2e-2)
    assert losses["bfloat16"] != losses["float32"]
