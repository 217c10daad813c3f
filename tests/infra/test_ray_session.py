"""The embedded Ray, started again in a process that has had one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TWICE = """
from infra.ray_session import RaySession
for number in range(2):
    session = RaySession(cpus=1)
    session.start()
    print(number, session.node_cpus())
    session.close()
"""


@pytest.mark.slow
def test_a_second_session_of_a_process_starts_too() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", TWICE],
        cwd=Path(__file__).resolve().parents[2],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.stdout.splitlines() == ["0 1.0", "1 1.0"], done.stderr[-2000:]
