"""The bytes of a cached teacher distribution: for each target, the kept ids and their counts or log-probabilities.

    target_ids, target_counts [P, K]                       <->  unique, symbols, bits             of a row
    the above and target_log_weights [P, K]                <->  unique, symbols, bits, high, low
    target_ids, target_log_probs [P, K], target_tail [P]   <->  unique, symbols, bits, high, low

Nothing here depends on the kind of distribution (training/distill/kinds/), only on what a kind keeps beside the ids.
That is counts, with or without weights, or log-probabilities with the mass of all other ids.

Ids are replaced by their rank in the shard's `Ranking`: the order of ids by frequency in the packed rows, which is
known before the teacher runs. The ranks of a target ascend and are stored as gaps. A gap g has a symbol of one byte,
which holds e = floor(log2 g) and a count of up to 7; zstd, inside Parquet, then spends fewer bits on frequent symbols.
The e lower bits of g, and counts of 8 and more, go to a bit stream, since they are as good as random. Logarithms are
stored in units of 2^-10 nats, with each of their two bytes in a column of its own.

Cost: 1.4 bytes a stored id at Gemma's 256,000 ids and the 12 different ids that 50 draws find (docs/logits.md has the
bounds), against 3 bytes for 18 + 6 bits. Encoding and decoding run at 5 M ids/s a core.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data.absent import absent
from data.errors import UserError

EXPONENT_BITS = 5
"""bits of a symbol that hold the exponent of the gap; the other three bits hold the count"""
FULL_COUNT = 8
"""smallest count that is stored in the bit stream"""
LOG_UNIT = 2.0**-10
"""unit of a stored logarithm, in nats; rounding is off by at most half a unit"""
LAST_UNIT = 2**16 - 1
"""stored logarithm of a tail without mass"""
LOG_WEIGHT_SPAN = 32.0
"""largest absolute value of the logarithm of an importance weight, in nats"""
PLANES = ("unique", "symbols", "bits", "high", "low")
"""columns of a row in the cache, besides its sequence_hash"""

Columns = Mapping[str, bytes | memoryview]
Targets = dict[str, np.ndarray]
"""P targets, by the names of a batch's columns: target_ids int32 [P, K], and counts or log-probabilities. Counts are
target_counts int32 [P, K], 0 in an empty slot, with target_log_weights float32 [P, K] if draws are weighted.
Log-probabilities are target_log_probs float32 [P, K], -inf in an empty slot, with target_tail float32 [P]."""


@dataclass(frozen=True, kw_only=True)
class CodecSpec:
    """How to read a cache, and what its numbers mean."""

    vocab_size: int
    """number of ids, which go from 0 to vocab_size - 1"""
    estimator: str
    """name of the kind of distribution (training/distill/kinds/); the bytes do not depend on it"""
    draws: int | None = absent(None)
    """draws from the teacher at each target, the sum of its counts; None: ids have log-probabilities, not counts"""
    weighted: bool = absent(False)
    """whether each count has an importance weight"""
    temperature: float = 1.0
    """temperature of the distribution, the teacher's softmax(logits / temperature)"""

    def __post_init__(self) -> None:
        if not 2 <= self.vocab_size <= 2**31:
            raise UserError(f"got vocab_size={self.vocab_size}; allowed are 2 to 2**31: give the tokenizer's size")
        if self.draws is not None and not 1 <= self.draws < 2**16:
            raise UserError(f"got draws={self.draws}; allowed are 1 to {2**16 - 1}: choose a number in that range")
        if self.weighted and self.draws is None:
            raise UserError("got weighted=True and draws=None; only draws have importance weights: give draws")

    @property
    def counted(self) -> bool:
        """Whether ids have counts. Otherwise ids have log-probabilities, and each target has a tail."""
        return self.draws is not None

    @property
    def count_bits(self) -> int:
        """Width of a count in the bit stream, in bits."""
        return 0 if self.draws is None else self.draws.bit_length()

    @property
    def unique_type(self) -> str:
        """NumPy type of the number of ids at a target."""
        most = self.vocab_size if self.draws is None else self.draws
        return "u1" if most < 2**8 else "<u2" if most < 2**16 else "<u4"

    @property
    def has_values(self) -> bool:
        """Whether logarithms are stored beside the ids."""
        return not self.counted or self.weighted


