"""After the manifest: what it does not list goes, and the log is there, even if the driver was killed in between."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data import storage
from data.changes import Changes
from pipelines.engine import lease
from pipelines.engine.clean_up import clean_up
from pipelines.engine.lease import hold_lease
from pipelines.engine.runner import read_run
from tests.programs.places import REPOSITORY
from tests.programs.sleepers import check_listed, contents, run_driver, task_of

KILLED = """
import os, signal, sys
from pipelines.engine import runner
from tests.programs.sleepers import run_driver

def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)

for moment, owner, call in (("manifest", runner, "publish_log"), ("write", os, "replace")):
    child = os.fork()
    if child == 0:
        setattr(owner, call, killed)
        run_driver(f"{sys.argv[1]}/{moment}", "killed")
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(scope="module")
def killed_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two roots: the driver of one was killed behind its manifest, that of the other in its first write."""
    root = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(root)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == [str(-signal.SIGKILL)] * 2, done.stderr
    return root


def check_clean(directory: str) -> None:
    check_listed(directory)
    ours = [name for name in contents(directory) if name.startswith("_")]
    assert ours == ["_CONFIG.json", "_MANIFEST.json", "_RUN.json"]
    assert not [name for name in storage.list_folders(directory) if name.startswith("_")]


@pytest.mark.slow
def test_a_driver_killed_after_its_manifest_leaves_its_log_to_the_next(killed_runs: Path) -> None:
    root = str(killed_runs / "manifest")
    directory = task_of(root, "").directory
    assert read_run(directory) == {}
    assert any(name.startswith("_LEASE.") for name in contents(directory))
    run_driver(root, "next")
    assert read_run(directory)["log"] == {}
    assert read_run(directory)["seconds"] >= 0
    check_clean(directory)


@pytest.mark.slow
def test_the_half_of_a_file_that_a_kill_leaves_goes_with_the_manifest(killed_runs: Path) -> None:
    root = str(killed_runs / "write")
    directory = task_of(root, "").directory
    assert [name for name in contents(directory) if name.endswith(".tmp")]
    run_driver(root, "next")
    check_clean(directory)


def test_what_a_finished_run_does_not_list_goes_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    manifest = run_driver(str(tmp_path), "first")
    directory = task_of(str(tmp_path), "").directory
    kept = contents(directory)
    for name in ("checkpoints/step-00000001/model.safetensors", "text/00007.parquet", "text/00000.parquet.1-ab.tmp"):
        storage.write_bytes(f"{directory}/{name}", b"of a driver that was killed")
    for name in ("_LEASE.000004.json", "_LEASE.000005.json.1-ab.tmp", "_staging/dead/1/model.safetensors"):
        storage.write_bytes(f"{directory}/{name}", b"of a driver that was killed")
    notes = {"notes.txt": b"a user's", "logs/metrics.jsonl": b"of the run"}
    for name, data in notes.items():
        storage.write_bytes(f"{directory}/{name}", data)
    clean_up(directory, manifest)
    assert contents(directory) == kept | notes


def test_a_finished_run_costs_one_listing_of_one_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = run_driver(str(tmp_path), "first")
    directory = task_of(str(tmp_path), "").directory
    monkeypatch.setattr(storage, "list_files", lambda uri: pytest.fail(f"{uri} is listed"))
    monkeypatch.setattr(storage, "remove_tree", lambda uri: pytest.fail(f"{uri} is removed"))
    clean_up(directory, manifest)


def test_superseded_leases_go_with_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "STALE_SECONDS", 0)
    directory = task_of(str(tmp_path), "").directory
    with hold_lease(directory):
        run_driver(str(tmp_path), "successor")
        check_clean(directory)
    check_clean(directory)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_what_may_not_be_removed_stays_and_the_run_is_done(tmp_path: Path) -> None:
    manifest = run_driver(str(tmp_path), "first")
    directory = task_of(str(tmp_path), "").directory
    storage.write_bytes(f"{directory}/_staging/dead/1/x", b"")
    os.chmod(f"{directory}/_staging/dead/1", 0o500)
    clean_up(directory, manifest)
    os.chmod(f"{directory}/_staging/dead/1", 0o700)


def test_a_change_comes_whole_or_not_at_all(tmp_path: Path) -> None:
    changes = Changes(directory=str(tmp_path))
    changes.write(f"{tmp_path}/a", b"1")
    changes.write(f"{tmp_path}/a", b"2")
    with pytest.raises(FileExistsError, match="a exists"):
        changes.create(f"{tmp_path}/a", b"3")
    changes.create(f"{tmp_path}/b", b"3")
    changes.remove(f"{tmp_path}/missing")
    assert contents(str(tmp_path)) == {"a": b"2", "b": b"3"}
    changes.remove(f"{tmp_path}/a")
    assert contents(str(tmp_path)) == {"b": b"3"}
