"""Which row of which dataset is trained on at which step: a pure function, the same for any number of workers.

    (datasets, mixture weights by step, global batch, seed, step) -> [(dataset, shard, row)]

Each step has `global_batch` slots. Within a phase a fixed pattern of 65,536 slots, repeated, says which dataset a slot
takes from; a prefix count over the pattern says how many rows of that dataset went before, so the n-th row that it ever
gives is known without walking. Row n belongs to epoch n // rows: epoch 0 goes through the rows as they were written
(they were shuffled then), later epochs through the row groups in an order drawn by the seed, rows in order within each.
A change of weights changes the pattern, never a dataset's own sequence: no row is skipped or repeated.

Cost: O(global_batch) a step, whatever the step; O(row groups) once per dataset and epoch after the first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import xxhash

from data.errors import UserError

PERIOD = 65_536
"""slots in the mixture pattern: weights are exact to 1/65536"""
_EPOCHS_KEPT = 2  # of permuted row groups, for each dataset: a batch may straddle two


@dataclass(frozen=True, kw_only=True)
class SequenceDataset:
    """A packed dataset as the order sees it: names and numbers, no files."""

    name: str
    """what mixture weights and lineage call it"""
    shard_rows: tuple[int, ...]
    """rows in each shard, in the manifest's order"""
    row_group_rows: int
    """rows in each Parquet row group (the last of a shard may have fewer)"""

    def __post_init__(self) -> None:
        if self.row_group_rows < 1:
            raise UserError(f"dataset {self.name!r}: got row_group_rows={self.row_group_rows}; it must be at least 1")
        if min(self.shard_rows, default=0) < 0:
            raise UserError(f"dataset {self.name!r}: a shard cannot have {min(self.shard_rows)} rows")

    @property
    def rows(self) -> int:
        return sum(self.shard_rows)


@dataclass(frozen=True, kw_only=True)
class MixturePhase:
    """From which step on which share of the rows comes from which dataset."""

    start_step: int
    """first step of the phase; it lasts until the next one begins"""
    weights: tuple[tuple[str, float], ...]
    """(dataset name, weight); weights need not sum to 1; a dataset that is not named gives no rows"""


class RowRef(NamedTuple):
    """A row of packed tokens."""

    dataset: int
    """number of the dataset in `Order.datasets`"""
    shard: int
    """number of the shard in the dataset"""
    row: int
    """number of the row in the shard"""


