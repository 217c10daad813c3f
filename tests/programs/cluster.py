"""A real one-node Ray cluster on loopback with a token, as a user would start it; jobs are submitted to it."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.programs.places import REPOSITORY
from tests.programs.ray_start import START_SECONDS

RAY = Path(sys.executable).parent / "ray"


@dataclass(frozen=True)
class RayCluster:
    """The addresses and the token of a cluster."""

    dashboard: str
    address: str
    """value for RAY_ADDRESS"""
    agent: str
    """URL of the node's agent, which Kubernetes would ask for the raylet's health"""
    environment: dict[str, str]

    def submit(self, *words: str, timeout: float) -> subprocess.CompletedProcess[str]:
        """Runs `ray job submit --working-dir . -- WORDS`. Returns its whole output."""
        command = [str(RAY), "job", "submit", "--address", self.dashboard, "--working-dir", ".", "--", *words]
        return subprocess.run(
            command, cwd=REPOSITORY, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )


@contextmanager
def ray_cluster(temporary: Path, open_to_anyone: bool = False) -> Iterator[RayCluster]:
    """Starts `ray start --head --block`, and ends it by its pid. `temporary` must be short: Ray puts sockets below it.

    `open_to_anyone`: it asks nobody for a token.
    """
    port, dashboard, agent = _free_ports(3)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "CI": "true",
    }
    if open_to_anyone:
        environment["RAY_AUTH_MODE"] = "disabled"
    command = [sys.executable, "-m", "tests.programs.ray_start", "start", "--head", "--block"]
    command += ["--node-ip-address=127.0.0.1", f"--port={port}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    command += [f"--num-cpus={os.cpu_count()}", "--object-store-memory=268435456", f"--temp-dir={temporary}"]
    log = temporary / "start.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        urls = [f"http://127.0.0.1:{http_port}" for http_port in (dashboard, agent)]
        pages = (f"{urls[0]}/api/jobs/", f"{urls[1]}/api/local_raylet_healthz")  # the agent is what starts jobs
        _wait_until_up(pages, environment["RAY_AUTH_TOKEN"], process, log)
        yield RayCluster(urls[0], f"127.0.0.1:{port}", urls[1], environment)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)  # its own goodbye takes half a minute
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_up(pages: Sequence[str], token: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    waiting = list(pages)
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"ray start ended with {process.returncode}:\n{log.read_text()}")
        request = urllib.request.Request(waiting[0], headers={"Authorization": f"Bearer {token}"})
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                if answer.status == 200:
                    waiting.pop(0)
            if not waiting:
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.5)
    raise RuntimeError(f"the cluster did not come up in {START_SECONDS:.0f} s:\n{log.read_text()}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for listener in sockets:
        listener.bind(("127.0.0.1", 0))
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports
