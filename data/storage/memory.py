"""memory://: the memory of this process, which no other process sees. For tests."""

import io
import threading
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from data.storage.store import Store

_lock = threading.Lock()
"""lock of an exclusive create, which looks first and then writes"""


class Memory(Store):
    """fsspec's files in memory."""

    protocols = ("memory",)
    example = "memory://path"
    shared = False

    def filesystem(self, uri: str) -> tuple[Any, str]:
        fs = fsspec.filesystem("memory")
        return fs, fs._strip_protocol(uri)

    def create_exclusive(self, uri: str, data: bytes) -> None:
        fs, path = self.filesystem(uri)
        with _lock:
            if fs.exists(path):
                raise FileExistsError(f"{uri} exists")
            fs.pipe_file(path, data)

    def open_input(self, uri: str) -> BinaryIO:
        return io.BytesIO(self.read_bytes(uri))  # fsspec's file has one position for all readers

    def download(self, uri: str, local_path: str | Path) -> None:
        Path(local_path).write_bytes(self.read_bytes(uri))