class Order:
    """Random access to the order of rows. Steps count from 0: a checkpoint at step s has seen steps 0 to s - 1.

    Raises UserError where the phases do not start at step 0 and ascend, or name a dataset that is missing or empty.
    """

    def __init__(
        self, datasets: Sequence[SequenceDataset], phases: Sequence[MixturePhase], global_batch: int, seed: int
    ) -> None:
        self.datasets = tuple(datasets)
        self.phases = tuple(phases)
        self.global_batch = global_batch
        self.seed = seed
        if global_batch < 1:
            raise UserError(f"got global_batch={global_batch}; a step needs at least 1 row")
        names = [dataset.name for dataset in self.datasets]
        if len(set(names)) < len(names):
            raise UserError(f"got datasets {names}; each needs a name of its own")
        starts = [phase.start_step for phase in self.phases]
        if not starts or starts[0] != 0 or any(a >= b for a, b in pairwise(starts)):
            raise UserError(
                f"got phases that start at steps {starts}; the first must start at 0 and each after the last"
            )
        self._patterns = [_Pattern(_integer_weights(phase, self.datasets)) for phase in self.phases]
        # rows of each dataset used before each phase
        self._used = [np.zeros(len(names), np.int64)]
        for index, start in enumerate(starts[1:]):
            slots = (start - starts[index]) * global_batch
            self._used.append(self._used[index] + self._patterns[index].counts(slots))
        shard_rows = [np.array(dataset.shard_rows, np.int64) for dataset in self.datasets]
        self._shard_begins = [np.cumsum(rows) - rows for rows in shard_rows]
        self._permutations: dict[tuple[int, int], _PermutedGroups] = {}

    def rows(self, step: int) -> list[RowRef]:
        """The rows of a step, in slot order. Length `global_batch`."""
        return [RowRef(*row) for row in self.row_array(step).tolist()]

    def worker_rows(self, step: int, rank: int, world_size: int) -> list[RowRef]:
        """The contiguous part of `rows(step)` that one worker takes. Raises UserError for an uneven split."""
        if self.global_batch % world_size or not 0 <= rank < world_size:
            raise UserError(
                f"got rank {rank} of {world_size} workers for a global batch of {self.global_batch}: ranks go from 0 "
                "to workers - 1, and the number of workers must divide the global batch; change one of the two"
            )
        part = self.global_batch // world_size
        return [RowRef(*row) for row in self.row_array(step)[rank * part : (rank + 1) * part].tolist()]

    def rows_used(self, step: int) -> list[int]:
        """How many rows each dataset has given before `step` (an epoch is its number of rows)."""
        phase, first_slot = self._locate(step)
        return (self._used[phase] + self._patterns[phase].counts(first_slot)).tolist()

    def row_array(self, step: int) -> np.ndarray:
        """`rows` as int32 [global_batch, 3]: dataset, shard, row."""
        phase, first_slot = self._locate(step)
        slots = np.arange(first_slot, first_slot + self.global_batch, dtype=np.int64)
        chosen = self._patterns[phase].choose(slots)
        refs = np.empty((self.global_batch, 3), np.int32)
        refs[:, 0] = chosen
        for dataset in np.unique(chosen).tolist():
            of_dataset = chosen == dataset
            ordinals = self._used[phase][dataset] + self._patterns[phase].counts(slots[of_dataset], dataset)
            refs[of_dataset, 1:] = self._find(dataset, ordinals)
        return refs

    def _locate(self, step: int) -> tuple[int, int]:
        """The phase of a step and the number of the step's first slot in it."""
        if step < 0:
            raise UserError(f"got step {step}; steps count from 0")
        phase = sum(phase.start_step <= step for phase in self.phases) - 1
        return phase, (step - self.phases[phase].start_step) * self.global_batch

    def _find(self, dataset: int, ordinals: np.ndarray) -> np.ndarray:
        """(shard, row) of the n-th rows that a dataset ever gives, for each n in `ordinals`: int64 [n, 2]."""
        epochs, offsets = np.divmod(ordinals, self.datasets[dataset].rows)
        places = np.empty((len(ordinals), 2), np.int64)
        for epoch in np.unique(epochs).tolist():
            in_epoch = epochs == epoch
            if epoch == 0:
                begins = self._shard_begins[dataset]
                shards = np.searchsorted(begins, offsets[in_epoch], side="right") - 1
                places[in_epoch, 0] = shards
                places[in_epoch, 1] = offsets[in_epoch] - begins[shards]
            else:
                places[in_epoch] = self._permuted(dataset, epoch).find(offsets[in_epoch])
        return places

    def _permuted(self, dataset: int, epoch: int) -> "_PermutedGroups":
        key = (dataset, epoch)
        if key not in self._permutations:
            kept = sorted(old for old in self._permutations if old[0] == dataset)
            for old in kept[: len(kept) + 1 - _EPOCHS_KEPT]:
                del self._permutations[old]
            self._permutations[key] = _PermutedGroups(self.datasets[dataset], epoch, self.seed)
        return self._permutations[key]


