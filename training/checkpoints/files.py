"""Which files hold the tensors of a checkpoint, and who of several workers writes which.

Files are cut by names and sizes alone, so they are the same whoever writes them. Where workers hold parts of the
tensors each takes every n-th file: it keeps only those tensors of a snapshot, writes them, and leaves a note of their
sizes and hashes beside them. The first worker, who commits, waits for the notes of all; they go with the commit.
Nothing but the storage is between them, so threads that save need no group of their own.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from data import storage
from training.errors import StoppedError

SHARD_BYTES = 2 << 30
FIRST_PREFIX, SECOND_PREFIX, LOSS_NAME = "first.", "second.", "loss_statistics"
STATISTICS_BYTES = 12
NOTE_PREFIX = "WRITTEN-"
NOTES_SECONDS = 1800.0
"""that the first worker waits for the others, who began to write when it did"""
LOOK_SECONDS = 0.5

Sizes = Mapping[str, int]
"""bytes of each tensor by `kind/name`, the kinds being model, average and optimizer"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writer:
    """A worker that writes its files of a checkpoint."""

    rank: int = 0
    count: int = 1
    """workers that write"""
    attempt: str = ""
    """the same for all of them, and another one after a restart: a note of workers that died counts for nothing"""
    sizes: Sizes | None = None
    """of the whole state; None where one writes all that it is given"""

    def keeps(self, name: str) -> bool:
        """Whether the tensor `kind/name` is in a file of this worker."""
        return self.sizes is None or name in self._kept

    @functools.cached_property
    def _kept(self) -> frozenset[str]:
        return frozenset(name for _, names in self.files(self.sizes or {}) for name in names)

    def files(self, sizes: Sizes) -> list[tuple[str, list[str]]]:
        """(file, its tensors as `kind/name`) of this worker."""
        return plan_files(sizes)[self.rank :: self.count]


def state_sizes(parameters: Sizes, *, average: bool, statistics: bool) -> dict[str, int]:
    """Of a training state (`training/optim.py`) in float32 with parameters of these sizes."""
    prefixes = ["model/", f"optimizer/{FIRST_PREFIX}", f"optimizer/{SECOND_PREFIX}", *(["average/"] if average else [])]
    sizes = {prefix + name: size for prefix in prefixes for name, size in parameters.items()}
    return sizes | ({f"optimizer/{LOSS_NAME}": STATISTICS_BYTES} if statistics else {})


def plan_files(sizes: Sizes) -> list[tuple[str, list[str]]]:
    """(file, its tensors as `kind/name`): by kind and name, at most SHARD_BYTES in a file, or one tensor."""
    files = []
    for kind in sorted({name.partition("/")[0] for name in sizes}):
        shards: list[list[str]] = [[]]
        room = SHARD_BYTES
        for name in sorted(name for name in sizes if name.startswith(f"{kind}/")):
            if sizes[name] > room and shards[-1]:
                shards.append([])
                room = SHARD_BYTES
            shards[-1].append(name)
            room -= sizes[name]
        for index, names in enumerate(shards):
            number = "" if len(shards) == 1 else f"-{index + 1:05d}-of-{len(shards):05d}"
            files.append((f"{kind}{number}.safetensors", names))
    return files


def leave_note(directory: str, writer: Writer, files: Mapping[str, Any]) -> None:
    """For the first worker: what this one wrote."""
    note = json.dumps(files, sort_keys=True).encode()
    storage.write_bytes(storage.join(directory, f"{NOTE_PREFIX}{writer.attempt}-{writer.rank:05d}"), note)


def collect_notes(directory: str, writer: Writer) -> dict[str, Any]:
    """What the other workers wrote, when all have. Raises StoppedError if some have not after NOTES_SECONDS."""
    wanted = {f"{NOTE_PREFIX}{writer.attempt}-{rank:05d}" for rank in range(1, writer.count)}
    deadline = time.monotonic() + NOTES_SECONDS
    while missing := wanted - {name for name, _ in storage.list_files(directory)}:
        if time.monotonic() > deadline:
            raise StoppedError(
                f"{len(missing)} of {writer.count} workers have not written their files of {directory} after "
                f"{NOTES_SECONDS:g} s; its checkpoint is not committed: look at the workers' logs, and run the "
                "same line again"
            )
        time.sleep(LOOK_SECONDS)
    files: dict[str, Any] = {}
    for name in sorted(wanted):
        files |= json.loads(storage.read_bytes(storage.join(directory, name)))
    return files


def remove_notes(directory: str) -> None:
    """Also those that workers left who died."""
    names: Sequence[str] = [name for name, _ in storage.list_files(directory) if name.startswith(NOTE_PREFIX)]
    for name in names:
        storage.remove(storage.join(directory, name))
