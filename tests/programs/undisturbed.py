"""The undisturbed run of all data stages, and how other runs are compared with it."""

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

from data.manifest import Manifest, read_manifest
from pipelines.engine.shard_map import RECEIPTS
from tests.programs.corpora import mixed_corpus
from tests.programs.in_process import chain
from tests.programs.places import REPOSITORY


class Reference:
    """The undisturbed run, in its own process, which counts the places to die at."""

    def __init__(self, folder: Path, documents: int = 300) -> None:
        self.corpus = mixed_corpus(folder / "corpus", documents)
        self.root = folder / "runs"
        self.places = int(drive(self.root, self.corpus).stdout)
        self.manifests: dict[str, Manifest] = {}
        for name, task in chain(str(self.root), str(self.corpus)).items():
            manifest = task.manifest()
            assert manifest is not None
            self.manifests[name] = manifest


def drive(root: Path, corpus: Path, kill_at: int | None = None) -> "subprocess.CompletedProcess[str]":
    words = [str(root), str(corpus), *([] if kill_at is None else [str(kill_at)])]
    command = [sys.executable, "-m", "tests.programs.in_process", *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == (0 if kill_at is None else -signal.SIGKILL), done.stderr
    return done


def listed(root: Path) -> dict[str, str]:
    """Each manifest, and each file that one lists -> sha256. Checks that each file is as in its manifest."""
    hashes = {}
    for manifest_file in root.glob("*/*/_MANIFEST.json"):
        manifest = read_manifest(str(manifest_file.parent))
        assert manifest is not None
        for dataset in manifest.datasets.values():
            for shard in dataset.shards:
                data = (manifest_file.parent / shard.name).read_bytes()
                assert len(data) == shard.bytes
                assert hashlib.sha256(data).hexdigest() == shard.sha256
                hashes[str((manifest_file.parent / shard.name).relative_to(root))] = shard.sha256
        hashes[str(manifest_file.relative_to(root))] = hashlib.sha256(manifest_file.read_bytes()).hexdigest()
    return hashes


def finished(root: Path) -> dict[Path, int]:
    """Files of tasks with a receipt -> time of writing. A rerun must not touch them."""
    times = {}
    for receipt in root.glob(f"*/*/{RECEIPTS}/*/*.json"):
        for many in json.loads(receipt.read_text())["shards"].values():
            for shard in many:
                file = receipt.parents[2] / shard["name"]
                if not shard["name"].startswith("_"):
                    times[file] = file.stat().st_mtime_ns
    return times


def compare(root: Path, reference: Path) -> tuple[int, int, int]:
    """Files of the reference; how many are missing below `root` or other ones; files there that the reference lacks.

    What begins with "_" (logs, leftovers of killed attempts) is for no reader and does not count, manifests do.
    """
    ours, theirs = listed(root), listed(reference)
    lost = sum(ours.get(name) != sha256 for name, sha256 in theirs.items())
    files = {path.relative_to(root) for path in root.glob("*/*/**/*") if path.is_file()}
    visible = {str(path) for path in files if not any(part.startswith("_") for part in path.parts[2:])}
    return len(theirs), lost, len((visible | ours.keys()) - theirs.keys())