class _Pattern:
    """Which dataset each of PERIOD slots takes from, each dataset's slots as evenly spaced as can be.

    The k-th row of a dataset of weight w is due at (k + 1/2) / w; slots go to rows in the order in which they are due.
    So after any number of slots a dataset among D has given its share to within 1/2 + D/2 rows, after PERIOD exactly.
    """

    def __init__(self, weights: list[int]) -> None:
        due = np.concatenate([(np.arange(weight) + 0.5) / max(weight, 1) for weight in weights])
        datasets = np.repeat(np.arange(len(weights)), weights)
        self._datasets = datasets[np.lexsort((datasets, due))].astype(np.int32)
        self._weights = np.array(weights, np.int64)
        # [PERIOD + 1, datasets]: how many of the first n slots each dataset has
        self._prefix = np.zeros((PERIOD + 1, len(weights)), np.int32)
        np.cumsum(self._datasets[:, None] == np.arange(len(weights)), axis=0, out=self._prefix[1:])

    def choose(self, slots: np.ndarray) -> np.ndarray:
        return self._datasets[slots % PERIOD]

    def counts(self, slots: np.ndarray | int, dataset: int | slice = slice(None)) -> np.ndarray:
        """How many of the first `slots` slots the dataset has; of all datasets where none is named."""
        whole, rest = np.divmod(slots, PERIOD)
        return whole * self._weights[dataset] + self._prefix[rest, dataset]


class _PermutedGroups:
    """The row groups of a dataset in the order of one epoch."""

    def __init__(self, dataset: SequenceDataset, epoch: int, seed: int) -> None:
        shard_rows = np.array(dataset.shard_rows, np.int64)
        groups = -(-shard_rows // dataset.row_group_rows)
        shard = np.repeat(np.arange(len(groups)), groups)
        start = (np.arange(len(shard)) - np.repeat(np.cumsum(groups) - groups, groups)) * dataset.row_group_rows
        # By name, not by number: another dataset in the mixture changes nothing here.
        stream = xxhash.xxh3_64_intdigest(f"{seed}/{epoch}/{dataset.name}".encode())
        order = np.argsort(splitmix64(stream, len(shard)), kind="stable")
        self._shard, self._start = shard[order], start[order]
        rows = np.minimum(dataset.row_group_rows, shard_rows[self._shard] - self._start)
        self._ends = np.cumsum(rows)
        self._begins = self._ends - rows

    def find(self, offsets: np.ndarray) -> np.ndarray:
        place = np.searchsorted(self._ends, offsets, side="right")
        return np.stack([self._shard[place], self._start[place] + offsets - self._begins[place]], axis=1)


def splitmix64(seed: int, count: int) -> np.ndarray:
    """`count` outputs of SplitMix64 (Steele, Lea, Flood 2014), uint64.

    Ours, because NumPy does not promise that its generators give the same numbers in its next version.
    """
    z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _integer_weights(phase: MixturePhase, datasets: Sequence[SequenceDataset]) -> list[int]:
    """The weights of all datasets in units of 1/PERIOD, summing to PERIOD (largest remainders are rounded up)."""
    where = f"the phase from step {phase.start_step}"
    weights = dict(phase.weights)
    rows = {dataset.name: dataset.rows for dataset in datasets}
    if len(weights) < len(phase.weights):
        raise UserError(f"{where} names a dataset twice: {[name for name, _ in phase.weights]}; give each one weight")
    if unknown := sorted(weights.keys() - rows.keys()):
        raise UserError(f"{where} names unknown datasets {unknown}; there are {sorted(rows)}")
    if any(not (math.isfinite(weight) and weight >= 0) for weight in weights.values()) or not any(weights.values()):
        raise UserError(f"{where} has weights {weights}; they must be 0 or more, finite, and one of them above 0")
    if empty := sorted(name for name, weight in weights.items() if weight and not rows[name]):
        raise UserError(f"{where} takes rows from {empty}, which hold none; leave them out or fill them")
    total = math.fsum(weights.values())
    shares = [weights.get(dataset.name, 0.0) / total * PERIOD for dataset in datasets]
    rounded = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: (rounded[i] - shares[i], i))
    for i in by_remainder[: PERIOD - sum(rounded)]:
        rounded[i] += 1
    if lost := [d.name for d, share, units in zip(datasets, shares, rounded, strict=True) if share and not units]:
        raise UserError(f"{where} gives {lost} less than 1/{PERIOD} of the rows; raise the weight or set it to 0")
    return rounded
