"""The interface of a place that keeps bytes: `Store`, with defaults by fsspec.

A new kind of place is a file with a `Store`, and one line in by_uri.py. A store must be able to create an object
exclusively and to publish a write as a whole. Everything else has a default.
"""

import datetime
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, cast

from data.errors import UserError

GLOB = "*?["
"""characters by which a path is a glob"""


class FullError(OSError):
    """The disk is full or read-only, so trying again at once would not help."""

    exit_code = 1


class Found(NamedTuple):
    """What a path names."""

    files: Sequence[tuple[str, str, int]] = ()
    """(relative name, URI, bytes) of each regular file"""
    left_out: Sequence[tuple[str, str]] = ()
    """(kind, path) of each pipe, device, socket, broken link and linked folder"""


Enter = Callable[[str], bool]
"""name of a folder relative to the given one, with a / behind it -> whether its files are wanted"""


class Store(ABC):
    """One kind of place. Methods take the whole URI, and raise FileNotFoundError for a missing object."""

    protocols: Sequence[str]
    """protocols of the store's URIs, the part before ://"""
    example: str
    """example of a URI, for error messages"""
    remote: bool = True
    """whether the store is not the disk of this machine"""
    shared: bool = True
    """whether other processes see the objects"""
    read_threads: int = 16
    """number of threads that read fastest: many if a read is mostly waiting"""

    @abstractmethod
    def filesystem(self, uri: str) -> tuple[Any, str]:
        """The fsspec filesystem and the path inside it."""

    @abstractmethod
    def create_exclusive(self, uri: str, data: bytes) -> None:
        """Creates the whole object, or raises FileExistsError and changes nothing."""

    def write_bytes(self, uri: str, data: bytes) -> None:
        """Replaces the object; a reader sees the old bytes or the new ones, never a part."""
        fs, path = self.filesystem(uri)
        fs.pipe_file(path, data)

    def move(self, source: str, target: str, exclusive: bool = False) -> None:
        """Publishes `source` as `target`: a copy inside the store, then a delete. `exclusive`: it replaces nothing."""
        fs, source_path = self.filesystem(source)
        if exclusive and self.exists(target):
            raise FileExistsError(f"{target} exists")
        fs.cp_file(source_path, self.filesystem(target)[1])
        with suppress(FileNotFoundError):  # an earlier request removed it, and its answer was lost
            fs.rm_file(source_path)

    def take_away(self, uri: str, into: str, check: Callable[[], None], is_folder: bool) -> None:
        """Removes the file or folder at `uri`, if it is there. `check` is called last before the removal.

        `into` is a new folder of the caller's own, through which a file on a disk goes.
        """
        remove = self.remove_tree if is_folder else self.remove
        check()
        remove(uri)

    def exists(self, uri: str) -> bool:
        fs, path = self.filesystem(uri)
        return bool(fs.exists(path))

    def is_directory(self, uri: str) -> bool:
        fs, path = self.filesystem(uri)
        return bool(fs.isdir(path))

    def read_bytes(self, uri: str) -> bytes:
        fs, path = self.filesystem(uri)
        return cast(bytes, fs.cat_file(path))

    def read_range(self, uri: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of the object, in one request."""
        fs, path = self.filesystem(uri)
        return cast(bytes, fs.cat_file(path, start=start, end=end))

    def open_input(self, uri: str) -> BinaryIO:
        """A seekable binary file to read from."""
        fs, path = self.filesystem(uri)
        return cast(BinaryIO, fs.open(path, "rb"))

    def download(self, uri: str, local_path: str | Path) -> None:
        """Copies the object to a local file, in pieces."""
        fs, path = self.filesystem(uri)
        fs.get_file(path, str(local_path))

    def remove(self, uri: str) -> None:
        fs, path = self.filesystem(uri)
        with suppress(FileNotFoundError):
            fs.rm_file(path)

    def remove_tree(self, uri: str) -> None:
        fs, path = self.filesystem(uri)
        with suppress(FileNotFoundError):
            fs.rm(path, recursive=True)

    def list_files(self, uri: str) -> list[tuple[str, int]]:
        """(name relative to `uri`, size in bytes) of each file below `uri`, sorted by name. Empty for no folder."""
        fs, path = self.filesystem(uri)
        if not fs.exists(path):
            return []
        files = fs.find(path, detail=True)
        prefix = path.rstrip("/") + "/"
        return sorted(
            (name[len(prefix) :], int(info["size"])) for name, info in files.items() if name.startswith(prefix)
        )

    def list_folders(self, uri: str) -> list[str]:
        """Names of the folders directly in `uri`, sorted, without files. Empty for no folder."""
        fs, path = self.filesystem(uri)
        if not fs.exists(path):
            return []
        entries = fs.ls(path, detail=True)
        return sorted(_last(entry["name"]) for entry in entries if entry["type"] == "directory")

    def list_level(self, uri: str) -> list[tuple[str, float]]:
        """(name, time of the last change in seconds since 1970) of each file and folder directly in `uri`, sorted.

        The time of a folder on an object store is 0. Empty if there is no folder.
        """
        fs, path = self.filesystem(uri)
        try:
            entries = fs.ls(path, detail=True)
        except FileNotFoundError:
            return []
        return sorted((name, _changed(entry)) for entry in entries if (name := _last(entry["name"])))

    def find_files(self, uri: str, enter: Enter) -> Found:
        """The files that `uri` names as a file, folder or glob, and what else it names that is no regular file.

        A store that lists folder by folder asks `enter` before it lists one. Others list all.
        Names are relative to the folder, or to the part of a glob before its first special character. Raises UserError
        for a glob that is not valid.
        """
        if self.exists(uri):
            if not self.is_directory(uri):
                return Found([(PurePosixPath(uri).name, uri, self._size(uri))])
            return Found([(name, join(uri, name), size) for name, size in self.list_files(uri)])
        if not is_glob(uri):
            return Found()
        try:
            names = self._glob(uri)
        except ValueError as error:  # fsspec takes ** only as a whole part of a path
            raise UserError(f"got the glob {uri!r}, which is not valid ({error}); write ** between slashes") from error
        fixed = fixed_part(uri)
        listing = [
            (os.path.relpath(name, fixed), name, self._size(name)) for name in names if not self.is_directory(name)
        ]
        return Found(listing)

    def content(self, uri: str) -> str:
        """A fingerprint of the object's bytes: their sha256, or the store's own generation and checksum."""
        return hashlib.sha256(self.read_bytes(uri)).hexdigest()

    def local_path(self, uri: str) -> Path | None:
        """The path on this machine's disk, which can be opened and appended to. None in any other store."""
        return None

    def absolute(self, uri: str) -> str:
        """The URI as it can be used from any directory."""
        return uri

    def is_relative(self, uri: str) -> bool:
        """Whether the path depends on the working directory."""
        return False

    def check_bucket(self, uri: str) -> None:  # noqa: B027  most stores have no buckets
        """Raises UserError for a bucket that does not exist."""

    def what_failed(self, error: BaseException) -> str | None:
        """A sentence for an error of this store or of the connection to it, with what to do next. None otherwise."""
        return None

    def _size(self, uri: str) -> int:
        fs, path = self.filesystem(uri)
        return int(fs.info(path)["size"])

    def _glob(self, uri: str) -> list[str]:
        """URIs that match the glob."""
        fs, path = self.filesystem(uri)
        scheme = uri.partition("://")[0]
        return [f"{scheme}://{name.lstrip('/')}" for name in fs.glob(path)]


def is_glob(uri: str) -> bool:
    return any(character in uri for character in GLOB)


def fixed_part(uri: str) -> str:
    """The folder above the first part of a glob that has a special character."""
    folder = uri[: min(uri.index(character) for character in GLOB if character in uri)].rpartition("/")
    return folder[0] or folder[1] or "."


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]


def _changed(info: Any) -> float:
    when = info.get("mtime") or info.get("updated") or info.get("created") or 0.0
    if isinstance(when, str):
        when = datetime.datetime.fromisoformat(when)
    return when.timestamp() if isinstance(when, datetime.datetime) else float(when)
