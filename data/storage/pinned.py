"""URIs with a fingerprint of the bytes that are meant, so that other bytes under the same name are refused.

A `Pinned` is a URI like any other: it is passed on, compared and printed as one. `read_bytes` and `open_pinned` of this
package check what it names. The fingerprint is a sha256, or generation and crc32c of an object of gs://, whose requests
then name the generation.
"""

import hashlib
import io
import re
from typing import Any, BinaryIO, cast

from data.errors import UserError

_SHA256 = re.compile("[0-9a-f]{64}")
_PIECE_BYTES = 1 << 16


class Pinned(str):
    """The URI of an object, and the fingerprint (`storage.content`) of its bytes."""

    content: str

    def __new__(cls, uri: str, content: str) -> "Pinned":
        pinned = super().__new__(cls, uri)
        pinned.content = content
        return pinned

    def __getnewargs__(self) -> tuple[Any, ...]:
        return str(self), self.content

    def refused(self, difference: str) -> UserError:
        """The error for other bytes under this URI; `difference` says what was found."""
        return UserError(
            f"{self} changed after the run began ({difference}, and its fingerprint is {self.content[:16]}): run the "
            "same line again once nothing writes to it"
        )


def generation_of(uri: str) -> str | None:
    """The generation of gs:// that a URI is pinned to; None for other URIs."""
    if isinstance(uri, Pinned) and not _SHA256.fullmatch(uri.content):
        return uri.content.partition("-")[0]
    return None


def sha256_of(uri: str) -> str | None:
    """The sha256 that a URI is pinned to; None for other URIs."""
    return uri.content if isinstance(uri, Pinned) and _SHA256.fullmatch(uri.content) else None


def check(uri: str, data: bytes) -> bytes:
    """The bytes, all of an object. Raises UserError if the URI is pinned to bytes with another sha256."""
    wanted = sha256_of(uri)
    if wanted is not None and (sha256 := hashlib.sha256(data).hexdigest()) != wanted:
        raise cast(Pinned, uri).refused(f"got {len(data):,} bytes with sha256 {sha256[:16]}")
    return data


class Hashed(io.RawIOBase):
    """The bytes of a file, hashed as they are read.

    A reader that jumps is followed: what it left out is read and hashed at the end.
    """

    def __init__(self, uri: Pinned, raw: BinaryIO) -> None:
        self.uri, self.raw = uri, raw
        self._digest, self._hashed, self._place = hashlib.sha256(), 0, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = self.raw.seek(offset, whence)
        return self._place

    def readinto(self, buffer: Any) -> int:
        count: int = cast(Any, self.raw).readinto(buffer)  # every file of a store has it
        skip = self._hashed - self._place
        if 0 <= skip < count:
            self._digest.update(memoryview(buffer)[skip:count])
            self._hashed += count - skip
        self._place += count
        return count

    def finish(self) -> None:
        """Raises UserError if the whole file has another sha256 than its URI is pinned to."""
        self.raw.seek(self._hashed)
        while piece := self.raw.read(_PIECE_BYTES):
            self._digest.update(piece)
            self._hashed += len(piece)
        if (sha256 := self._digest.hexdigest()) != self.uri.content:
            raise self.uri.refused(f"got {self._hashed:,} bytes with sha256 {sha256[:16]}")
