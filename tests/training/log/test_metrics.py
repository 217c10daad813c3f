"""JSON lines, TensorBoard and Prometheus tell the same; MFU is against the chips of the run; restarts count as lost."""

import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data import storage
from infra.chips import TPUS
from model.flops import train_flops_per_token
from tests.programs.examples import example_job, made_up_feed
from tests.programs.places import REPOSITORY
from training.backends.torch_backend import CUDA, TorchBackend
from training.backends.xla.abilities import XLA
from training.job import TrainJob
from training.log.goodput import Meter
from training.log.metrics import CAUSES, FIELDS, METRICS
from training.log.run_log import MetricsLog, last_account, peak_flops_per_second, read_lines
from training.loop import StepMetrics, run_training
from training.worker.sizes import job_at

CPU = TorchBackend("cpu")
ABSENT_ON_A_CPU = {"mfu", "peak_device_bytes"}


def job_with_logs(directory: Path, **overrides: Any) -> TrainJob:
    return example_job(directory / "checkpoints", logs_uri=str(directory / "logs"), **overrides)


def scalars(directory: Path) -> Iterator[tuple[int, str, float]]:
    """(step, name, value) in the event files: records of length, its checksum, an event, its checksum."""
    from tensorboardX.proto import event_pb2

    for path in directory.glob("events.out.tfevents.*"):
        data, start = path.read_bytes(), 0
        while start < len(data):
            (length,) = struct.unpack_from("<Q", data, start)
            event = event_pb2.Event.FromString(data[start + 12 : start + 12 + length])
            start += 16 + length
            yield from ((event.step, value.tag, value.simple_value) for value in event.summary.value)


