"""Files of this machine's disk, or of a disk that machines share: paths, and file:// URLs.

A write goes to a temporary file beside its place, which is flushed to the disk, then renamed there or, for an
exclusive create, hard-linked. A full disk is a FullError.
"""

import errno
import glob
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec

from data.storage.store import FullError, Store

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Local(Store):
    """The disk."""

    protocols = ("", "file")
    example = "local paths"
    remote = False
    read_threads = 1  # a read hardly waits, and each thread would hold memory

    def filesystem(self, uri: str) -> tuple[Any, str]:
        return fsspec.filesystem("file"), str(_path(uri).absolute())

    def write_bytes(self, uri: str, data: bytes) -> None:
        _, path = self.filesystem(uri)
        os.replace(_temporary_beside(path, data), path)

    def create_exclusive(self, uri: str, data: bytes) -> None:
        _, path = self.filesystem(uri)
        temporary = _temporary_beside(path, data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise FileExistsError(f"{uri} exists") from None
        finally:
            os.unlink(temporary)

    def move(self, source: str, target: str) -> None:
        source_path, target_path = (self.filesystem(uri)[1] for uri in (source, target))
        with _room_for(target_path):
            os.makedirs(os.path.dirname(target_path), exist_ok=True)
            os.replace(source_path, target_path)

    def files_of(self, uri: str) -> list[tuple[str, str, int]]:
        files = super().files_of(uri if self.exists(uri) else uri.removeprefix("file://"))
        if not self.is_directory(uri):
            return files
        return [file for file in files if os.path.isfile(file[1].removeprefix("file://"))]  # no pipe or broken link

    def content(self, uri: str) -> str:
        with open(_path(uri), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def local_path(self, uri: str) -> Path | None:
        return _path(uri).absolute()

    def absolute(self, uri: str) -> str:
        return os.path.abspath(_path(uri))

    def is_relative(self, uri: str) -> bool:
        return not _path(uri).is_absolute()

    def _glob(self, uri: str) -> list[str]:
        return glob.glob(uri, recursive=True)


def _path(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))


def _temporary_beside(path: str, data: bytes) -> str:
    """Writes `data` to a new file in the folder of `path`, and flushes it to the disk. Returns the file's path."""
    temporary = f"{path}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    with _room_for(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            with suppress(FileNotFoundError):
                os.unlink(temporary)  # it would take up the little room that is left
            raise
    return temporary


@contextmanager
def _room_for(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise FullError(
            f"cannot write {path} ({os.strerror(error.errno)}); make room and run the same command again: finished "
            "work is kept"
        ) from error
