"""The functions of this package. Each calls the store that keeps the URI."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from data.errors import UserError
from data.storage import pinned
from data.storage.gcs import Gcs
from data.storage.local import Local
from data.storage.memory import Memory
from data.storage.store import Enter, Found, Store

STORES: tuple[Store, ...] = (Local(), Gcs(), Memory())


def store_of(uri: str) -> Store:
    """The store that keeps a URI. Raises UserError for an unknown protocol, and for a path that no store can have."""
    if "\0" in uri:
        raise UserError(f"got the path {uri!r} with a null byte, which no file name may have; leave the null byte out")
    protocol = uri.partition("://")[0] if "://" in uri else ""
    for store in STORES:
        if protocol in store.protocols:
            return store
    examples = [store.example for store in STORES]
    raise UserError(f"no storage for {uri!r}: allowed are {', '.join(examples[:-1])} and {examples[-1]}")


def what_failed(error: BaseException) -> str | None:
    """A sentence for an error of a store or of the connection to it, with what to do next. None for any other error.

    An error may have been raised from another (as Ray does with a worker's error): the first of them that is an error
    of a store counts.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        for store in STORES:
            if sentence := store.what_failed(current):
                return sentence
        current = getattr(current, "cause", None) or current.__cause__
    return None


def is_remote(uri: str) -> bool:
    """Whether the store is not the disk of this machine."""
    return store_of(uri).remote


def is_shared(uri: str) -> bool:
    """Whether other processes see the object."""
    return store_of(uri).shared


def is_relative(uri: str) -> bool:
    """Whether the path depends on the working directory."""
    return store_of(uri).is_relative(uri)


def absolute(uri: str) -> str:
    """The URI as it can be used from any directory."""
    return store_of(uri).absolute(uri)


def local_path(uri: str) -> Path | None:
    """The path on this machine's disk, which can be opened and appended to. None in any other store."""
    return store_of(uri).local_path(uri)


def read_threads(uri: str) -> int:
    """Number of threads that read fastest from the store."""
    return store_of(uri).read_threads


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec filesystem of `uri` and the path inside it. Raises UserError for an unknown protocol."""
    return store_of(uri).filesystem(uri)


def check_bucket(uri: str) -> None:
    """Raises UserError if `uri` is in a bucket that does not exist. One request, or none for other stores."""
    store_of(uri).check_bucket(uri)


def exists(uri: str) -> bool:
    return store_of(uri).exists(uri)


def is_directory(uri: str) -> bool:
    return store_of(uri).is_directory(uri)


def read_bytes(uri: str) -> bytes:
    """The whole object. Raises FileNotFoundError, and UserError if the URI is pinned to other bytes."""
    with _pinned(uri):
        return pinned.check(uri, store_of(uri).read_bytes(uri))


def read_range(uri: str, start: int, end: int) -> bytes:
    """Bytes [start, end) of the object, in one request. Raises FileNotFoundError."""
    with _pinned(uri):
        return store_of(uri).read_range(uri, start, end)


def open_input(uri: str) -> BinaryIO:
    """A seekable binary file to read from."""
    with _pinned(uri):
        return store_of(uri).open_input(uri)


@contextmanager
def open_pinned(uri: str) -> Iterator[BinaryIO]:
    """`open_input`, for a reader of the whole file: if the URI is pinned, bytes are hashed as they are read.

    Raises UserError at the end, in place of an error of the reader too, if the URI is pinned to other bytes.
    """
    with open_input(uri) as raw:
        if pinned.sha256_of(uri) is None:
            yield raw
            return
        hashed = pinned.Hashed(cast(pinned.Pinned, uri), raw)
        try:
            yield cast(BinaryIO, io.BufferedReader(hashed, 1 << 16))
        except Exception:
            hashed.finish()  # a file that changed breaks its reader: say so
            raise
        hashed.finish()


def check_pinned(uri: str) -> None:
    """Reads a pinned file once more. Raises UserError if it has other bytes; on gs:// each read has checked that."""
    if pinned.sha256_of(uri) is not None:
        with open_input(uri) as raw:
            pinned.Hashed(cast(pinned.Pinned, uri), raw).finish()


def write_bytes(uri: str, data: bytes) -> None:
    """Replaces the object at `uri`; a reader sees the old bytes or the new ones, never a part."""
    store_of(uri).write_bytes(uri, data)


def create_exclusive(uri: str, data: bytes) -> None:
    """Creates the whole object, or raises FileExistsError and changes nothing: the only lock of this project."""
    store_of(uri).create_exclusive(uri, data)


def download(uri: str, local_path: str | Path) -> None:
    """Copies the object to a local file, in pieces. Raises FileNotFoundError."""
    with _pinned(uri):
        store_of(uri).download(uri, local_path)


def move(source: str, target: str, *, exclusive: bool = False) -> None:
    """Publishes `source` as `target` in the same store, replacing it. On an object store: a copy, then a delete.

    `exclusive`: raises FileExistsError if `target` exists, and replaces nothing.
    """
    store_of(source).move(source, target, exclusive)


def take_away(uri: str, into: str, check: Callable[[], None], *, is_folder: bool = False) -> None:
    """Removes the file or, with `is_folder`, the folder at `uri`, if it is there.

    `check`, which may raise, is called last before the removal.

    If the process is stopped after `check`, the removal still touches nothing that another process wrote meanwhile. On
    a disk the file is renamed into the new folder `into`, and FileNotFoundError is raised if `into` is gone by then. On
    an object store the generation that was there before `check` is removed.
    """
    store_of(uri).take_away(uri, into, check, is_folder)


def list_files(uri: str) -> list[tuple[str, int]]:
    """(name relative to `uri`, size in bytes) of each file below `uri`, sorted by name. Empty for no folder."""
    return store_of(uri).list_files(uri)


def list_folders(uri: str) -> list[str]:
    """Names of the folders directly in `uri`, sorted, without files. Empty for no folder."""
    return store_of(uri).list_folders(uri)


def list_level(uri: str) -> list[tuple[str, float]]:
    """(name, time of the last change in seconds since 1970) of each file and folder directly in `uri`, sorted.

    The time of a folder on an object store is 0. Empty if there is no folder.
    """
    return store_of(uri).list_level(uri)


def find_files(uri: str, enter: Enter = lambda folder: True) -> Found:
    """The files that `uri` names as a file, folder or glob, and what else it names that is no regular file.

    The files of a folder below a given folder for which `enter` is false may be left out. Names are relative to the
    folder, or to the part of a glob before its first special character. Raises UserError for a glob that is not valid.
    """
    return store_of(uri).find_files(uri, enter)


def content(uri: str) -> str:
    """A fingerprint of the object's bytes: their sha256, or the store's own generation and checksum."""
    return store_of(uri).content(uri)


def remove(uri: str) -> None:
    store_of(uri).remove(uri)


def remove_tree(uri: str) -> None:
    store_of(uri).remove_tree(uri)


@contextmanager
def _pinned(uri: str) -> Iterator[None]:
    """Says what was meant if the object that a URI is pinned to, or its generation, is gone."""
    try:
        yield
    except FileNotFoundError as error:
        if not isinstance(uri, pinned.Pinned):
            raise
        gone = "it is missing" if pinned.generation_of(uri) is None else "that generation is gone"
        raise uri.refused(gone) from error
