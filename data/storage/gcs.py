"""gs://: objects of Google Cloud Storage, by gcsfs.

The server decides exclusive creates. `STORAGE_EMULATOR_HOST` points gs:// at another server (a local one in tests). No
key and no stored token is read: the account is that of a login with Google.
"""

import functools
import json
import logging
import os
import re
import secrets
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec

from data.errors import UserError
from data.storage.pinned import generation_of
from data.storage.store import Store

PROTOCOLS = ("gs", "gcs")
_MARK = "created-by"
"""metadata key of an exclusively created object: names the request that created it"""
LOG_IN = "on a cluster use workload identity, on a laptop `gcloud auth application-default login`"
NO_SECRETS = (None, "google_default", "cloud", "anon")
"""allowed values of gcsfs's `token`: names of ways to log in"""


class Gcs(Store):
    """Buckets of Google Cloud Storage."""

    protocols = PROTOCOLS
    example = "gs://bucket/path"

    def filesystem(self, uri: str) -> tuple[Any, str]:
        _refuse_key_file(os.environ.get("GOOGLE_APPLICATION_CREDENTIALS", ""))
        _refuse_token()
        _refuse_pickled_tokens()
        # By default gcsfs probes each bucket for a hierarchical namespace: 90 s a call against a plain server.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints the traceback of each error that it raises
        options: dict[str, Any] = {"use_listings_cache": False}  # a cached listing would hide new files
        if endpoint := os.environ.get("STORAGE_EMULATOR_HOST"):
            options |= {"endpoint_url": endpoint, "token": "anon"}
        if generation := generation_of(uri):
            fs = _bucket_filesystem()(**options, version_aware=True)  # it takes path#generation
            return fs, f"{fs._strip_protocol(str(uri))}#{generation}"
        fs = _bucket_filesystem()(**options)
        return fs, fs._strip_protocol(uri)

    def create_exclusive(self, uri: str, data: bytes) -> None:
        fs, path = self.filesystem(uri)
        mark = secrets.token_hex(16)
        try:
            # ifGenerationMatch=0: the server decides which request is first
            fs.pipe_file(path, data, mode="create", metadata={_MARK: mark})
        except FileExistsError:
            # gcsfs repeats a request whose answer was lost, and may then find its own object
            if fs.info(path).get("metadata", {}).get(_MARK) != mark:
                raise FileExistsError(f"{uri} exists") from None

    def move(self, source: str, target: str, exclusive: bool = False) -> None:
        if not exclusive:
            super().move(source, target)
            return
        fs, source_path = self.filesystem(source)
        bucket, key, _ = fs.split_path(source_path)
        to_bucket, to_key, _ = fs.split_path(self.filesystem(target)[1])
        if _object_at(fs, self.filesystem(target)[1]) is not None:
            raise FileExistsError(f"{target} exists")
        call = "b/{}/o/{}/rewriteTo/b/{}/o/{}"
        try:
            progress: dict[str, Any] = {"done": False}
            while not progress["done"]:
                token = {"rewriteToken": progress["rewriteToken"]} if "rewriteToken" in progress else {}
                progress = fs.call(
                    "POST", call, bucket, key, to_bucket, to_key, ifGenerationMatch="0", json_out=True, **token
                )
        except FileExistsError:  # an earlier request created it, and its answer was lost, or someone else did
            if fs.info(source_path)["crc32c"] != self.content(target).partition("-")[2]:
                raise FileExistsError(f"{target} exists") from None
        self.remove(source)

    def take_away(self, uri: str, into: str, check: Callable[[], None], is_folder: bool) -> None:
        fs, path = self.filesystem(uri)
        seen = fs.find(path, detail=True) if is_folder else {path: _object_at(fs, path)}
        check()
        for name, object_seen in seen.items():
            if object_seen is None:
                continue
            bucket, key, _ = fs.split_path(name)
            with suppress(FileNotFoundError, FileExistsError):  # gone by now, or (412) another object is there by now
                fs.call("DELETE", "b/{}/o/{}", bucket, key, ifGenerationMatch=object_seen["generation"])

    def content(self, uri: str) -> str:
        fs, path = self.filesystem(uri)
        info = fs.info(path)
        return f"{info['generation']}-{info['crc32c']}"

    def check_bucket(self, uri: str) -> None:
        bucket, _, prefix = uri.partition("://")[2].strip("/").partition("/")
        if not bucket:
            raise UserError(f"got {uri!r}, which names no bucket; give gs://bucket/path")
        if not re.fullmatch("[a-z0-9][a-z0-9._-]*", bucket):
            raise UserError(
                f"got {uri!r} with the bucket {bucket!r}; the name of a bucket has only a-z, 0-9, '-', '_' and '.', "
                "and begins with a letter or digit: give gs://bucket/path"
            )
        fs, _ = self.filesystem(uri)
        try:
            fs.call("GET", "b/{}/o", bucket, prefix=prefix, maxResults=1, json_out=True)
        except FileNotFoundError:
            raise UserError(
                f"there is no bucket {bucket!r}; check its name in {uri}, or create it: gcloud storage buckets create "
                f"gs://{bucket}"
            ) from None
        except OSError as error:
            if "Anonymous caller" in str(error) or not str(error).startswith("Forbidden"):
                raise
            # an account that may not list may still read and write objects

    def what_failed(self, error: BaseException) -> str | None:
        return _what_failed(error) if "gcsfs" in sys.modules else None


