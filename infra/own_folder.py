"""A temporary folder of this process alone: closed to other users, and known to live while its owner lives.

The owner holds a lock (flock) on the folder, which the system releases when the owner ends, however it ends. So a
folder without a lock was left behind. A process id would not tell: containers that share /tmp each count their own.
"""

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

PREFIX = "gemma2-ray-"
PLACE = "/tmp"  # a short path: the names of Unix sockets below it have at most 107 characters
INNER = "r"
"""name of the folder inside, for a program that opens its own folder to everyone, as Ray does"""


class OwnFolder:
    """The folder, with mode 0700. Removes folders that killed processes of this user left behind."""

    def __init__(self, place: str = PLACE) -> None:
        _remove_left_behind(place)
        while True:
            self.path = tempfile.mkdtemp(prefix=PREFIX, dir=place)
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            if _locked(self._lock) and os.path.isdir(self.path):
                break
            os.close(self._lock)  # between the two calls, another process took the folder as left behind
        self.inner = os.path.join(self.path, INNER)

    def remove(self) -> None:
        """Removes the folder, then lets go of the lock."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _remove_left_behind(place: str) -> None:
    for folder in Path(place).glob(f"{PREFIX}*"):
        with suppress(OSError):  # of another user, or just removed
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(descriptor).st_uid == os.getuid() and _locked(descriptor):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """Takes the lock; False if another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
