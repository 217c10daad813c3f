"""Which row of which dataset is trained on at which step: a pure function, the same for any number of workers.

    (datasets, mixture weights by step, global batch, seed, step) -> [(dataset, shard, row)]

Each step has `global_batch` slots. A phase repeats a fixed pattern of 65,536 slots, which says which dataset gives the
row of a slot. A prefix count over the pattern says how many rows the dataset has given before, so row n of a dataset is
found in one step. Row n belongs to epoch n // rows. Epoch 0 takes the rows as they were written (they were shuffled
then). Later epochs take the row groups in an order drawn by the seed, and the rows of a group in order. A change of
weights changes the pattern, but not the order in which a dataset gives its rows: no row is skipped or repeated.

Cost: O(global_batch) for any step, and O(row groups) once for each dataset and epoch after the first.
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
"""slots in the mixture pattern, so weights are exact to 1/65536"""
_EPOCHS_KEPT = 2  # orders of row groups kept for each dataset: a batch may be in two epochs


@dataclass(frozen=True, kw_only=True)
class SequenceDataset:
    """A packed dataset as names and numbers, without its files."""

    name: str
    """name in mixture weights and in the lineage"""
    shard_rows: tuple[int, ...]
    """rows in each shard, in the manifest's order"""
    row_group_rows: int
    """rows in each Parquet row group (the last of a shard may have fewer)"""

    def __post_init__(self) -> None:
        if self.row_group_rows < 1:
            raise UserError(f"got row_group_rows={self.row_group_rows} for dataset {self.name!r}; give at least 1")
        if min(self.shard_rows, default=0) < 0:
            raise UserError(f"got a shard of {min(self.shard_rows)} rows in dataset {self.name!r}; give 0 or more")

    @property
    def rows(self) -> int:
        return sum(self.shard_rows)


@dataclass(frozen=True, kw_only=True)
class MixturePhase:
    """The share of the rows that each dataset gives, from a step on."""

    start_step: int
    """first step of the phase, which lasts until the next phase begins"""
    weights: tuple[tuple[str, float], ...]
    """(dataset name, weight) of each dataset that gives rows; weights need not sum to 1"""


class RowRef(NamedTuple):
    """A row of packed tokens."""

    dataset: int
    """number of the dataset in `Order.datasets`"""
    shard: int
    """number of the shard in the dataset"""
    row: int
    """number of the row in the shard"""


