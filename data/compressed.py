"""Compressed streams and long lines, read in bounded memory: gzip and zstd, with a guard against bombs.

A stream that has given more than EXPANSION times its compressed size, and more than FREE_BYTES, is an error: text does
not compress like that, and whatever it is would fill a disk.
"""

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import zstandard

from data.errors import UserError

EXPANSION = 200
FREE_BYTES = 256 << 20
SUFFIXES = (".gz", ".zst")
_SKIP_BYTES = 1 << 20
BROKEN = (OSError, EOFError, zlib.error, zstandard.ZstdError)
"""what a broken stream raises, in any of its layers"""


class Expansion:
    """Counts bytes in and out. Raises UserError where a stream gives far too many for what it is."""

    def __init__(self, name: str, read: Callable[[], int]) -> None:
        """`read` tells how many compressed bytes were taken so far."""
        self.name, self.read, self.given = name, read, 0

    def add(self, count: int) -> None:
        self.given += count
        if self.given > FREE_BYTES and self.given > EXPANSION * max(self.read(), 1):
            raise UserError(
                f"{self.name} expands more than {EXPANSION} times ({self.given:,} bytes so far): that is a "
                "decompression bomb and no text; leave it out with --exclude"
            )


def open_stream(name: str, raw: BinaryIO) -> BinaryIO:
    """The content of a file, decompressed as its name says: a stream to read lines and bytes from."""
    if name.endswith(".gz"):
        # gzip reads file after file where several were concatenated, and so do we for zstd
        return io.BufferedReader(_Guarded(gzip.GzipFile(fileobj=raw), name, raw), 1 << 16)
    if name.endswith(".zst"):
        return io.BufferedReader(_Guarded(_ZstdStream(raw), name, raw), 1 << 16)
    # files of buckets have no readline with a limit
    return raw if hasattr(raw, "peek") else io.BufferedReader(raw, 1 << 16)  # type: ignore[type-var]


def bounded_lines(stream: BinaryIO, most_bytes: int) -> Iterator[tuple[bytes, int]]:
    """(line, its length) for every line; of a line of more than `most_bytes`, only its beginning is kept."""
    while line := stream.readline(most_bytes + 1):
        length = len(line)
        if length > most_bytes and not line.endswith(b"\n"):
            line = line[:4096]
            while rest := stream.readline(_SKIP_BYTES):
                length += len(rest)
                if rest.endswith(b"\n"):
                    break
        yield line, length


class _Guarded(io.RawIOBase):
    """What `content` gives, counted against what was taken from `raw`."""

    def __init__(self, content: Any, name: str, raw: BinaryIO) -> None:
        self.content = content
        self.expansion = Expansion(name, raw.tell)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = int(self.content.readinto(buffer))
        self.expansion.add(count)
        return count


class _ZstdStream(io.RawIOBase):
    """The content of all frames of a zstd file; EOFError where one is cut (zstandard's own reader ends quietly)."""

    def __init__(self, raw: BinaryIO) -> None:
        self.raw = raw
        self.frame: Any = None
        self.compressed = b""
        self.content = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.content:
            # little at a time: what comes of it is held whole, and a bomb expands it some ten thousand times
            self.compressed = self.compressed or self.raw.read(1 << 13)
            if not self.compressed:
                if self.frame is not None:
                    raise EOFError("the last zstd frame is not complete")
                return 0
            self.frame = self.frame or zstandard.ZstdDecompressor().decompressobj()
            self.content = memoryview(self.frame.decompress(self.compressed))
            self.compressed = b""
            if self.frame.eof:
                self.compressed, self.frame = self.frame.unused_data, None
        count = min(len(buffer), len(self.content))
        buffer[:count], self.content = self.content[:count], self.content[count:]
        return count
