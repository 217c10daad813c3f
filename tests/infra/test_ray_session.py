"""The embedded Ray, started again in a process that has had one."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from infra import ray_private
from infra.errors import StoppedError
from infra.ray_session import RaySession, node_share
from tests.programs.places import REPOSITORY

TWICE = """
from infra.ray_session import RaySession
for number in range(2):
    session = RaySession(cpus=1)
    session.start()
    print(number, session.started_seconds > 0)
    session.close()
"""


@pytest.mark.chaos("a second Ray of a process")
def test_a_second_session_of_a_process_starts_too() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", TWICE],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.stdout.splitlines() == ["0 True", "1 True"], done.stderr[-2000:]


def test_a_busy_machine_has_longer_to_start_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    services = importlib.import_module(ray_private.MODULES["get_node"])
    answers = iter([RuntimeError("not yet"), RuntimeError("not yet"), {"node": 1}])

    def get_node(*words: str) -> Any:
        answer = next(answers)
        if isinstance(answer, RuntimeError):
            raise answer
        return answer

    monkeypatch.setattr(services, "get_node", get_node)
    with ray_private.patient_start(60):
        assert services.get_node("address", "id") == {"node": 1}
    assert services.get_node is get_node


def test_a_machine_too_busy_to_start_ray_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What Ray says in the end; the directory that was made for it goes."""
    ray = importlib.import_module("ray")

    def init(**settings: Any) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    session = RaySession(cpus=1)
    with mock.patch.dict(os.environ):
        os.environ.pop("RAY_ADDRESS", None)
        with pytest.raises(StoppedError, match=r"got no Ray on this machine in 240 s: its load is \d+ on \d+ CPU"):
            session.start()
    made = session._folder
    assert made is not None
    session.close()
    assert not Path(made.path).exists()


def node(cpus: float, tpus: float = 0.0, slice_name: str = "", alive: bool = True) -> dict[str, Any]:
    resources = {"CPU": cpus, **({"TPU": tpus} if tpus else {})}
    return {"Alive": alive, "Resources": resources, "Labels": {"ray.io/tpu-slice-name": slice_name} if tpus else {}}


def test_a_task_with_a_model_has_a_node_to_itself() -> None:
    assert node_share([node(8), node(4), node(0), node(2, alive=False)]) == {"num_cpus": 4}
    assert node_share([node(0)]) == {"num_cpus": 1.0}, "a cluster that has yet to grow"
    hosts = [node(8), node(112, 4, "a"), node(112, 8, "b")]
    assert node_share(hosts) == {"num_cpus": 1, "resources": {"TPU": 4}}, "on a TPU host, and no other task there"
    with pytest.raises(
        ValueError, match="the slice a has 2 hosts, and this stage computes in one process; use a slice"
    ):
        node_share([*hosts, node(112, 4, "a")])
