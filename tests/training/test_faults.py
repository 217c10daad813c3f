"""Bad steps leave the weights alone, flipped bits are noticed, and a machine that goes away costs no step."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.programs import chaos
from tests.programs.examples import example_job, made_up_feed
from training import run
from training.backends.checksum import checksum, from_halves
from training.backends.torch_backend import TorchBackend
from training.checkpoints.records import latest_checkpoint, list_checkpoints, read_rows
from training.checkpoints.save_load import load_checkpoint
from training.drain import DrainWhen
from training.faults import BadStep, Corrupted, Drained
from training.job import TrainJob
from training.log.metrics import CAUSES
from training.log.run_log import read_lines
from training.loop import run_training
from training.replay import replay

CPU = TorchBackend("cpu")
BAD_TOKEN = 63


def poisoned_feed(job: TrainJob, bad_step: int) -> Callable[[int, int], Any]:
    """The usual rows, and at one step a token that no other row has, in its third row."""

    def feed(start: int, stop: int) -> Any:
        for step, batch in made_up_feed(job)(start, stop):
            if step + 1 == bad_step:
                batch = {**batch, "tokens": batch["tokens"].copy()}
                batch["tokens"][2, 5] = BAD_TOKEN
            yield step, batch

    return feed


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """That token makes the loss of its row infinite."""
    whole = run.loss_function

    def poisoned(*arguments: Any) -> Any:
        inner = whole(*arguments)

        def loss(model: Any, batch: Any) -> Any:
            loss_sum, targets = inner(model, batch)
            return loss_sum / (batch["tokens"] != BAD_TOKEN).all(), targets

        return loss

    monkeypatch.setattr(run, "loss_function", poisoned)


@pytest.mark.usefixtures("poison")
def test_a_step_that_is_not_finite_stops_the_run_and_names_its_rows(tmp_path: Path) -> None:
    job = example_job(tmp_path / "checkpoints", logs_uri=str(tmp_path / "logs"))
    row = read_rows_of(job, 7)[2]
    with pytest.raises(BadStep, match=rf"step 7: loss inf.*not finite.*worst first: {row} \(loss inf") as caught:
        run_training(job, CPU, poisoned_feed(job, 7))
    assert "--on-bad-step skip" in str(caught.value)
    assert (latest_checkpoint(job.checkpoints_uri) or "").endswith("step-00000005")
    (event,) = (line for line in read_lines(str(tmp_path / "logs")) if line["kind"] == "bad_step")
    assert (event["step"], event["rows"]) == (7, read_rows_of(job, 7))


def read_rows_of(job: TrainJob, step: int) -> list[str]:
    _, batch = next(iter(made_up_feed(job)(step - 1, step)))
    return [f"{('prose', 'code')[dataset]}/{shard}/{row}" for dataset, shard, row in batch["refs"].tolist()]


@pytest.mark.usefixtures("poison")
def test_a_skipped_step_changes_neither_weights_nor_moments(tmp_path: Path) -> None:
    config = {"steps": 8, "checkpoint_every_steps": 1}
    job = example_job(tmp_path, config=config, on_bad_step="skip")
    run_training(job, CPU, poisoned_feed(job, 7))
    metrics = read_rows(str(tmp_path), "metrics")
    assert metrics is not None
    assert metrics["bad"].to_pylist() == [False] * 6 + [True, False]
    before, after = (load_checkpoint(list_checkpoints(str(tmp_path))[step - 1]) for step in (6, 7))
    assert before.optimizer is not None
    assert after.optimizer is not None
    for name, tensor in before.weights.items():
        assert torch.equal(tensor, after.weights[name]), name
        assert torch.equal(before.optimizer.first[name], after.optimizer.first[name]), name
        assert torch.equal(before.optimizer.second[name], after.optimizer.second[name]), name


def test_a_spike_is_a_bad_step(tmp_path: Path) -> None:
    job = example_job(tmp_path, config={"steps": 80, "checkpoint_every_steps": 80, "spike_sigmas": 4.0})

    def feed(start: int, stop: int) -> Any:
        for step, batch in made_up_feed(job)(start, stop):
            strange = np.random.default_rng(step).integers(40, 60, batch["tokens"].shape, np.int32)
            yield step, {**batch, "tokens": strange} if step + 1 == 70 else batch

    with pytest.raises(BadStep, match=r"step 70: .*a spike"):
        run_training(job, CPU, feed)


def test_a_drain_costs_no_step_and_leaves_the_same_bytes(tmp_path: Path) -> None:
    straight, drained = (example_job(tmp_path / name) for name in ("straight", "drained"))
    run_training(straight, CPU, made_up_feed(straight))
    for stop in (2, 7):
        steps: list[int] = []
        with pytest.raises(Drained, match="asked to stop after step"):
            run_training(
                drained,
                CPU,
                made_up_feed(drained),
                drain=DrainWhen(lambda stop=stop, s=steps: s.append(1) or len(s) == stop),
            )
    assert [uri[-2:] for uri in list_checkpoints(drained.checkpoints_uri)] == ["05", "09"]  # 2 was replaced by 5
    assert run_training(drained, CPU, made_up_feed(drained)).first_step == 9
    files = [
        {path.relative_to(tmp_path / name).as_posix(): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("straight", "drained")
    ]
    assert files[0] == files[1]
    for name in ("metrics", "lineage"):
        rows = [read_rows(job.checkpoints_uri, name) for job in (straight, drained)]
        assert rows[0] is not None
        assert rows[0].equals(rows[1])


def test_a_checksum_sees_every_bit_and_no_order() -> None:
    tensors = [torch.randn(7, 5), torch.randn(11)]
    whole = from_halves(*checksum(tensors).tolist())
    assert whole == from_halves(*checksum([tensors[1].flip(0), tensors[0].T.contiguous()]).tolist())
    assert whole == int(sum(int(tensor.view(torch.int32).sum(dtype=torch.int64)) for tensor in tensors)) % 2**32
    for bit in range(32):
        flipped = tensors[1].clone()
        view = flipped.view(torch.int32)
        view[3] ^= torch.tensor(1 << bit).to(torch.int32) if bit < 31 else torch.tensor(-(2**31), dtype=torch.int32)
        assert whole != from_halves(*checksum([tensors[0], flipped]).tolist())


@pytest.mark.slow
def test_planted_flips_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert chaos.flips(3, seed=1)
    assert "found 3" in capsys.readouterr().out


def test_a_replayed_step_is_the_recorded_one_and_one_that_was_not_taken_is_refused(tmp_path: Path) -> None:
    from tests.programs.examples import write_sequences

    job = write_sequences(tmp_path, example_job(tmp_path / "checkpoints"))
    run_training(job, CPU, chaos.made_up_feed_from(job))
    for step, first in ((3, 0), (8, 5), (12, 10)):
        result = replay(job, step)
        assert (result.first_step, result.steps, result.differences) == (first, step - first, ())
    with pytest.raises(ValueError, match=r"got step 13, but .* records steps 1 to 12;"):
        replay(job, 13)


def test_weights_that_change_between_steps_stop_the_run(tmp_path: Path) -> None:
    class Flipping(TorchBackend):
        steps = 0
        model: Any = None

        def place_model(self, model: Any, **how: Any) -> Any:
            self.model = model
            return super().place_model(model, **how)

        def step_boundary(self) -> None:
            self.steps += 1
            if self.steps == 5:
                next(self.model.parameters()).data[0, 0] += 1e-3

    job = example_job(tmp_path)
    with pytest.raises(Corrupted, match="step 5 found weights with the checksum"):
        run_training(job, Flipping("cpu"), made_up_feed(job))


def test_the_log_has_a_line_a_step_and_says_where_the_time_went(tmp_path: Path) -> None:
    job = example_job(tmp_path / "checkpoints", logs_uri=str(tmp_path / "logs"), tensorboard=True)
    summary = run_training(job, CPU, made_up_feed(job))
    lines = list(read_lines(str(tmp_path / "logs")))
    steps = [line for line in lines if line["kind"] == "step"]
    assert [line["step"] for line in steps] == list(range(1, 13))
    assert {"loss", "targets", "tokens_per_second", "mfu", "grad_norm", "learning_rate", "data_wait_seconds"} < set(
        steps[0]
    )
    account = lines[-1]
    assert account["kind"] == "summary"
    assert 0 < account["goodput"] < 1
    lost = sum(account[f"lost_seconds_{cause}"] for cause in CAUSES)
    assert account["goodput"] == pytest.approx(1 - lost / account["run_seconds"], abs=1e-6)
    assert summary.metrics["step_seconds_p50"] <= summary.metrics["step_seconds_p99"]
    assert list((tmp_path / "logs").glob("events.out.tfevents.*"))
    assert json.loads((Path(summary.checkpoint_uri) / "COMMIT").read_text())["step"] == 12
