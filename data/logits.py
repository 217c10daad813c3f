"""The bytes of a cached teacher distribution: for each target, which ids were drawn and how often.

    ids, counts [P, K]  <->  unique [P] (how many ids a target has), packed (one record an id)

A record is `id << count_bits | count`, little-endian, in as few bytes as hold it: 18 + 6 bits are 3 bytes for Gemma's
256,000 ids and 50 draws. Ids ascend within a target and counts sum to the number of draws, so most damage shows.

Cost: 3 bytes a stored id, about 36 a target (50 draws find some 12 different ids); 20 M records/s a core.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class CodecSpec:
    """What one must know to read the records."""

    vocab_size: int
    """ids go from 0 to vocab_size - 1"""
    draws: int
    """draws from the teacher at each target: what its counts sum to"""

    def __post_init__(self) -> None:
        if not 2 <= self.vocab_size <= 2**31:
            raise ValueError(f"got vocab_size={self.vocab_size}; allowed are 2 to 2**31")
        if not 1 <= self.draws < 2**16:
            raise ValueError(f"got draws={self.draws}; allowed are 1 to {2**16 - 1}")

    @property
    def id_bits(self) -> int:
        return (self.vocab_size - 1).bit_length()

    @property
    def count_bits(self) -> int:
        return self.draws.bit_length()

    @property
    def record_bytes(self) -> int:
        return -(-(self.id_bits + self.count_bits) // 8)


def encode_counts(ids: np.ndarray, counts: np.ndarray, spec: CodecSpec) -> tuple[np.ndarray, bytes]:
    """Counts of P targets, in up to K slots each, as (unique [P], packed bytes).

    ids and counts: integers [P, K], in any order; a slot with count 0 is empty. unique is uint8, or uint16 for more
    than 255 draws. Raises ValueError for an id outside the vocabulary or twice in a target, and for counts that do not
    sum to `draws`.
    """
    if ids.shape != counts.shape or ids.ndim != 2:
        raise ValueError(f"got ids {ids.shape} and counts {counts.shape}; both must be [targets, slots]")
    used = counts > 0
    if (counts < 0).any():
        raise ValueError(f"got a count of {counts.min()}; counts are 0 (an empty slot) or more")
    # empty slots sort behind every id
    keys = np.where(used, ids.astype(np.int64), spec.vocab_size)
    order = np.argsort(keys, axis=1, kind="stable")
    keys, ordered_counts = np.take_along_axis(keys, order, 1), np.take_along_axis(counts, order, 1).astype(np.int64)
    unique = used.sum(axis=1)
    filled = np.arange(ids.shape[1]) < unique[:, None]
    _check(keys[filled], ordered_counts[filled], unique, spec, "the counts given")
    records = (keys[filled] << spec.count_bits | ordered_counts[filled]).astype("<u8")
    packed = records.view(np.uint8).reshape(-1, 8)[:, : spec.record_bytes].tobytes()
    return unique.astype(np.uint8 if spec.draws < 2**8 else np.uint16), packed


def decode_counts(
    unique: np.ndarray, packed: bytes | memoryview, spec: CodecSpec, max_unique: int
) -> tuple[np.ndarray, np.ndarray]:
    """(ids, counts), both int32 [P, max_unique], filled up with zeros.

    Raises ValueError where the bytes are not what `encode_counts` wrote under this spec, or a target has more than
    `max_unique` ids.
    """
    unique = unique.astype(np.int64)
    total = int(unique.sum())
    if len(packed) != total * spec.record_bytes:
        raise ValueError(
            f"{len(packed)} bytes of logits for {total} records of {spec.record_bytes} bytes (vocabulary "
            f"{spec.vocab_size}, {spec.draws} draws); they are damaged, or written with other numbers: "
            "make the cache again"
        )
    if len(unique) and unique.max() > max_unique:
        raise ValueError(f"a target has {unique.max()} different ids, and max_unique is {max_unique}; raise it")
    padded = np.zeros((total, 8), np.uint8)
    padded[:, : spec.record_bytes] = np.frombuffer(packed, np.uint8).reshape(total, spec.record_bytes)
    records = padded.view("<u8").reshape(total).astype(np.int64)
    flat_ids, flat_counts = records >> spec.count_bits, records & (1 << spec.count_bits) - 1
    _check(flat_ids, flat_counts, unique, spec, "cached logits (damaged, or written with other numbers)")
    ids, counts = (np.zeros((len(unique), max_unique), np.int32) for _ in range(2))
    filled = np.arange(max_unique) < unique[:, None]
    ids[filled], counts[filled] = flat_ids, flat_counts
    return ids, counts


def _check(ids: np.ndarray, counts: np.ndarray, unique: np.ndarray, spec: CodecSpec, what: str) -> None:
    """Raises ValueError unless ids are in the vocabulary and ascend within each target, and counts sum to the draws."""
    if not len(unique):
        return
    if unique.min() < 1:
        raise ValueError(f"{what}: a target has no ids; each has {spec.draws} draws")
    if ids.min() < 0 or ids.max() >= spec.vocab_size:
        raise ValueError(f"{what}: ids {ids.min()} to {ids.max()}; the vocabulary has 0 to {spec.vocab_size - 1}")
    starts = np.cumsum(unique) - unique
    sums = np.add.reduceat(counts, starts)
    if counts.min() < 1 or (sums != spec.draws).any():
        raise ValueError(f"{what}: counts of a target sum to {sums.min()} to {sums.max()}, not to {spec.draws} draws")
    ascends = np.diff(ids) > 0
    ascends[starts[1:] - 1] = True  # from one target to the next
    if not ascends.all():
        raise ValueError(f"{what}: ids of a target do not ascend, or one is there twice")