class Ranking:
    """The ids of a vocabulary by falling frequency in a shard's rows. Ids that do not occur come last, in order."""

    def __init__(self, listed: np.ndarray, vocab_size: int) -> None:
        """`listed`: the ids that occur in the shard, most frequent first.

        Raises UserError for an id that is listed twice or is outside the vocabulary.
        """
        self.listed = listed.astype("<i4")
        missing = np.ones(vocab_size, bool)
        if listed.size and not 0 <= listed.min() <= listed.max() < vocab_size:
            raise UserError(f"a ranking of ids {listed.min()} to {listed.max()}; the vocabulary has {vocab_size}")
        missing[listed] = False
        self.ids = np.concatenate([self.listed, np.flatnonzero(missing).astype(np.int32)])
        if len(self.ids) != vocab_size:
            raise UserError("a ranking names an id twice; it is damaged: make the cache again")
        self.ranks = np.empty(vocab_size, np.int32)
        self.ranks[self.ids] = np.arange(vocab_size, dtype=np.int32)

    @staticmethod
    def of_tokens(tokens: np.ndarray, vocab_size: int) -> "Ranking":
        """The ranking of the ids in packed rows of any shape."""
        counts = np.bincount(tokens.ravel(), minlength=vocab_size)
        order = np.argsort(-counts, kind="stable")  # ids with equal counts in rising order
        return Ranking(order[: np.count_nonzero(counts)], vocab_size)

    def to_bytes(self) -> bytes:
        return self.listed.tobytes()

    @staticmethod
    def from_bytes(data: bytes, vocab_size: int) -> "Ranking":
        """Raises UserError for bytes that `to_bytes` has not written."""
        if len(data) % 4:
            raise UserError(
                f"a ranking of {len(data)} bytes, where ids have 4 each; it is damaged: make the cache again"
            )
        return Ranking(np.frombuffer(data, "<i4"), vocab_size)


@dataclass(frozen=True)
class Ragged:
    """The targets of some rows in flat arrays, as `decode` returns them: target t has `unique[t]` ids."""

    unique: np.ndarray
    """number of ids of each target, int64 [P]"""
    ids: np.ndarray
    """ids of all targets, int32 [S]"""
    counts: np.ndarray | None
    """count of each id, int32 [S]; None if ids have log-probabilities"""
    log_values: np.ndarray | None
    """log-probability of each id, or log-weight of its count, float32 [S]; None for counts without weights"""
    tail: np.ndarray | None
    """mass of all other ids at each target, float32 [P]; None if ids have counts"""

    def padded(self, width: int) -> Targets:
        """The targets as columns of a batch, [P, width], and the tail [P].

        Raises UserError if a target has more than `width` ids.
        """
        if len(self.unique) and self.unique.max() > width:
            raise UserError(
                f"got a target with {self.unique.max()} different ids, and max_unique is {width}; raise max_unique"
            )
        filled = np.arange(width) < self.unique[:, None]

        def spread(values: np.ndarray, filling: float = 0) -> np.ndarray:
            out = np.full(filled.shape, filling, values.dtype)
            out[filled] = values
            return out

        columns = {"target_ids": spread(self.ids)}
        if self.counts is not None:
            columns["target_counts"] = spread(self.counts)
            if self.log_values is not None:
                columns["target_log_weights"] = spread(self.log_values)
        else:
            assert self.log_values is not None
            assert self.tail is not None
            columns |= {"target_log_probs": spread(self.log_values, -np.inf), "target_tail": self.tail}
        return columns


