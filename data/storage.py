"""Bytes at a URI, the same way on a local disk, gs:// and memory://: read, write, create exclusively, list, remove.

Everything the project stores passes through here. A write is all or nothing for its readers: locally a temporary file
is renamed (or, for an exclusive create, hard-linked) into place; an object store publishes an object whole by itself.
A full disk is a FullError. What is on memory:// is seen by this process alone and gone with it.
`STORAGE_EMULATOR_HOST` points gs:// at another server (a local one in tests).
"""

import datetime
import errno
import functools
import io
import json
import logging
import os
import re
import secrets
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec

from data.errors import UserError

GCS_PROTOCOLS = ("gs", "gcs")
_memory_lock = threading.Lock()
"""around an exclusive create on memory://, which looks first and writes then"""
_MARK = "created-by"
"""metadata of an object created exclusively: which request made it"""
LOG_IN = "on a cluster use workload identity, on a laptop `gcloud auth application-default login`"
NO_SECRETS = (None, "google_default", "cloud", "anon")
"""what gcsfs may be told as `token`: names of ways to log in"""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class FullError(OSError):
    """There is no room to write in, or no writing at all; trying again at once would not help."""

    exit_code = 1


def what_failed(error: BaseException) -> str | None:
    """A sentence for an error of the object store or of the way to it, with what to do; None for any other error.

    Of an error that was raised for another (as Ray does with a worker's), the first in the chain that is one counts.
    """
    if "gcsfs" not in sys.modules:
        return None
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if told := _what_failed(current):
            return told
        current = getattr(current, "cause", None) or current.__cause__
    return None


def _what_failed(error: BaseException) -> str | None:
    import aiohttp
    from gcsfs.retry import HttpError
    from google.auth.exceptions import GoogleAuthError
    from requests.exceptions import ProxyError

    told = (str(error).strip() or repr(error)).splitlines()[0]
    stranger = isinstance(error, HttpError | OSError) and "Anonymous caller" in str(error)
    if stranger or (isinstance(error, HttpError) and error.code == 401):
        return f"nobody is logged in to use the bucket ({told}); {LOG_IN}, and run it again"
    forbidden = isinstance(error, OSError) and told.startswith("Forbidden")
    if forbidden or (isinstance(error, HttpError) and error.code == 403):
        return (
            f"{told}: whom this runs as may not do that; grant roles/storage.objectUser on the bucket, and run it again"
        )
    if isinstance(error, GoogleAuthError):
        return f"no credentials for gs:// ({told}); {LOG_IN}"
    code = error.code if isinstance(error, HttpError) else None
    if code is not None and 400 <= code < 500 and code not in (408, 429):
        return None  # a request that is wrong, not a store that is down
    # ProxyError: gcsfs's name for a 502. Ray's timeouts are TimeoutErrors too, by other names.
    if isinstance(error, aiohttp.ClientError | HttpError | ProxyError) or type(error) is TimeoutError:
        return (
            f"the bucket cannot be reached ({told}); check the network, and STORAGE_EMULATOR_HOST where it is set, "
            "and run the same line again: it goes on where it was"
        )
    return None


def is_remote(uri: str) -> bool:
    """Whether it is no path of the local disk."""
    return "://" in uri and not uri.startswith("file://")


def is_memory(uri: str) -> bool:
    """Whether it is in the memory of this process, where no other one sees it."""
    return uri.startswith("memory://")


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec filesystem of `uri` and the path inside it. Raises UserError for a protocol we do not know."""
    if "\0" in uri:
        raise UserError(f"the path {uri!r} holds a null byte, which no file's name may hold; leave it out")
    protocol, separator, _ = uri.partition("://")
    if not separator or protocol == "file":
        return fsspec.filesystem("file"), str(Path(uri.removeprefix("file://")).absolute())
    if protocol == "memory":
        fs = fsspec.filesystem("memory")
        return fs, fs._strip_protocol(uri)
    if protocol not in GCS_PROTOCOLS:
        raise UserError(f"no storage for {uri!r}: allowed are local paths, gs://bucket/path and memory://path")
    _refuse_key_file(os.environ.get("GOOGLE_APPLICATION_CREDENTIALS", ""))
    _refuse_token()
    _refuse_pickled_tokens()
    # gcsfs probes each bucket for a hierarchical namespace unless told not to: 90 s a call against a plain GCS server.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints the traceback of what it raises
    options: dict[str, Any] = {"use_listings_cache": False}  # a cached listing would hide what another driver wrote
    if endpoint := os.environ.get("STORAGE_EMULATOR_HOST"):
        options |= {"endpoint_url": endpoint, "token": "anon"}
    fs = _bucket_filesystem()(**options)
    return fs, fs._strip_protocol(uri)


@functools.cache
def _bucket_filesystem() -> Any:
    """gcsfs, but that looks for an object by its name first: it would list at the same time, in case the name is a
    folder's, so each open of a shard would be a listing."""
    from gcsfs import GCSFileSystem

    class Bucket(GCSFileSystem):
        async def _info(self, path: str, generation: str | None = None, **kwargs: Any) -> Any:
            path = self._strip_protocol(path).rstrip("/")
            bucket, key, _ = self.split_path(path)
            if not key:
                return await super()._info(path, generation, **kwargs)
            try:
                return await self._get_object(path)
            except FileNotFoundError:
                return await self._get_directory_info(path, bucket, key, generation)

    return Bucket


