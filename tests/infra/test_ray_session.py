"""The embedded Ray, started again in a process that has had one."""

import os
import subprocess
import sys
from typing import Any

import pytest

from infra.ray_session import node_share
from tests.programs.places import REPOSITORY

TWICE = """
from infra.ray_session import RaySession
for number in range(2):
    session = RaySession(cpus=1)
    session.start()
    print(number, session.started_seconds > 0)
    session.close()
"""


@pytest.mark.slow
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
