"""A disk that fills up while a stage runs: one sentence, exit code 1, and the same line goes on once there is room."""

import json
import random
import subprocess
from pathlib import Path

import pytest

from tests.programs.here import in_own_process

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
    disk = tmp_path / "disk"
    line = [
        "run",
        "collect_text",
        "--input",
        str(tmp_path / "input"),
        "--shard-bytes",
        "200000",
        "--root",
        f"{disk}/runs",
    ]
    mounted, first, left, larger, again, manifest_text = in_own_process(
        ["!", "mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)],
        line,
        ["!", "find", str(disk), "-name", "*.tmp", "-o", "-name", "_MANIFEST.json"],
        ["!", "mount", "-o", "remount,size=64m", str(disk)],
        line,
        ["!", "sh", "-c", f"cat {disk}/runs/collect_text/*/_MANIFEST.json"],
        before=ALONE,
    )
    assert (mounted.returncode, larger.returncode) == (0, 0), mounted.stderr + larger.stderr
    assert (first.returncode, left.stdout, again.returncode) == (1, "", 0), first.stderr + again.stderr
    (failure,) = [line for line in first.stderr.splitlines() if line.startswith("failed: ")]
    assert "(No space left on device); make room and run the same command again" in failure
    assert "Traceback" not in first.stderr
    manifest = json.loads(manifest_text.stdout)
    assert manifest["datasets"]["text"]["totals"]["rows"] == 3000