@functools.cache
def _refuse_key_file(path: str) -> None:
    """Raises UserError where Google's libraries would read a service account's key, which lies there for whoever
    reads the disk and is good for years."""
    try:
        document = json.loads(Path(path).read_bytes()) if path else None
    except (OSError, ValueError):
        return  # missing or no JSON: their own words will do
    if isinstance(document, dict) and document.get("type") == "service_account":
        raise UserError(
            f"GOOGLE_APPLICATION_CREDENTIALS names a service account's key ({path}), and no key is read here; unset "
            f"it: {LOG_IN}"
        )


def _refuse_token() -> None:
    """Raises UserError where fsspec would hand gcsfs a token or a key: it takes options from FSSPEC_GS,
    FSSPEC_GCS_TOKEN and their like in the environment, and from files in ~/.config/fsspec."""
    for protocol in GCS_PROTOCOLS:
        if fsspec.config.conf.get(protocol, {}).get("token") not in NO_SECRETS:
            raise UserError(
                f"fsspec is set to use a token of its own for {protocol}:// (by FSSPEC_{protocol.upper()} or "
                f"FSSPEC_{protocol.upper()}_TOKEN, or a file in ~/.config/fsspec), and none is read here; unset it: "
                f"{LOG_IN}"
            )


def _refuse_pickled_tokens() -> None:
    """Raises UserError where gcsfs would unpickle the tokens of its login in a browser, which it does as it is
    imported, whatever it is told as `token`. So this comes before any import of gcsfs."""
    path = Path("~/.gcs_tokens").expanduser()
    if os.path.lexists(path):
        raise UserError(
            f"{path} is a pickle that gcsfs would load (a pickle can run any code), and no stored token is read here; "
            f"remove it: {LOG_IN}"
        )


def check_bucket(uri: str) -> None:
    """Raises UserError where `uri` is on gs:// and its bucket does not exist. One request; elsewhere none."""
    if not is_remote(uri) or is_memory(uri):
        return
    fs, path = filesystem(uri)
    bucket, _, prefix = path.strip("/").partition("/")
    if not bucket:
        raise UserError(f"{uri!r} names no bucket; give gs://bucket/path")
    if not re.fullmatch("[a-z0-9][a-z0-9._-]*", bucket):
        raise UserError(
            f"{uri!r} names a bucket {bucket!r}; the name of a bucket has a-z, 0-9, '-', '_' and '.' only, and begins "
            "with a letter or digit: give gs://bucket/path"
        )
    try:
        fs.call("GET", "b/{}/o", bucket, prefix=prefix, maxResults=1, json_out=True)
    except FileNotFoundError:
        raise UserError(
            f"there is no bucket {bucket!r}; check its name in {uri}, or make it: gcloud storage buckets create "
            f"gs://{bucket}"
        ) from None
    except OSError as error:
        if "Anonymous caller" in str(error) or not str(error).startswith("Forbidden"):
            raise
        # who may not list may still read and write what it names


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def exists(uri: str) -> bool:
    fs, path = filesystem(uri)
    return bool(fs.exists(path))


def is_directory(uri: str) -> bool:
    fs, path = filesystem(uri)
    return bool(fs.isdir(path))


def read_bytes(uri: str) -> bytes:
    """The whole object. Raises FileNotFoundError."""
    fs, path = filesystem(uri)
    return cast(bytes, fs.cat_file(path))


def read_range(uri: str, start: int, end: int) -> bytes:
    """Bytes [start, end) of the object, in one request. Raises FileNotFoundError."""
    fs, path = filesystem(uri)
    return cast(bytes, fs.cat_file(path, start=start, end=end))


def open_input(uri: str) -> BinaryIO:
    """A seekable binary file to read from."""
    fs, path = filesystem(uri)
    if is_memory(uri):
        return io.BytesIO(fs.cat_file(path))  # the one in store has one position for all its readers
    return cast(BinaryIO, fs.open(path, "rb"))


