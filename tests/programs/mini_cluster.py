"""Three Ray nodes on this machine (ray.cluster_utils.Cluster) in a process of their own, so that nodes can be lost.

python -m tests.programs.mini_cluster: reads commands and answers each in JSON: `lose` kills a node, `grow` adds one.
The driver belongs on the head, which is never lost and has no CPU for tasks. Ray notices a loss in about two seconds.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra import ray_private
from tests.programs.places import REPOSITORY

WORKER_NODES = 2
START_SECONDS = 240.0
WORK_SECONDS = 5.0
"""seconds to wait for a node that works"""
SOON_NOTICED = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}


@dataclass(frozen=True)
class MiniCluster:
    """A running cluster."""

    process: "subprocess.Popen[str]"
    environment: dict[str, str]
    """variables for users of the cluster: RAY_ADDRESS and the token"""

    def lose(self) -> str | None:
        """kill -9 to all processes of a worker node that works; its id. None, and all nodes stay, where none soon
        does."""
        lost: str | None = self._ask("lose")["lost"]
        return lost

    def grow(self) -> None:
        """Adds a worker node."""
        self._ask("grow")

    def _ask(self, word: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise RuntimeError(f"the cluster ended with {self.process.wait()} at {word!r}; see cluster.log in its folder")


@contextmanager
def mini_cluster(folder: Path) -> Iterator[MiniCluster]:
    """Starts a cluster and ends it. `folder` must have a short name: Ray puts sockets below it."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every server on 127.0.0.1
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(folder),  # Ray notes the newest cluster's address there, otherwise where all users look
        "PYTHONPATH": str(REPOSITORY),  # workers of nodes import our packages; a submitted job ships them
        "PYTHONWARNINGS": "ignore",
        "CI": "true",
    }
    with (folder / "cluster.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.programs.mini_cluster"],
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    cluster = MiniCluster(process, environment)
    try:
        environment["RAY_ADDRESS"] = cluster._ask("address")["address"]
        yield cluster
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def main() -> None:
    """Runs until its input ends. A busy machine may take longer to start a node than Ray gives it."""
    with ray_private.patient_start(START_SECONDS):
        _serve()


def _serve() -> None:
    from ray.cluster_utils import Cluster

    Cluster._wait_for_node.__defaults__ = (START_SECONDS,)  # type: ignore[attr-defined]  # its own limit is 30 s
    shared = {"object_store_memory": 128 << 20}
    head = {**shared, "num_cpus": 0, "include_dashboard": False, "_system_config": SOON_NOTICED}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(**shared, num_cpus=1) for _ in range(WORKER_NODES)]
    for line in sys.stdin:
        lost = None
        if line.strip() == "lose" and (node := _working(cluster, nodes)) is not None:
            lost = node.node_id
            nodes.remove(node)
            cluster.remove_node(node, allow_graceful=False)
        elif line.strip() == "grow":
            nodes.append(cluster.add_node(**shared, num_cpus=1))
        print(json.dumps({"address": cluster.address, "nodes": 1 + len(nodes), "lost": lost}), flush=True)


def _working(cluster: Any, nodes: list[Any]) -> Any:
    """The first node on which a task runs. None if no task runs within WORK_SECONDS."""
    deadline = time.monotonic() + WORK_SECONDS
    while time.monotonic() < deadline:
        free = cluster.global_state.available_resources_per_node()
        for node in nodes:  # one that has just been added is not among them yet
            if node.node_id in free and free[node.node_id].get("CPU", 0.0) < 1.0:
                return node
        time.sleep(0.05)
    return None


if __name__ == "__main__":
    main()