class Order:
    """Random access to the order of rows. Steps count from 0: a checkpoint at step s follows steps 0 to s - 1.

    Raises UserError if the phases do not start at step 0 and ascend, or name a dataset that is missing or empty.
    """

    def __init__(
        self, datasets: Sequence[SequenceDataset], phases: Sequence[MixturePhase], global_batch: int, seed: int
    ) -> None:
        self.datasets = tuple(datasets)
        self.phases = tuple(phases)
        self.global_batch = global_batch
        self.seed = seed
        if global_batch < 1:
            raise UserError(f"got global_batch={global_batch}; a step needs at least 1 row: give 1 or more")
        names = [dataset.name for dataset in self.datasets]
        if len(set(names)) < len(names):
            raise UserError(f"got datasets {names}; each dataset needs its own name: rename one of them")
        starts = [phase.start_step for phase in self.phases]
        if not starts or starts[0] != 0 or any(a >= b for a, b in pairwise(starts)):
            raise UserError(f"got phases that start at steps {starts}; start the first at 0 and each after the last")
        self._patterns = [_Pattern(_integer_weights(phase, self.datasets)) for phase in self.phases]
        # rows that each dataset has given before each phase
        self._used = [np.zeros(len(names), np.int64)]
        for index, start in enumerate(starts[1:]):
            slots = (start - starts[index]) * global_batch
            self._used.append(self._used[index] + self._patterns[index].counts(slots))
        shard_rows = [np.array(dataset.shard_rows, np.int64) for dataset in self.datasets]
        self._shard_begins = [np.cumsum(rows) - rows for rows in shard_rows]
        self._permutations: dict[tuple[int, int], _PermutedGroups] = {}

    def rows(self, step: int) -> list[RowRef]:
        """The `global_batch` rows of a step, in slot order."""
        return [RowRef(*row) for row in self.row_array(step).tolist()]

    def worker_rows(self, step: int, rank: int, world_size: int) -> list[RowRef]:
        """The contiguous part of `rows(step)` that one worker takes. Raises UserError for an uneven split."""
        if self.global_batch % world_size or not 0 <= rank < world_size:
            raise UserError(
                f"got rank {rank} of {world_size} workers for a global batch of {self.global_batch}; ranks go from 0 "
                "to workers - 1, and the number of workers must divide the global batch: change one of the two"
            )
        part = self.global_batch // world_size
        return [RowRef(*row) for row in self.row_array(step)[rank * part : (rank + 1) * part].tolist()]

    def rows_used(self, step: int) -> list[int]:
        """Number of rows that each dataset has given before `step`. An epoch is all rows of the dataset once."""
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
    """The dataset that gives the row of each of PERIOD slots, with the slots of a dataset evenly spaced.

    Row k of a dataset of weight w is due at (k + 1/2) / w, and rows take slots in the order in which they are due. With
    D datasets, each has given its share to within 1/2 + D/2 rows after any number of slots, and exactly after PERIOD.
    """

    def __init__(self, weights: list[int]) -> None:
        due = np.concatenate([(np.arange(weight) + 0.5) / max(weight, 1) for weight in weights])
        datasets = np.repeat(np.arange(len(weights)), weights)
        self._datasets = datasets[np.lexsort((datasets, due))].astype(np.int32)
        self._weights = np.array(weights, np.int64)
        # [PERIOD + 1, datasets]: number of slots of each dataset among the first n
        self._prefix = np.zeros((PERIOD + 1, len(weights)), np.int32)
        np.cumsum(self._datasets[:, None] == np.arange(len(weights)), axis=0, out=self._prefix[1:])

    def choose(self, slots: np.ndarray) -> np.ndarray:
        return self._datasets[slots % PERIOD]

    def counts(self, slots: np.ndarray | int, dataset: int | slice = slice(None)) -> np.ndarray:
        """Number of slots of the dataset, or of every dataset, among the first `slots` slots."""
        whole, rest = np.divmod(slots, PERIOD)
        return whole * self._weights[dataset] + self._prefix[rest, dataset]


class _PermutedGroups:
    """The row groups of a dataset in the order of one epoch."""

    def __init__(self, dataset: SequenceDataset, epoch: int, seed: int) -> None:
        shard_rows = np.array(dataset.shard_rows, np.int64)
        groups = -(-shard_rows // dataset.row_group_rows)
        shard = np.repeat(np.arange(len(groups)), groups)
        start = (np.arange(len(shard)) - np.repeat(np.cumsum(groups) - groups, groups)) * dataset.row_group_rows
        # By name, not by number: adding a dataset to the mixture changes nothing here.
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

    Written here because NumPy does not promise that the next version of a generator gives the same numbers.
    """
    z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _integer_weights(phase: MixturePhase, datasets: Sequence[SequenceDataset]) -> list[int]:
    """The weights of all datasets in units of 1/PERIOD, with the sum PERIOD (the largest remainders are rounded up)."""
    where = f"the phase from step {phase.start_step}"
    weights = dict(phase.weights)
    rows = {dataset.name: dataset.rows for dataset in datasets}
    if len(weights) < len(phase.weights):
        raise UserError(f"{where} names a dataset twice: {[name for name, _ in phase.weights]}; give each one weight")
    if unknown := sorted(weights.keys() - rows.keys()):
        raise UserError(f"{where} names unknown datasets {unknown}; there are {sorted(rows)}: name one of them")
    if any(not (math.isfinite(weight) and weight >= 0) for weight in weights.values()) or not any(weights.values()):
        raise UserError(f"{where} has weights {weights}; give finite weights of 0 or more, with one above 0")
    if empty := sorted(name for name, weight in weights.items() if weight and not rows[name]):
        raise UserError(f"{where} takes rows from {empty}, which have no rows; leave them out or fill them")
    total = math.fsum(weights.values())
    shares = [weights.get(dataset.name, 0.0) / total * PERIOD for dataset in datasets]
    rounded = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: (rounded[i] - shares[i], i))
    for i in by_remainder[: PERIOD - sum(rounded)]:
        rounded[i] += 1
    if lost := [d.name for d, share, units in zip(datasets, shares, rounded, strict=True) if share and not units]:
        raise UserError(f"{where} gives {lost} less than 1/{PERIOD} of the rows; raise the weight or set it to 0")
    return rounded
