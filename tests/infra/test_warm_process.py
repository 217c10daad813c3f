"""The process that model stages and single-worker training share on an embedded Ray."""

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra import ray_session as sessions
from infra.errors import StoppedError
from infra.ray_session import RaySession
from infra.warm_process import FORGET, WarmProcess

pytestmark = pytest.mark.slow


@pytest.fixture
def process(ray_session: RaySession) -> Iterator[WarmProcess]:
    warm = WarmProcess(threads=2)
    yield warm
    warm.close()


def die_once(index: int, marker: str) -> dict[str, Any]:
    """Ends its process when it is called first."""
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"index": index, "pid": os.getpid()}


def fail_until(index: int, marker: str) -> dict[str, Any]:
    """Storage is busy at the first two calls."""
    with open(marker, "a") as file:
        file.write(".")
    if Path(marker).stat().st_size < 3:
        raise ConnectionError("the bucket is busy")
    return {"index": index}


def die(index: int, task: Any) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def refuse(index: int, task: Any) -> dict[str, Any]:
    raise KeyError("a bug")


def threads_after(count: int | None) -> int:
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    return before


def remember(names: list[str]) -> None:
    FORGET.append(lambda: os.environ.__setitem__("WARM_FORGOT", ",".join(names)))


def test_tasks_share_a_process_and_another_kind_has_one_of_its_own(process: WarmProcess) -> None:
    first = process.run(os.getpid)
    assert process.run(os.getpid) == first != os.getpid()
    other = process.run(os.getpid, kind="data=2")
    assert other != first
    assert process.run(os.getpid, kind="data=2") == other
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)  # one at a time: the memory of two is too much


def test_the_embedded_ray_has_no_server_that_it_does_not_use(ray_session: RaySession) -> None:
    """Of the processes that this one has started: the raylet and the store of state, no dashboard, no monitor."""
    started = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid():
                started.append((folder / "cmdline").read_text())
    assert [line for line in started if "raylet/raylet" in line]
    assert [line for line in started if re.search(r"dashboard/dashboard\.py|monitor\.py", line)] == []


def test_each_task_finds_the_threads_of_the_machine(process: WarmProcess) -> None:
    assert process.run(threads_after, 1) == process.run(threads_after, None) == 2


def test_what_tasks_of_one_stage_share_is_dropped_behind_it(process: WarmProcess) -> None:
    process.run(remember, ["a model"])
    assert process.run(os.getenv, "WARM_FORGOT") is None
    process.forget()
    assert process.run(os.getenv, "WARM_FORGOT") == "a model"


def test_a_process_that_died_is_replaced_at_the_next_task(process: WarmProcess) -> None:
    import ray

    pid = process.run(os.getpid)
    with pytest.raises(ray.exceptions.RayActorError):
        process.run(os.kill, pid, signal.SIGKILL)
    assert process.run(os.getpid) != pid


def test_a_process_that_is_closed_is_gone(process: WarmProcess) -> None:
    pid = process.run(os.getpid)
    process.close()
    assert not Path(f"/proc/{pid}").exists()


def test_what_is_dropped_behind_a_stage_cannot_fail_it(process: WarmProcess) -> None:
    pid = process.run(os.getpid)
    os.kill(pid, signal.SIGKILL)
    process.forget()
    assert process.run(os.getpid) != pid


def test_an_error_keeps_its_class_and_the_process_lives(process: WarmProcess) -> None:
    pid = process.run(os.getpid)
    with pytest.raises(ZeroDivisionError):
        process.run(divmod, 1, 0)
    assert process.run(os.getpid) == pid


def test_a_task_whose_process_dies_or_whose_storage_is_busy_is_run_again(
    ray_session: RaySession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(sessions, "PAUSES", (0.1, 0.1, 0.1, None))
    died = str(tmp_path / "died")
    rows = list(ray_session.map({0: died, 1: died}, die_once, whole_node=True))
    assert [row["index"] for row in rows] == [0, 1]
    assert {row["node"] for row in rows} == {ray.get_runtime_context().get_node_id()}
    (row,) = ray_session.map({7: str(tmp_path / "busy")}, fail_until, whole_node=True)
    assert (row["index"], (tmp_path / "busy").stat().st_size) == (7, 3)
    with pytest.raises(StoppedError, match="task 3 was tried 4 times: its process died; run the same line again"):
        list(ray_session.map({3: None}, die, whole_node=True))
    with pytest.raises(KeyError, match="a bug"):
        list(ray_session.map({0: None}, refuse, whole_node=True))
