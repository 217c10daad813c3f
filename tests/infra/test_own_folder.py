"""Nobody else looks into the folder of our Ray, and nobody removes it while its owner lives."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.own_folder import INNER, OwnFolder
from infra.ray_session import RaySession
from tests.programs.places import REPOSITORY

SOCKET_BYTES = 107
NOBODY = 65534
HOLDER = """
import sys
from infra.own_folder import OwnFolder
print(OwnFolder(sys.argv[1]).path, flush=True)
sys.stdin.readline()
"""


def holder(place: Path) -> "tuple[subprocess.Popen[str], Path]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(place)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_the_folder_of_a_living_owner_stays_and_that_of_a_dead_one_goes(tmp_path: Path) -> None:
    """The lock says it, and no process id: with another name of its process, a container's owner is as alive."""
    process, theirs = holder(tmp_path)
    (theirs / INNER / "sockets").mkdir(parents=True)
    ours = OwnFolder(str(tmp_path))
    assert (theirs / INNER / "sockets").is_dir()
    process.kill()
    process.communicate()
    again = OwnFolder(str(tmp_path))
    assert sorted(tmp_path.iterdir()) == sorted([Path(ours.path), Path(again.path)])
    ours.remove()
    again.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_link_with_such_a_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "file").touch()
    (tmp_path / "gemma2-ray-link").symlink_to(tmp_path / "home")
    OwnFolder(str(tmp_path)).remove()
    assert (tmp_path / "home" / "file").exists()


def test_others_may_not_enter(tmp_path: Path) -> None:
    folder = OwnFolder(str(tmp_path))
    assert os.stat(folder.path).st_mode & 0o777 == 0o700
    folder.remove()


@pytest.mark.slow
def test_the_folder_of_the_embedded_ray_is_closed_to_others(ray_session: RaySession) -> None:
    ray_session.start()
    folder = ray_session._folder
    assert folder is not None
    assert os.stat(folder.path).st_mode & 0o777 == 0o700
    sockets = [path for path in Path(folder.inner).rglob("*") if path.is_socket()]
    assert sockets
    assert max(len(str(path)) for path in sockets) <= SOCKET_BYTES
    if os.getuid() == 0:
        look = f"import os; os.setgid({NOBODY}); os.setuid({NOBODY}); os.listdir({folder.inner!r})"
        done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=False)
        assert "PermissionError" in done.stderr
