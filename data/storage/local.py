"""Files of this machine's disk, or of a disk that machines share: paths, and file:// URLs.

A write goes to a temporary file beside its place, which is flushed to the disk, then renamed there or, for an
exclusive create, hard-linked. A full disk is a FullError.
"""

import errno
import glob
import hashlib
import itertools
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec

from data.errors import UserError
from data.storage.store import Enter, Found, FullError, Store, fixed_part, is_glob, join

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
LINKED = "linked folder"


class Local(Store):
    """The disk."""

    protocols = ("", "file")
    example = "local paths"
    remote = False
    read_threads = 1  # a read hardly waits, and each thread would hold memory

    def filesystem(self, uri: str) -> tuple[Any, str]:
        return fsspec.filesystem("file"), self.absolute(uri)

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
        except FileNotFoundError:  # a driver that has just finished the run took it for the file of a killed process
            self.create_exclusive(uri, data)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)

    def move(self, source: str, target: str, exclusive: bool = False) -> None:
        source_path, target_path = (self.filesystem(uri)[1] for uri in (source, target))
        with _room_for(target_path):
            os.makedirs(os.path.dirname(target_path), exist_ok=True)
            if not exclusive:
                os.replace(source_path, target_path)
            else:
                try:
                    os.link(source_path, target_path)
                except FileExistsError:
                    raise FileExistsError(f"{target} exists") from None
                with suppress(FileNotFoundError):  # whoever cleans up after `target` may have been first
                    os.unlink(source_path)
        with suppress(OSError):  # it is not empty, or another call has removed it
            os.rmdir(os.path.dirname(source_path))

    def take_away(self, uri: str, into: str, check: Callable[[], None], is_folder: bool) -> None:
        path, folder = (self.filesystem(name)[1] for name in (uri, into))
        if not os.path.lexists(path):
            return
        with _room_for(folder):
            os.makedirs(folder)
        check()
        # fails if `into` was taken away itself: nothing may create it after the check
        taken = os.path.join(folder, os.path.basename(path))
        try:
            os.rename(path, taken)
        except FileNotFoundError:
            if not os.path.isdir(folder):
                raise
        shutil.rmtree(folder, ignore_errors=True)

    def find_files(self, uri: str, enter: Enter) -> Found:
        """Regular files, and links to them. A folder below the given path is entered unless it is a link."""
        path = str(_path(uri))
        if os.path.isdir(path):
            return _sorted(_below(path, uri, enter))
        if os.path.lexists(path):
            return _sorted([(os.path.basename(path), uri, path)])
        if not is_glob(path):
            return Found()
        fixed = fixed_part(path)
        entries = [(os.path.relpath(name, fixed), name, name) for name in _glob(path, uri)]
        linked = {name for name, _, _ in entries for name in _linked_above(name, fixed)}
        listing = _sorted(
            entry for entry in entries if not os.path.isdir(entry[2]) and not _linked_above(entry[0], fixed)
        )
        return Found(
            listing.files, sorted({*listing.left_out, *((LINKED, os.path.join(fixed, name)) for name in linked)})
        )

    def content(self, uri: str) -> str:
        with open(_path(uri), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def local_path(self, uri: str) -> Path | None:
        return Path(self.absolute(uri))

    def absolute(self, uri: str) -> str:
        path = _path(uri).absolute()
        if ".." not in path.parts:
            return str(path)
        # `link/..` is the folder above the link's target: what the system opens, and not what the text looks like
        end = len(path.parts) - path.parts[::-1].index("..")
        return str(Path(os.path.realpath(Path(*path.parts[:end])), *path.parts[end:]))

    def is_relative(self, uri: str) -> bool:
        return not _path(uri).is_absolute()


def _path(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))


def _below(folder: str, uri: str, enter: Enter) -> Iterator[tuple[str, str, str]]:
    """(name relative to `folder`, URI, path) of each entry that is no folder, at any depth, and of linked folders."""

    def refuse(error: OSError) -> None:
        raise error  # a folder that cannot be read is not an empty one

    for parent, folders, names in os.walk(folder, onerror=refuse):
        linked = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        relative = os.path.relpath(parent, folder)
        inside = "" if relative == os.curdir else relative + "/"
        folders[:] = [name for name in folders if enter(f"{inside}{name}/")]
        for name in [*names, *linked]:
            below = inside + name
            yield below, join(uri, below), os.path.join(parent, name)


def _glob(pattern: str, uri: str) -> list[str]:
    try:
        return glob.glob(pattern, recursive=True)
    except (ValueError, re.error) as error:
        raise UserError(f"got the glob {uri!r}, which is not valid ({error}); give one that is") from error


def _linked_above(name: str, fixed: str) -> list[str]:
    """The first linked folder, if any, that `name` is inside, relative to `fixed`; `name` itself if it is one."""
    parts = Path(name).parts
    heads = [os.path.join(*parts[:count]) for count in range(1, len(parts) + 1)]
    linked = (head for head in heads if os.path.islink(path := os.path.join(fixed, head)) and os.path.isdir(path))
    return list(itertools.islice(linked, 1))


def _sorted(entries: Iterable[tuple[str, str, str]]) -> Found:
    files, left_out = [], []
    for name, uri, path in entries:
        kind, size = _kind(path)
        if kind is None:
            files.append((name, uri, size))
        else:
            left_out.append((kind, path))
    return Found(sorted(files), sorted(left_out))


def _kind(path: str) -> tuple[str | None, int]:
    """The kind of a file that is not regular, else None; and its size in bytes."""
    try:
        listing = os.stat(path)
    except FileNotFoundError:
        return "broken link", 0
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "broken link", 0
        raise
    kinds = {stat.S_IFREG: None, stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFDIR: LINKED}
    return kinds.get(stat.S_IFMT(listing.st_mode), "device"), listing.st_size


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