def encode(targets: Targets, spec: CodecSpec, ranking: Ranking) -> dict[str, bytes]:
    """The bytes of PLANES for one row's targets, whose ids may be in any order.

    A slot with count 0, or log-probability -inf, is empty. Raises UserError for an id that is outside the vocabulary or
    twice in a target, for counts that do not sum to `draws`, and for probabilities that do not sum to 1.
    """
    ids = targets["target_ids"]
    values = targets["target_counts" if spec.counted else "target_log_probs"]
    if ids.shape != values.shape or ids.ndim != 2:
        raise UserError(f"got ids {ids.shape} and values {values.shape}; both must be [targets, slots]")
    if spec.counted and (values < 0).any():
        raise UserError(f"got a count of {values.min()}; counts are 0 (an empty slot) or more")
    used = values > 0 if spec.counted else values > -np.inf
    if (given := ids[used]).size and not 0 <= given.min() <= given.max() < spec.vocab_size:
        raise UserError(f"got ids {given.min()} to {given.max()}; the vocabulary has 0 to {spec.vocab_size - 1}")
    # empty slots sort behind every rank
    ranks = np.where(used, ranking.ranks[np.where(used, ids, 0)].astype(np.int64), spec.vocab_size)
    order = np.argsort(ranks, axis=1, kind="stable")
    unique = used.sum(axis=1)
    filled = np.arange(ids.shape[1]) < unique[:, None]
    flat_ranks = np.take_along_axis(ranks, order, 1)[filled]
    flat_values = np.take_along_axis(values, order, 1)[filled]
    gaps = np.diff(flat_ranks, prepend=-1)
    starts = np.cumsum(unique) - unique
    if len(unique) and unique.min() < 1:
        raise UserError("got a target without ids; each target needs at least one")
    gaps[starts] = flat_ranks[starts] + 1
    if (gaps < 1).any():
        raise UserError("got an id twice in one target; each id of a target is given once, with its count")

    counts = flat_values.astype(np.int64) if spec.counted else np.ones(len(gaps), np.int64)
    exponents = _log2(gaps)
    symbols = exponents | (np.minimum(counts, FULL_COUNT) - 1) << EXPONENT_BITS
    full = counts >= FULL_COUNT
    stream = gaps - (1 << exponents) | np.where(full, counts, 0) << exponents
    encoded = {
        "unique": unique.astype(spec.unique_type).tobytes(),
        "symbols": symbols.astype(np.uint8).tobytes(),
        "bits": _pack(stream, exponents + full * spec.count_bits),
        "high": b"",
        "low": b"",
    }
    if spec.counted:
        _check_counts(counts, starts, spec, "the counts given")
    if spec.has_values:
        name = "target_log_weights" if spec.counted else "target_log_probs"
        units = _to_units(np.take_along_axis(targets[name], order, 1)[filled], spec)
        if not spec.counted:
            sums = np.exp(targets["target_log_probs"].astype(np.float64)).sum(axis=1) + targets["target_tail"]
            if len(sums) and np.abs(sums - 1).max() > 1e-3:
                raise UserError(
                    f"got probabilities and a tail that sum to {sums.min()} to {sums.max()}; they must sum to 1"
                )
            with np.errstate(divide="ignore"):
                units = np.append(units, _to_units(np.log(targets["target_tail"].astype(np.float64)), spec))
        encoded |= {"high": (units >> 8).astype(np.uint8).tobytes(), "low": units.astype(np.uint8).tobytes()}
    return encoded


