import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.logits import CodecSpec, decode_counts, encode_counts

PROPERTY = settings(deadline=None, max_examples=100)
GEMMA = CodecSpec(vocab_size=256_000, draws=50)


def draw_counts(spec: CodecSpec, targets: int, slots: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """What a sampler gives: different ids in any order, counts that sum to the draws, empty slots anywhere."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((targets, slots), np.int32)
    counts = np.zeros((targets, slots), np.int32)
    for target in range(targets):
        most = min(slots, spec.draws, spec.vocab_size)
        unique = int(rng.integers(1, most + 1))
        places = rng.choice(slots, unique, replace=False)
        low = rng.integers(0, spec.vocab_size, unique * 3)
        chosen = np.unique(np.append(low, spec.vocab_size - 1))[-unique:]
        places = places[: len(chosen)]
        counts[target, places] = 1 + rng.multinomial(spec.draws - len(chosen), np.full(len(chosen), 1 / len(chosen)))
        ids[target, places] = rng.permutation(chosen)
    return ids, counts


specs = st.builds(CodecSpec, vocab_size=st.integers(2, 2**31) | st.just(256_000), draws=st.integers(1, 2**16 - 1))


@PROPERTY
@given(specs, st.integers(0, 6), st.integers(1, 20), st.integers(0, 2**32))
def test_what_is_encoded_is_decoded(spec: CodecSpec, targets: int, slots: int, seed: int) -> None:
    ids, counts = draw_counts(spec, targets, slots, seed)
    unique, packed = encode_counts(ids, counts, spec)
    assert unique.dtype == (np.uint8 if spec.draws < 256 else np.uint16)
    assert unique.tolist() == (counts > 0).sum(axis=1).tolist()
    assert len(packed) == int(unique.sum()) * spec.record_bytes
    again_ids, again_counts = decode_counts(unique, packed, spec, max_unique=slots)
    assert again_ids.dtype == again_counts.dtype == np.int32
    for target in range(targets):
        given = {int(i): int(c) for i, c in zip(ids[target], counts[target], strict=True) if c}
        kept = unique[target]
        assert dict(zip(again_ids[target].tolist()[:kept], again_counts[target].tolist()[:kept], strict=True)) == given
        assert again_ids[target][:kept].tolist() == sorted(given)
        assert not again_ids[target][kept:].any()
        assert not again_counts[target][kept:].any()


def test_gemmas_ids_with_fifty_draws_take_three_bytes() -> None:
    assert (GEMMA.id_bits, GEMMA.count_bits, GEMMA.record_bytes) == (18, 6, 3)
    ids = np.array([[255_999, 0, 7]])
    counts = np.array([[1, 49, 0]])
    unique, packed = encode_counts(ids, counts, GEMMA)
    assert unique.tolist() == [2]
    assert packed == (0 << 6 | 49).to_bytes(3, "little") + (255_999 << 6 | 1).to_bytes(3, "little")
    one_id = encode_counts(np.array([[5]]), np.array([[50]]), GEMMA)
    assert decode_counts(*one_id, GEMMA, 1)[1].tolist() == [[50]]


@PROPERTY
@given(st.integers(1, 5), st.integers(0, 2**32), st.data())
def test_damage_is_refused_or_changes_nothing_but_a_valid_distribution(
    targets: int, seed: int, data: st.DataObject
) -> None:
    unique, packed = encode_counts(*draw_counts(GEMMA, targets, 12, seed), GEMMA)
    place = data.draw(st.integers(0, len(packed) - 1))
    damaged = bytearray(packed)
    damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        ids, counts = decode_counts(unique, bytes(damaged), GEMMA, 12)
    except ValueError:
        return
    assert ids.max() < 256_000
    assert (counts.sum(axis=1) == 50).all()


@pytest.fixture
def encoded() -> tuple[np.ndarray, bytes]:
    return encode_counts(np.array([[3, 9], [4, 0]]), np.array([[20, 30], [50, 0]]), GEMMA)


def test_a_wrong_length_is_refused(encoded: tuple[np.ndarray, bytes]) -> None:
    unique, packed = encoded
    with pytest.raises(ValueError, match=r"8 bytes of logits for 3 records of 3 bytes .* make the cache again"):
        decode_counts(unique, packed[:-1], GEMMA, 2)
    with pytest.raises(ValueError, match="9 bytes of logits for 4 records"):
        decode_counts(unique + np.array([1, 0]), packed, GEMMA, 9)
    assert decode_counts(unique[:0], b"", GEMMA, 2)[0].shape == (0, 2)


def test_moved_targets_wrong_ids_and_wrong_counts_are_refused(encoded: tuple[np.ndarray, bytes]) -> None:
    unique, packed = encoded
    with pytest.raises(ValueError, match="sum to 20 to 80, not to 50 draws"):
        decode_counts(unique[::-1], packed, GEMMA, 2)
    late = encode_counts(np.array([[140_000]]), np.array([[50]]), GEMMA)
    with pytest.raises(ValueError, match="ids 140000 to 140000; the vocabulary has 0 to 131999"):
        decode_counts(*late, CodecSpec(vocab_size=132_000, draws=50), 2)
    swapped = packed[3:6] + packed[:3] + packed[6:]
    with pytest.raises(ValueError, match="do not ascend"):
        decode_counts(unique, swapped, GEMMA, 2)
    with pytest.raises(ValueError, match="a target has no ids"):
        decode_counts(np.array([0, 3]), packed, GEMMA, 3)
    with pytest.raises(ValueError, match="max_unique is 1; raise it"):
        decode_counts(unique, packed, GEMMA, 1)


@pytest.mark.parametrize(
    ("ids", "counts", "message"),
    [
        ([[256_000, 1]], [[25, 25]], "the vocabulary has 0 to 255999"),
        ([[-1, 1]], [[25, 25]], "ids -1 to 1"),
        ([[1, 1]], [[25, 25]], "one is there twice"),
        ([[1, 2]], [[25, 24]], "sum to 49 to 49, not to 50"),
        ([[1, 2]], [[51, -1]], "a count of -1"),
        ([[1, 2]], [[0, 0]], "a target has no ids"),
        ([[1, 2]], [[50]], r"both must be \[targets, slots\]"),
    ],
)
def test_counts_that_are_no_draws_are_not_encoded(ids: list, counts: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_counts(np.array(ids), np.array(counts), GEMMA)


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size=1"):
        CodecSpec(vocab_size=1, draws=50)
    with pytest.raises(ValueError, match="draws=65536"):
        CodecSpec(vocab_size=256_000, draws=65_536)


def test_decoding_keeps_up_with_training() -> None:
    rng = np.random.default_rng(0)
    ids = np.sort(rng.integers(0, 20_000, (20_000, 12)) + np.arange(12) * 20_000, axis=1)
    counts = np.full((20_000, 12), 4)
    counts[:, 0] = 6
    encoded = encode_counts(ids, counts, GEMMA)
    began = time.perf_counter()
    decode_counts(*encoded, GEMMA, 50)
    assert time.perf_counter() - began < 1.0
