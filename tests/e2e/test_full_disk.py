"""A disk that fills up while a stage runs: one sentence, exit code 1, and the same line goes on once there is room."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs.places import REPOSITORY

SCRIPT = """
set -u
mount -t tmpfs -o size=2m tmpfs "$1/disk"
"$2" -m pipelines run collect_text --input "$1/input" --shard-bytes 200000 --root "$1/disk/runs"
echo "first $?"
find "$1/disk" -name '*.tmp' -o -name _MANIFEST.json
mount -o remount,size=64m "$1/disk"
"$2" -m pipelines run collect_text --input "$1/input" --shard-bytes 200000 --root "$1/disk/runs"
echo "again $?"
cat "$1"/disk/runs/collect_text/*/_MANIFEST.json > "$1/manifest.json"
"""
ALONE = ["unshare", "--user", "--map-root-user", "--mount"]
"""a mount of our own, which no other process sees and which goes with the last of ours"""


@pytest.mark.slow
def test_a_full_disk_is_told_and_the_same_line_goes_on(tmp_path: Path) -> None:
    if subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system allows no mount namespace to a user, so no small disk can be made")
    draw = random.Random(0)
    for name in range(10):  # hardly compressible: 3 MB of text for a disk of 2 MiB
        rows = (json.dumps({"text": draw.randbytes(1000).hex()}) for _ in range(300))
        (tmp_path / "input").mkdir(exist_ok=True)
        (tmp_path / "input" / f"{name}.jsonl").write_text("\n".join(rows))
    (tmp_path / "disk").mkdir()
    done = subprocess.run(
        [*ALONE, "bash", "-c", SCRIPT, "bash", str(tmp_path), sys.executable],
        cwd=REPOSITORY,
        env={**os.environ, "CI": "true"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    printed = [line for line in done.stdout.splitlines() if not line.startswith(str(tmp_path / "disk" / "runs"))]
    assert printed == ["first 1", "again 0"], done.stdout + done.stderr
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    assert "(No space left on device); make room and run the same command again" in told
    assert "Traceback" not in done.stderr
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["datasets"]["text"]["totals"]["rows"] == 3000