def decode(rows: Sequence[Columns], spec: CodecSpec, ranking: Ranking) -> Ragged:
    """The targets of some rows of one shard.

    Raises UserError if the bytes are not what `encode` wrote under this spec and ranking.
    """
    for row in rows:
        if len(row["unique"]) % np.dtype(spec.unique_type).itemsize:
            raise UserError(f"{len(row['unique'])} bytes of numbers of {spec.unique_type[-1]} bytes; {_DAMAGED}")
    unique = [np.frombuffer(row["unique"], spec.unique_type).astype(np.int64) for row in rows]
    symbols = [np.frombuffer(row["symbols"], np.uint8) for row in rows]
    for row_unique, row_symbols in zip(unique, symbols, strict=True):
        if row_unique.sum() != len(row_symbols):
            raise UserError(f"{len(row_symbols)} symbols of {row_unique.sum()} ids; {_DAMAGED}")
        if len(row_unique) and row_unique.min() < 1:
            raise UserError(f"a target has no ids; {_DAMAGED}")
    all_unique, all_symbols = np.concatenate([np.zeros(0, np.int64), *unique]), np.concatenate([_NONE, *symbols])
    exponents = (all_symbols & (1 << EXPONENT_BITS) - 1).astype(np.int64)
    counts = (all_symbols >> EXPONENT_BITS).astype(np.int64) + 1
    full = counts >= FULL_COUNT
    stream = _unpack([row["bits"] for row in rows], exponents + full * spec.count_bits, list(map(len, symbols)))
    gaps = (1 << exponents) | stream & (1 << exponents) - 1
    counts[full] = stream[full] >> exponents[full]

    starts = np.cumsum(all_unique) - all_unique
    ends = np.cumsum(gaps)
    ranks = ends - np.repeat(ends[starts] - gaps[starts], all_unique) - 1
    if len(ranks) and ranks.max() >= spec.vocab_size:
        raise UserError(f"ids beyond the vocabulary of {spec.vocab_size}; {_DAMAGED}")
    targets = Ragged(all_unique, ranking.ids[ranks], None, None, None)
    if spec.counted:
        _check_counts(counts, starts, spec, "cached logits (damaged, or written with other numbers)")
        targets = Ragged(all_unique, targets.ids, counts.astype(np.int32), None, None)
    if not spec.has_values:
        return targets
    values, tails = [], []
    for row, row_unique, row_symbols in zip(rows, unique, symbols, strict=True):
        units = np.frombuffer(row["high"], np.uint8).astype(np.int64) << 8
        expected = len(row_symbols) + (len(row_unique) if not spec.counted else 0)
        if not len(units) == len(row["low"]) == expected:
            raise UserError(f"{len(units)} and {len(row['low'])} bytes of {expected} logarithms; {_DAMAGED}")
        units |= np.frombuffer(row["low"], np.uint8)
        values.append(units[: len(row_symbols)])
        tails.append(units[len(row_symbols) :])
    logs = _from_units(np.concatenate([np.zeros(0, np.int64), *values]), spec)
    if spec.counted:
        return Ragged(all_unique, targets.ids, targets.counts, logs.astype(np.float32), None)
    tail_units = np.concatenate([np.zeros(0, np.int64), *tails])
    tail = np.where(tail_units == LAST_UNIT, 0.0, np.exp(_from_units(tail_units, spec)))
    # Rounding moves the sum by up to LOG_UNIT / 2. Dividing by the sum makes it a distribution again.
    sums = np.add.reduceat(np.exp(logs), starts) + tail if len(starts) else tail
    if len(sums) and np.abs(sums - 1).max() > 1e-2:
        raise UserError(f"probabilities of a target sum to {sums.min():.4f} to {sums.max():.4f}; {_DAMAGED}")
    logs = logs - np.repeat(np.log(sums), all_unique)
    return Ragged(all_unique, targets.ids, None, logs.astype(np.float32), (tail / sums).astype(np.float32))


_DAMAGED = "the logits are damaged, or written with other numbers: make the cache again"
_NONE = np.zeros(0, np.uint8)


def _check_counts(counts: np.ndarray, starts: np.ndarray, spec: CodecSpec, what: str) -> None:
    """Raises UserError unless the counts of each target sum to the draws."""
    sums = np.add.reduceat(counts, starts) if len(starts) else counts
    if (sums != spec.draws).any():
        raise UserError(f"{what}: counts of a target sum to {sums.min()} to {sums.max()}, not to {spec.draws} draws")