def _what_failed(error: BaseException) -> str | None:
    import aiohttp
    from gcsfs.retry import HttpError
    from google.auth.exceptions import GoogleAuthError
    from requests.exceptions import ProxyError

    reason = (str(error).strip() or repr(error)).splitlines()[0]
    stranger = isinstance(error, HttpError | OSError) and "Anonymous caller" in str(error)
    if stranger or (isinstance(error, HttpError) and error.code == 401):
        return f"nobody is logged in to use the bucket ({reason}); {LOG_IN}, and run it again"
    forbidden = isinstance(error, OSError) and reason.startswith("Forbidden")
    if forbidden or (isinstance(error, HttpError) and error.code == 403):
        advice = "grant roles/storage.objectUser on the bucket, and run it again"
        return f"{reason}: the account of this run may not do that; {advice}"
    if isinstance(error, GoogleAuthError):
        return f"no credentials for gs:// ({reason}); {LOG_IN}"
    code = error.code if isinstance(error, HttpError) else None
    if code is not None and 400 <= code < 500 and code not in (408, 429):
        return None  # a wrong request, not an unreachable store
    # ProxyError is gcsfs's name for a 502. Ray's timeouts are subclasses of TimeoutError.
    if isinstance(error, aiohttp.ClientError | HttpError | ProxyError) or type(error) is TimeoutError:
        return (
            f"the bucket cannot be reached ({reason}); check the network, and STORAGE_EMULATOR_HOST if it is set, and "
            "run the same line again: finished work is kept"
        )
    return None


@functools.cache
def _bucket_filesystem() -> Any:
    """gcsfs's file system, changed to look up an object by its name before it lists a folder.

    gcsfs itself does both at the same time, so each open of a shard would be a listing.
    """
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
    """Raises UserError if Google's libraries would read the key of a service account.

    A key on disk is valid for years, for anyone who reads the disk.
    """
    try:
        document = json.loads(Path(path).read_bytes()) if path else None
    except (OSError, ValueError):
        return  # missing or not JSON: Google's own error says so
    if isinstance(document, dict) and document.get("type") == "service_account":
        raise UserError(
            f"GOOGLE_APPLICATION_CREDENTIALS names the key of a service account ({path}), and no key is read here; "
            f"unset it: {LOG_IN}"
        )


def _refuse_token() -> None:
    """Raises UserError if fsspec would pass a token or a key to gcsfs.

    fsspec takes options from variables such as FSSPEC_GS and FSSPEC_GCS_TOKEN, and from files in ~/.config/fsspec.
    """
    for protocol in PROTOCOLS:
        if fsspec.config.conf.get(protocol, {}).get("token") not in NO_SECRETS:
            raise UserError(
                f"fsspec is set to use its own token for {protocol}:// (by FSSPEC_{protocol.upper()} or "
                f"FSSPEC_{protocol.upper()}_TOKEN, or a file in ~/.config/fsspec), and no token is read here; "
                f"unset it: {LOG_IN}"
            )


def _refuse_pickled_tokens() -> None:
    """Raises UserError if gcsfs would unpickle the tokens of its login in a browser.

    gcsfs does so when it is imported, for any `token`, so this check comes before the first import.
    """
    path = Path("~/.gcs_tokens").expanduser()
    if os.path.lexists(path):
        raise UserError(
            f"{path} is a pickle that gcsfs would load (a pickle can run any code), and no stored token is read here; "
            f"remove it: {LOG_IN}"
        )


def _object_at(fs: Any, path: str) -> dict[str, Any] | None:
    """The object's own facts. None if there is none; gcsfs' `info` would then list what is below it."""
    bucket, key, _ = fs.split_path(path)
    try:
        facts: dict[str, Any] = fs.call("GET", "b/{}/o/{}", bucket, key, json_out=True)
    except FileNotFoundError:
        return None
    return facts
