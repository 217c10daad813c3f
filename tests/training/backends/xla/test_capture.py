"""A teacher that is divided over a mesh of chips keeps what one on a single CPU keeps."""

import json
import os
import subprocess
import sys

import pytest

from tests.programs.places import REPOSITORY
from tests.programs.xla_flags import QUICK_COMPILES


@pytest.mark.slow
def test_a_teacher_on_a_mesh_keeps_what_one_device_keeps() -> None:
    environment = {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": "4", "OMP_NUM_THREADS": "1", "XLA_FLAGS": QUICK_COMPILES}
    done = subprocess.run(
        [sys.executable, "-m", "tests.programs.capture_run"],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    agreements = json.loads(done.stdout.splitlines()[-1])["agreement"]
    assert len(agreements) == 4
    for name, agreement in agreements.items():
        assert agreement["targets"] == 45
        assert agreement["same"] >= 0.97, name  # a draw may fall on a boundary that is rounded otherwise
        assert agreement["difference"] <= 1e-5, name