def _to_units(logs: np.ndarray, spec: CodecSpec) -> np.ndarray:
    """The distance of a log-probability below 0, or of a log-weight above -LOG_WEIGHT_SPAN: uint16 in int64.

    Raises UserError for a log-weight beyond the span: a clipped weight would be a silent bias.
    """
    if spec.counted and len(logs) and np.abs(logs).max() >= LOG_WEIGHT_SPAN:
        raise UserError(
            f"got a log-weight of {logs[np.abs(logs).argmax()]:.1f}; the cache holds ±{LOG_WEIGHT_SPAN:g}: draw from a "
            "proposal nearer to the teacher (a temperature nearer to 1)"
        )
    distances = -logs.astype(np.float64) if not spec.counted else logs.astype(np.float64) + LOG_WEIGHT_SPAN
    # clipped: in float32 the log p of a certain id may be 1e-7, and a tail without mass is at -inf
    return np.clip(np.rint(distances / LOG_UNIT), 0, LAST_UNIT).astype(np.int64)


def _from_units(units: np.ndarray, spec: CodecSpec) -> np.ndarray:
    logs = units * LOG_UNIT
    return -logs if not spec.counted else logs - LOG_WEIGHT_SPAN


def _log2(values: np.ndarray) -> np.ndarray:
    """floor(log2 v) of integers from 1 to 2^53."""
    exponents: np.ndarray = np.frexp(values.astype(np.float64))[1].astype(np.int64) - 1
    return exponents


def _pack(values: np.ndarray, widths: np.ndarray) -> bytes:
    """A bit stream of integers, each of its own width (at most 56 bits), low bits first."""
    ends = np.cumsum(widths)
    if not len(ends):
        return b""
    total = -(-int(ends[-1]) // 8)
    first_bit = ends - widths
    place, shifted = first_bit >> 3, values.astype(np.uint64) << (first_bit & 7).astype(np.uint64)
    packed = np.zeros(total + 8)
    # Values share bytes but no bits, so sums are unions. float64 holds the sums of bytes exactly.
    for byte in range(-(-(int(widths.max()) + 7) // 8)):
        part = (shifted >> np.uint64(8 * byte)) & np.uint64(255)
        packed += np.bincount(place + byte, part, minlength=total + 8)
    return packed[:total].astype(np.uint8).tobytes()


def _unpack(streams: Sequence[bytes | memoryview], widths: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """The integers of some bit streams with `lengths` integers each. Raises UserError if a stream has another size."""
    bits = np.cumsum(widths)
    last = np.cumsum(lengths)
    used = np.diff(np.concatenate([[0], bits[last[last > 0] - 1]])) if len(widths) else np.zeros(0, np.int64)
    expected = np.zeros(len(streams), np.int64)
    expected[np.flatnonzero(last > 0)] = used
    sizes = np.array([len(stream) for stream in streams], np.int64)
    if (wrong := np.flatnonzero(sizes != -(-expected // 8))).size:
        row = wrong[0]
        raise UserError(f"{sizes[row]} bytes of bits where {-(-expected[row] // 8)} are due; {_DAMAGED}")
    # Each stream begins at a whole byte: the unused bits at the end of earlier streams are skipped.
    skipped = np.cumsum(8 * sizes - expected) - (8 * sizes - expected)
    first_bit = bits - widths + np.repeat(skipped, lengths)
    data = np.frombuffer(b"".join(bytes(stream) for stream in streams) + bytes(8), np.uint8)
    words = np.lib.stride_tricks.sliding_window_view(data, 8)[first_bit >> 3]
    integers = np.ascontiguousarray(words).view("<u8").reshape(-1) >> (first_bit & 7).astype(np.uint64)
    return integers.astype(np.int64) & ((1 << widths) - 1)