def write_bytes(uri: str, data: bytes) -> None:
    """Replaces the object at `uri`; a reader sees the old bytes or the new ones, never a part."""
    fs, path = filesystem(uri)
    if is_remote(uri):
        fs.pipe_file(path, data)
        return
    temporary = _temporary_beside(path, data)
    os.replace(temporary, path)


def create_exclusive(uri: str, data: bytes) -> None:
    """Creates the object whole, or raises FileExistsError and leaves what is there. The one lock this project has."""
    fs, path = filesystem(uri)
    if is_memory(uri):
        with _memory_lock:
            if fs.exists(path):
                raise FileExistsError(f"{uri} exists")
            fs.pipe_file(path, data)
        return
    if is_remote(uri):
        mark = secrets.token_hex(16)
        try:
            # ifGenerationMatch=0: the server decides who was first
            fs.pipe_file(path, data, mode="create", metadata={_MARK: mark})
        except FileExistsError:
            # gcsfs asks again where an answer was lost, and may find the object of its own first request
            if fs.info(path).get("metadata", {}).get(_MARK) != mark:
                raise FileExistsError(f"{uri} exists") from None
        return
    temporary = _temporary_beside(path, data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise FileExistsError(f"{uri} exists") from None
    finally:
        os.unlink(temporary)


def upload(local_path: str | Path, uri: str) -> None:
    """Publishes a finished local file at `uri` (a rename where both are on the local disk)."""
    fs, path = filesystem(uri)
    if is_remote(uri):
        if is_memory(uri):
            fs.pipe_file(path, Path(local_path).read_bytes())  # put_file shows it before it is whole
        else:
            fs.put_file(str(local_path), path)
        os.unlink(local_path)
        return
    with _room_for(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.replace(local_path, path)


def download(uri: str, local_path: str | Path) -> None:
    """Copies the object to a local file, in pieces. Raises FileNotFoundError."""
    fs, path = filesystem(uri)
    if is_memory(uri):
        Path(local_path).write_bytes(fs.cat_file(path))
        return
    fs.get_file(path, str(local_path))


def move(source: str, target: str) -> None:
    """Publishes `source` as `target`, replacing it. On an object store: a server-side copy, then a delete."""
    fs, source_path = filesystem(source)
    _, target_path = filesystem(target)
    if is_remote(source):
        fs.cp_file(source_path, target_path)
        with suppress(FileNotFoundError):  # removed by a request whose answer was lost
            fs.rm_file(source_path)
        return
    with _room_for(target_path):
        os.makedirs(os.path.dirname(target_path), exist_ok=True)
        os.replace(source_path, target_path)


def list_files(uri: str) -> list[tuple[str, int]]:
    """(name relative to `uri`, size in bytes) of every file below `uri`, sorted by name; empty where there is none."""
    fs, path = filesystem(uri)
    if not fs.exists(path):
        return []
    found = fs.find(path, detail=True)
    prefix = path.rstrip("/") + "/"
    return sorted((name[len(prefix) :], int(info["size"])) for name, info in found.items() if name.startswith(prefix))


def list_folders(uri: str) -> list[str]:
    """Names of the folders directly in `uri`, sorted; empty where there is none. Files below are not listed."""
    fs, path = filesystem(uri)
    if not fs.exists(path):
        return []
    found = fs.ls(path, detail=True)
    return sorted(one["name"].rstrip("/").rpartition("/")[2] for one in found if one["type"] == "directory")


def list_level(uri: str) -> list[tuple[str, float]]:
    """(name, time of the last change in seconds since 1970) of what lies directly in `uri`, sorted; of a folder on an
    object store the time is 0. Empty where there is none. Nothing below is listed."""
    fs, path = filesystem(uri)
    try:
        found = fs.ls(path, detail=True)
    except FileNotFoundError:
        return []
    names = [(one["name"].rstrip("/").rpartition("/")[2], one) for one in found]
    return sorted((name, _changed(one)) for name, one in names if name)


def _changed(info: Any) -> float:
    when = info.get("mtime") or info.get("updated") or info.get("created") or 0.0
    if isinstance(when, str):
        when = datetime.datetime.fromisoformat(when)
    return when.timestamp() if isinstance(when, datetime.datetime) else float(when)


def remove(uri: str) -> None:
    fs, path = filesystem(uri)
    with suppress(FileNotFoundError):
        fs.rm_file(path)


def remove_tree(uri: str) -> None:
    fs, path = filesystem(uri)
    with suppress(FileNotFoundError):
        fs.rm(path, recursive=True)


def _temporary_beside(path: str, data: bytes) -> str:
    """Writes `data` to a new file in the folder of `path`, flushed to the disk, and returns its name."""
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
                os.unlink(temporary)  # it would take up what little room there is
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
            f"cannot write {path} ({os.strerror(error.errno)}); make room and run the same command again: what is "
            "finished is kept"
        ) from error