def shown_by_tensorboard(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value), by TensorBoard's rule: files in the order of their names, and a START of a session drops
    what was read before it of the same and later steps."""
    from tensorboardX.proto import event_pb2

    shown: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(directory.glob("events.out.tfevents.*")):
        data, start = path.read_bytes(), 0
        while start < len(data):
            (length,) = struct.unpack_from("<Q", data, start)
            event = event_pb2.Event.FromString(data[start + 12 : start + 12 + length])
            start += 16 + length
            if event.session_log.status == event_pb2.SessionLog.START:
                shown = {tag: [entry for entry in line if entry[0] < event.step] for tag, line in shown.items()}
            for value in event.summary.value:
                shown.setdefault(value.tag, []).append((event.step, value.simple_value))
    return shown


def a_run_that_was_stopped(tmp_path: Path) -> Path:
    """The logs of a run of 24 steps that ended in step 16, with a checkpoint after step 8, and was resumed."""
    job = job_with_logs(tmp_path, tensorboard=True, config={"steps": 24, "checkpoint_every_steps": 8})
    feed = made_up_feed(job)

    def stopped(start_step: int, stop_step: int) -> Iterator[Any]:
        for step, batch in feed(start_step, stop_step):
            if step == 15:
                raise ConnectionError("the machine is gone")
            yield step, batch

    with pytest.raises(ConnectionError):
        run_training(job, CPU, stopped)
    run_training(job, CPU, feed)
    lines = read_lines(str(job.logs_uri))
    done = [line["step"] for line in lines if line["kind"] == "step"]
    assert len(done) > len(set(done)) == 24, "the log tells of steps that were done twice"
    return tmp_path / "logs"


def test_tensorboard_shows_each_step_once_after_a_stop(tmp_path: Path) -> None:
    logs = a_run_that_was_stopped(tmp_path)
    assert len(list(logs.glob("events.out.tfevents.*"))) == 2, "two files, even within one second"
    shown = shown_by_tensorboard(logs)
    assert [step for step, _ in shown["loss"]] == list(range(1, 25))
    newest = {line["step"]: line["step_seconds"] for line in read_lines(str(logs)) if line["kind"] == "step"}
    assert dict(shown["step_seconds"]) == pytest.approx(newest), "the values of the last attempt"


@pytest.mark.slow  # imports TensorBoard
def test_tensorboard_itself_shows_each_step_once_after_a_stop(tmp_path: Path) -> None:
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard is not installed"
    )
    logs = a_run_that_was_stopped(tmp_path)
    events = accumulators.EventAccumulator(str(logs))
    events.Reload()
    shown = shown_by_tensorboard(logs)
    assert set(events.Tags()["scalars"]) == set(shown)
    for tag, line in shown.items():
        assert [(event.step, event.value) for event in events.Scalars(tag)] == line


def report(step: int) -> dict[str, Any]:
    values = {"learning_rate": 0.1, "grad_norm": 1.5, "tokens_seen": 10 * step}
    return {"step": step, "loss_sum": 20.0, "targets": 10, **values}


def test_all_three_tell_the_same_names(tmp_path: Path) -> None:
    """What Prometheus is told becomes gauges one to one: tests/infra/test_dashboards.py."""
    metrics: dict[str, float] = {}
    job = job_with_logs(tmp_path, tensorboard=True)
    run_training(job, CPU, made_up_feed(job), tell=metrics.update)
    lines = list(read_lines(str(job.logs_uri)))
    assert {name for line in lines for name in line.keys() & FIELDS} == FIELDS, "JSON lines: all"
    assert all(line[name] is None for line in lines if line["kind"] == "step" for name in ABSENT_ON_A_CPU)
    assert set(metrics) == FIELDS - ABSENT_ON_A_CPU
    drawn = list(scalars(tmp_path / "logs"))
    assert {name for _, name, _ in drawn} == set(metrics) - {"step"}, "the step is TensorBoard's axis"

    (step_12,) = (line for line in lines if line["kind"] == "step" and line["step"] == 12)
    assert metrics["loss"] == step_12["loss"]
    assert [value for step, name, value in drawn if (step, name) == (12, "loss")] == [pytest.approx(metrics["loss"])]
    assert (metrics["step"], metrics["steps_wanted"], metrics["tokens_seen"]) == (12, 12, step_12["tokens_seen"])
    assert metrics["goodput"] == lines[-1]["goodput"]
    assert metrics["model_flops_per_second"] == pytest.approx(
        metrics["tokens_per_second"] * train_flops_per_token(job.config.model, job.sequence_length)
    )


@pytest.mark.parametrize(("mesh", "workers", "chips"), [("replica=2,data=16", 8, 32), ("", 1, 1)])
def test_mfu_on_tpus_is_against_the_peak_of_all_chips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mesh: str, workers: int, chips: int
) -> None:
    monkeypatch.setenv("PJRT_DEVICE", "TPU")
    monkeypatch.setattr("training.log.run_log.chips_held", lambda workers: {})  # torch_xla may be here, on a CPU
    backend = TorchBackend("cpu")
    backend.abilities = XLA
    job = job_with_logs(
        tmp_path,
        device="xla",
        mesh=mesh,
        workers=workers,
        chip_flops=TPUS["v5e"].peak_flops,
        config={"global_batch": 32},
    )
    meter, metrics = Meter(), {}
    log = MetricsLog(job, meter, 0, backend, metrics.update)
    log.begin()
    with meter.spent("data_wait"):
        time.sleep(0.01)
    meter.step_ended()
    log.steps([report(1)], compiling=0)
    log.summarize(1)
    (begin,) = (line for line in read_lines(str(job.logs_uri)) if line["kind"] == "began")
    assert (begin["computing_chips"], begin["peak_flops_per_second"]) == (chips, chips * 197e12)
    needed = 32 * job.sequence_length * train_flops_per_token(job.config.model, job.sequence_length)
    seconds = metrics["step_seconds"] + metrics["data_wait_seconds"]
    assert metrics["mfu"] == pytest.approx(needed / seconds / (chips * 197e12))


@pytest.mark.parametrize(("name", "peak"), [("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100", 989e12), ("Tesla T4", None)])
def test_mfu_on_a_gpu_is_against_the_peak_of_the_first_part_of_its_name(
    name: str, peak: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: name)
    job = job_with_logs(tmp_path, gpu_flops={"H100 PCIe": 756e12, "H100": 989e12})
    assert peak_flops_per_second(job, CUDA) == peak


def test_chips_follow_an_elastic_run(tmp_path: Path) -> None:
    job = job_with_logs(tmp_path, device="xla", mesh="replica=2,data=16", workers=8, config={"global_batch": 32})
    assert (job.setup.chips, job_at(job, 4).setup.chips) == (32, 16)


def test_a_tpu_of_an_unknown_kind_has_no_mfu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PJRT_DEVICE", "TPU")
    backend = TorchBackend("cpu")
    backend.abilities = XLA
    meter, metrics = Meter(), {}
    log = MetricsLog(job_with_logs(tmp_path, device="xla"), meter, 0, backend, metrics.update)
    with meter.spent("data_wait"):
        pass
    meter.step_ended()
    log.steps([report(1)], compiling=0)
    log.summarize(1)
    assert "mfu" not in metrics
    assert metrics["model_flops_per_second"] > 0


def test_a_restart_and_the_steps_done_again_are_lost_and_counted_over_the_whole_run(tmp_path: Path) -> None:
    class Killed(BaseException):
        """Nothing in the loop catches it."""

    def dies_at_8(step: StepMetrics) -> None:
        if step.step == 8:
            raise Killed

    config = {"checkpoint_every_steps": 6, "steps": 20}
    job = job_with_logs(tmp_path, config=config)

    def slow_feed(start: int, stop: int) -> Any:
        for step, batch in made_up_feed(job)(start, stop):
            yield step, batch
            time.sleep(0.02)

    with pytest.raises(Killed):  # after steps 6 and 8: it hears of 7 to 10 together
        run_training(job, CPU, slow_feed, dies_at_8)
    before = last_account(str(job.logs_uri))
    assert before is not None
    assert (before["step"], before["furthest_step"], before["lost_seconds_restart"]) == (6, 6, 0.0)
    time.sleep(0.5)
    run_training(job, CPU, slow_feed)
    lines = list(read_lines(str(job.logs_uri)))
    first, second = (line for line in lines if line["kind"] == "began")
    account = lines[-1]
    away = second["time"] - before["time"]
    assert away > 0.5
    assert second["step"] == 6
    assert second["lost_seconds_restart"] == pytest.approx(away, abs=0.3)
    assert account["lost_seconds_restart"] == second["lost_seconds_restart"], "no step that was heard of was done again"
    assert account["run_seconds"] == pytest.approx(account["time"] - first["time"] + first["run_seconds"], abs=0.3)
    assert account["lost_seconds_start"] == first["lost_seconds_start"], "the second start lies in the restart"
    lost = sum(account[f"lost_seconds_{cause}"] for cause in CAUSES)
    assert account["goodput"] == pytest.approx(1 - lost / account["run_seconds"])


def test_steps_that_an_earlier_attempt_told_of_are_a_restart_when_they_are_done_again(tmp_path: Path) -> None:
    job = job_with_logs(tmp_path)

    def attempt(first: int, last: int) -> MetricsLog:
        meter = Meter()
        log = MetricsLog(job, meter, first, CPU)
        log.begin()
        for step in range(first + 1, last + 1):
            with meter.spent("data_wait"):
                pass
            time.sleep(0.02)
            meter.step_ended()
            log.steps([report(step)], compiling=0)
        log.summarize(last)
        return log

    assert attempt(0, 8).summary["lost_seconds_restart"] == 0.0
    attempt(5, 6)
    assert attempt(5, 10).summary["furthest_step"] == 10
    lines = list(read_lines(str(job.logs_uri)))
    steps = [line for line in lines if line["kind"] == "step"]
    assert [line["step"] for line in steps] == [*range(1, 9), 6, *range(6, 11)], "in the order of attempts"
    _, second, third = (line["lost_seconds_restart"] for line in lines if line["kind"] == "began")
    ends = [line["lost_seconds_restart"] for line in lines if line["kind"] == "summary"]
    assert ends[1] - second == pytest.approx(steps[8]["step_seconds"])
    again = sum(line["step_seconds"] for line in steps[9:12])
    assert ends[2] - third == pytest.approx(again), "6, 7 and 8, not 9 and 10"


def test_the_last_account_is_found_behind_a_cut_line_and_before_long_ones(tmp_path: Path) -> None:
    logs = str(tmp_path / "logs")
    assert last_account(logs) is None
    job = job_with_logs(tmp_path)
    log = MetricsLog(job, Meter(), 0, CPU)
    log.begin()
    log.event("bad_rows", rows=["x" * 100] * 1000)
    log.close()
    (path,) = Path(logs).iterdir()
    with path.open("ab") as file:
        file.write(b'{"kind": "summary", "run_sec')
    account = last_account(logs)
    assert account is not None
    assert account["kind"] == "began"


def test_on_an_object_store_lines_are_there_after_each_checkpoint() -> None:
    root = "memory://metrics-of-a-run"
    job = example_job(Path("unused"), logs_uri=root)
    meter = Meter()
    log = MetricsLog(job, meter, 0, CPU)
    log.begin()
    assert len(storage.list_files(root)) == 1
    for step in (1, 2, 3):
        with meter.spent("data_wait"):
            pass
        meter.step_ended()
        log.steps([report(step)], compiling=0)
        log.summarize(step, checkpoint=step == 2)
    assert len(storage.list_files(root)) == 2
    log.close()
    assert [line["step"] for line in read_lines(root) if line["kind"] == "summary"] == [1, 2, 3]


def test_the_page_lists_every_name() -> None:
    page = (REPOSITORY / "docs" / "metrics.md").read_text()
    listed = [line for line in page.splitlines() if "| `ray_" in line]
    expected = [f"| {field} | `ray_{metric.name}` | {metric.unit} | {metric.help} |" for field, metric in _rows()]
    assert listed == expected, "docs/metrics.md; these lines belong there:\n" + "\n".join(expected)


def _rows() -> Iterator[tuple[str, Any]]:
    for metric in METRICS.values():
        yield ", ".join(f"`{field}`" for field in metric.fields) or "`-`", metric
