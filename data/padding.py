"""From the decoded targets of a row, with different numbers of ids, to columns of a batch with one width.

    Ragged -> SPARSE -> target_ids and target_counts, or target_ids, target_log_probs and target_tail   [b, L, K]
    Ragged -> DENSE  -> target_probs                                                                    [b, L, V]

A batch begins with `empty` columns. At its targets, the `columns` of each row then replace them.
"""

from typing import Protocol

import numpy as np

from data.logits import CodecSpec, Ragged

Columns = dict[str, np.ndarray]


class Padding(Protocol):
    """How a batch holds the targets of its rows."""

    def empty(self, spec: CodecSpec, rows: int, length: int, width: int) -> Columns:
        """Columns [rows, length, ...] without any target. `width` is K, the largest number of ids of a target."""

    def columns(self, spec: CodecSpec, targets: Ragged, width: int) -> Columns:
        """The columns of a row's targets, [P, ...]. Raises UserError if a target has more than `width` ids."""


class Sparse:
    """K ids a target: target_ids int32 [b, L, K], and the counts or log-probabilities of the cache.

    Counts are target_counts [b, L, K]: int32, or float32 if they are multiplied by importance weights.
    Log-probabilities are target_log_probs float32 [b, L, K], with target_tail float32 [b, L]. An empty slot has count 0
    or log-probability -inf. A position without a target has only empty slots, and tail 1.
    """

    def empty(self, spec: CodecSpec, rows: int, length: int, width: int) -> Columns:
        shape = (rows, length, width)
        columns: Columns = {"target_ids": np.zeros(shape, np.int32)}
        if spec.counted:
            columns["target_counts"] = np.zeros(shape, np.float32 if spec.weighted else np.int32)
        else:
            columns["target_log_probs"] = np.full(shape, -np.inf, np.float32)
            columns["target_tail"] = np.ones((rows, length), np.float32)
        return columns

    def columns(self, spec: CodecSpec, targets: Ragged, width: int) -> Columns:
        columns = targets.padded(width)
        if spec.weighted:
            columns["target_counts"] = columns["target_counts"] * np.exp(columns.pop("target_log_weights"))
        return columns


class Dense:
    """The probability of every id: target_probs float32 [b, L, V], 0 at a position without a target."""

    def empty(self, spec: CodecSpec, rows: int, length: int, width: int) -> Columns:
        return {"target_probs": np.zeros((rows, length, spec.vocab_size), np.float32)}

    def columns(self, spec: CodecSpec, targets: Ragged, width: int) -> Columns:
        assert targets.log_values is not None
        probs = np.zeros((len(targets.unique), spec.vocab_size), np.float32)
        probs[np.repeat(np.arange(len(probs)), targets.unique), targets.ids] = np.exp(targets.log_values)
        return {"target_probs": probs}


SPARSE, DENSE = Sparse(), Dense()
