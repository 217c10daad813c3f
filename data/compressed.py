"""Compressed streams and long lines, read in bounded memory: gzip, zstd, bzip2 and xz, with a guard against bombs.

A stream that has given more than EXPANSION times its compressed size, and more than FREE_BYTES, raises an error. Text
does not compress that well, and the content of such a stream could fill a disk.
"""

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import zstandard

from data.errors import UserError

EXPANSION = 200
FREE_BYTES = 256 << 20
SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
_SKIP_BYTES = 1 << 20
LARGEST_WINDOW = 1 << 31
"""window of `zstd --long=31`, in bytes: a file that was made so needs as much memory, all others a few MiB"""
BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
"""exceptions that a broken stream raises, in any of its layers"""


class Expansion:
    """Counts compressed and decompressed bytes. Raises UserError if a stream expands more than text does."""

    def __init__(self, name: str, read: Callable[[], int]) -> None:
        """`read` returns the number of compressed bytes that were read so far."""
        self.name, self.read, self.given = name, read, 0

    def add(self, count: int) -> None:
        self.given += count
        if self.given > FREE_BYTES and self.given > EXPANSION * max(self.read(), 1):
            raise UserError(
                f"{self.name} expands more than {EXPANSION} times ({self.given:,} bytes so far): that is a "
                "decompression bomb and no text; leave it out with --exclude"
            )


def open_stream(name: str, raw: BinaryIO) -> BinaryIO:
    """A stream of the content of a file, decompressed as the ending of its name says."""
    name = name.lower()
    if name.endswith(".bz2"):
        return io.BufferedReader(_Guarded(bz2.BZ2File(raw), name, raw), 1 << 16)
    if name.endswith(".xz"):
        return io.BufferedReader(_Guarded(lzma.LZMAFile(raw), name, raw), 1 << 16)
    if name.endswith(".gz"):
        # gzip reads all members of a concatenated file, and _ZstdStream reads all frames
        return io.BufferedReader(_Guarded(gzip.GzipFile(fileobj=raw), name, raw), 1 << 16)
    if name.endswith(".zst"):
        return io.BufferedReader(_Guarded(_ZstdStream(raw), name, raw), 1 << 16)
    # files in buckets have no readline with a limit
    return raw if hasattr(raw, "peek") else io.BufferedReader(raw, 1 << 16)  # type: ignore[type-var]


def bounded_lines(stream: BinaryIO, most_bytes: int) -> Iterator[tuple[bytes, int]]:
    """(line, its length) for every line. A line of more than `most_bytes` is cut to its beginning."""
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
    """The bytes of `content`, counted against the compressed bytes that were read from `raw`."""

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
    """The content of all frames of a zstd file. A cut frame is an EOFError (zstandard's own reader ends quietly)."""

    def __init__(self, raw: BinaryIO) -> None:
        self.raw = raw
        self.frame: Any = None
        self.compressed = b""
        self.content = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.content:
            # 8 KiB at a time: the result is held in memory whole, and a bomb expands some ten thousand times
            self.compressed = self.compressed or self.raw.read(1 << 13)
            if not self.compressed:
                if self.frame is not None:
                    raise EOFError("the last zstd frame is not complete")
                return 0
            self.frame = self.frame or zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW).decompressobj()
            self.content = memoryview(self.frame.decompress(self.compressed))
            self.compressed = b""
            if self.frame.eof:
                self.compressed, self.frame = self.frame.unused_data, None
        count = min(len(buffer), len(self.content))
        buffer[:count], self.content = self.content[:count], self.content[count:]
        return count


_MAGIC = {b"PAR1": "Parquet", b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip", b"%PDF": "PDF",
    b"BZh": "bzip2", b"\xfd7zXZ\0": "xz",
}  # fmt: skip
_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
"""frame that pzstd writes first: it holds a size and no content"""
_COMPRESSED = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd", ".bz2": b"BZh", ".xz": b"\xfd7zXZ\0"}


def refuse_other_kind(name: str, beginning: bytes) -> None:
    """Raises UserError if the first bytes of a file with JSON are those of another format than its name says."""
    suffix = name[name.rfind(".") :].lower()
    allowed = _COMPRESSED.get(suffix)
    if suffix == ".zst" and _SKIPPABLE.match(beginning):
        return
    for magic, kind in _MAGIC.items():
        if beginning.startswith(magic) and magic != allowed:
            raise UserError(
                f"{name} is named JSON lines and is a {kind} file; give it its right name, or leave it out with "
                f"--exclude"
            )
    if allowed is not None and beginning and not beginning.startswith(allowed):
        raise UserError(
            f"{name} is not compressed as its name says; give it its right name, or leave it out with --exclude"
        )
