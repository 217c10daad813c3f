"""The files that hold the tensors of a checkpoint, and the files that each of several workers writes.

Files are cut by names and sizes alone, so they are the same whichever worker writes them. If workers hold parts of the
tensors, worker k of n takes every n-th file: it keeps only the tensors of its files in a snapshot, writes them, and
leaves a note of their sizes and hashes beside them. The first worker, which commits, waits for the notes of all
workers and puts them into the commit. Workers exchange notes through the storage alone, so threads that save need no
process group.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from data import storage
from data.changes import Changes
from training.errors import StoppedError

SHARD_BYTES = 2 << 30
FIRST_PREFIX, SECOND_PREFIX, LOSS_NAME = "first.", "second.", "loss_statistics"
STATISTICS_BYTES = 12
NOTE_PREFIX = "WRITTEN-"
NOTES_SECONDS = 1800.0
"""Seconds that the first worker waits for the notes of the other workers, which began to write at the same time."""
LOOK_SECONDS = 0.5

Sizes = Mapping[str, int]
"""Bytes of each tensor by `kind/name`; the kinds are model, average and optimizer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writer:
    """A worker that writes its files of a checkpoint."""

    rank: int = 0
    count: int = 1
    """Number of workers that write."""
    attempt: str = ""
    """Name of the attempt, the same for all workers and another one after a restart: notes of dead workers do not
    count."""
    sizes: Sizes | None = None
    """Sizes of the whole state; None: one worker writes all tensors that it is given."""

    def keeps(self, name: str) -> bool:
        """Whether the tensor `kind/name` is in a file of this worker."""
        return self.sizes is None or name in self._kept

    @functools.cached_property
    def _kept(self) -> frozenset[str]:
        return frozenset(name for _, names in self.files(self.sizes or {}) for name in names)

    def files(self, sizes: Sizes) -> list[tuple[str, list[str]]]:
        """(file, its tensors as `kind/name`) for each file of this worker."""
        return plan_files(sizes)[self.rank :: self.count]


def state_sizes(parameters: Sizes, *, average: bool, statistics: bool) -> dict[str, int]:
    """Sizes of a training state (`training/optim.py`) in float32 with parameters of these sizes."""
    prefixes = ["model/", f"optimizer/{FIRST_PREFIX}", f"optimizer/{SECOND_PREFIX}", *(["average/"] if average else [])]
    sizes = {prefix + name: size for prefix in prefixes for name, size in parameters.items()}
    return sizes | ({f"optimizer/{LOSS_NAME}": STATISTICS_BYTES} if statistics else {})


def plan_files(sizes: Sizes) -> list[tuple[str, list[str]]]:
    """(file, its tensors as `kind/name`), by kind and name: at most SHARD_BYTES in a file, or a single tensor."""
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


def leave_note(changes: Changes, directory: str, writer: Writer, files: Mapping[str, Any]) -> None:
    """Leaves a note for the first worker of the files that this worker wrote."""
    note = json.dumps(files, sort_keys=True).encode()
    changes.write(storage.join(directory, f"{NOTE_PREFIX}{writer.attempt}-{writer.rank:05d}"), note)


def collect_notes(directory: str, writer: Writer) -> dict[str, Any]:
    """The files of the other workers, once all are written. Raises StoppedError if some are not after NOTES_SECONDS."""
    wanted = {f"{NOTE_PREFIX}{writer.attempt}-{rank:05d}" for rank in range(1, writer.count)}
    deadline = time.monotonic() + NOTES_SECONDS
    while missing := wanted - {name for name, _ in storage.list_files(directory)}:
        if time.monotonic() > deadline:
            raise StoppedError(
                f"{len(missing)} of {writer.count} workers have not written their files of {directory} after "
                f"{NOTES_SECONDS:g} seconds, so the checkpoint is not committed; look at the workers' logs, and run "
                "the same line again"
            )
        time.sleep(LOOK_SECONDS)
    files: dict[str, Any] = {}
    for name in sorted(wanted):
        files |= json.loads(storage.read_bytes(storage.join(directory, name)))
    return files


def remove_notes(changes: Changes, directory: str) -> None:
    """Removes all notes, those of dead workers too."""
    names: Sequence[str] = [name for name, _ in storage.list_files(directory) if name.startswith(NOTE_PREFIX)]
    for name in names:
        changes.remove(storage.join(directory, name))
