"""A run that goes on in another set-up lists each step's own, computes it again there, and its manifest lists each row.

Several rows at a time are another set-up than all at once: other sums, so other bits.
"""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pipelines.checkpoints.loaded import committed_files
from tests.programs.examples import example_job, moved, write_sequences
from training.backends.torch_backend import TorchBackend
from training.checkpoints.records import Damaged, list_checkpoints, list_commits, read_rows
from training.checkpoints.setups import read_setups, setups_between
from training.drain import DrainWhen
from training.faults import Drained
from training.feed import direct_feed
from training.job import TrainJob
from training.loop import run_training
from training.replay import replay


def moved_run(directory: Path, stops: tuple[int, ...] = (7, 8), **config: Any) -> TrainJob:
    """Stopped after each of `stops`, each time to go on with another number of rows at a time; and its last job."""
    (directory / "run").mkdir()
    job = write_sequences(directory, example_job(directory / "run" / "checkpoints", config=config))
    job = moved(job, threads=1)
    for number, stop in enumerate((*stops, None)):
        job = moved(job, microbatch_rows=(None, 2, 1)[number % 3])
        until(job, stop)
    return job


def until(job: TrainJob, stop: int | None) -> None:
    done = max([commit["step"] for _, commit in list_commits(job.checkpoints_uri)], default=0)

    def asked() -> bool:
        nonlocal done
        done += 1
        return done == stop

    with contextlib.suppress(Drained):
        run_training(job, TorchBackend("cpu"), direct_feed(job), drain=DrainWhen(asked))


def rows_at_a_time(setups: list[tuple[int, Any]]) -> list[tuple[int, int | None]]:
    return [(step, setup["microbatch_rows"]) for step, setup in setups]


def test_a_run_that_was_moved_lists_the_set_up_of_each_step(tmp_path: Path) -> None:
    job = moved_run(tmp_path)
    root = job.checkpoints_uri
    assert rows_at_a_time(read_setups(root)) == [(0, None), (7, 2), (8, 1)]
    assert rows_at_a_time(setups_between(root, 5, 12)) == [(7, None), (8, 2), (12, 1)]
    assert rows_at_a_time(setups_between(root, 7, 8)) == [(8, 2)]
    assert rows_at_a_time(setups_between(root, 8, 11)) == [(11, 1)]


@pytest.mark.slow
def test_a_replay_takes_each_step_in_its_own_set_up(tmp_path: Path) -> None:
    job = moved_run(tmp_path)
    for step, first in ((6, 5), (7, 5), (8, 5), (9, 5), (10, 5), (12, 10)):
        result = replay(job, step)
        assert (result.first_step, result.steps, result.differences) == (first, step - first, ())


def test_another_set_up_would_have_been_told_as_a_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the test above can fail: all steps in the last set-up, as its checkpoint alone would say."""
    job = moved_run(tmp_path)
    last = read_setups(job.checkpoints_uri)[-1][1]
    monkeypatch.setattr("training.replay.setups_between", lambda root, first, step: [(step, last)])
    assert replay(job, 7).differences


def test_a_stop_that_goes_on_in_the_same_set_up_leaves_no_trace(tmp_path: Path) -> None:
    states = []
    for name, stops in (("straight", ()), ("stopped", (7,))):
        (tmp_path / name / "run").mkdir(parents=True)
        job = write_sequences(tmp_path / name, example_job(tmp_path / name / "run" / "checkpoints"))
        for stop in (*stops, None):
            until(job, stop)
        states.append([(Path(uri) / "COMMIT").read_bytes() for uri in list_checkpoints(job.checkpoints_uri)])
    assert len(states[0]) == 3
    assert states[0] == states[1]


@pytest.mark.parametrize("keep_last", [None, 1])
def test_the_manifest_lists_each_step_once(tmp_path: Path, keep_last: int | None) -> None:
    """Of checkpoints that are not kept any more too; and not twice where an interim one was left lying."""
    job = moved_run(tmp_path, stops=(7,), keep_last=keep_last)
    left = Path(job.checkpoints_uri) / "step-00000007"
    assert not left.exists()
    other = dataclasses.replace(job, checkpoints_uri=str(tmp_path / "other" / "checkpoints"))
    until(other, 7)
    (Path(other.checkpoints_uri) / "step-00000007").rename(left)  # as if killed before it was removed
    files, steps = committed_files(str(tmp_path / "run"))
    for kind, rows in (("metrics", 12), ("lineage", 12 * 4)):
        assert sum(shard.rows for shard in files[kind]) == rows
    assert steps == ([12] if keep_last else [5, 10, 12])
    assert not any("step-00000007" in shard.name for shards in files.values() for shard in shards)


@pytest.mark.parametrize("kind", ["metrics", "lineage"])
def test_a_table_that_changed_is_not_read(tmp_path: Path, kind: str) -> None:
    """Valid Parquet of the same size is still not what was committed."""
    job = moved_run(tmp_path, stops=())
    path = Path(job.checkpoints_uri) / "step-00000005" / f"{kind}.parquet"
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    with pytest.raises(Damaged, match=f"{kind}.parquet is damaged"):
        read_rows(job.checkpoints_uri, kind)


def test_a_run_over_several_tpu_hosts_is_not_replayed_on_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its losses would be another device's, and be told as a wrong computation."""
    monkeypatch.setenv("PJRT_DEVICE", "CPU")
    job = moved_run(tmp_path, stops=())
    hosts = {**read_setups(job.checkpoints_uri)[-1][1], "device": "xla", "workers": 2}
    monkeypatch.setattr("training.replay.setups_between", lambda root, first, step: [(step, hosts)])
    with pytest.raises(ValueError, match="2 workers on device 'xla' without a TPU"):
        replay(job, 3)
