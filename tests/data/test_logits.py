import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import UserError
from data.logits import LOG_UNIT, PLANES, CodecSpec, Ranking, Targets, decode, encode

PROPERTY = settings(deadline=None, max_examples=100)
VOCAB = 256_000
GEMMA = CodecSpec(vocab_size=VOCAB, estimator="drawn", draws=50)
BY_ID = Ranking.of_tokens(np.zeros(0, int), VOCAB)


def made_up(spec: CodecSpec, targets: int, slots: int, seed: int) -> Targets:
    """What an estimator keeps: different ids in any order, empty slots anywhere, counts that sum to the draws."""
    rng = np.random.default_rng(seed)
    shape = (targets, slots)
    columns = {"target_ids": np.zeros(shape, np.int32)}
    if spec.draws is not None:
        columns["target_counts"] = np.zeros(shape, np.int32)
        if spec.weighted:
            columns["target_log_weights"] = rng.normal(size=shape).astype(np.float32)
    else:
        columns |= {
            "target_log_probs": np.full(shape, -np.inf, np.float32),
            "target_tail": np.zeros(targets, np.float32),
        }
    for target in range(targets):
        most = min(slots, spec.draws or slots, spec.vocab_size)
        low = rng.integers(0, spec.vocab_size, int(rng.integers(1, most + 1)) * 3)
        chosen = np.unique(np.append(low, spec.vocab_size - 1))[-most:]
        places = rng.choice(slots, len(chosen), replace=False)
        columns["target_ids"][target, places] = rng.permutation(chosen)
        shares = rng.dirichlet(np.full(len(chosen) + 1, 0.3)).clip(1e-12)
        if spec.draws is not None:
            columns["target_counts"][target, places] = 1 + rng.multinomial(
                spec.draws - len(chosen), np.full(len(chosen), 1 / len(chosen))
            )
        else:
            columns["target_log_probs"][target, places] = np.log(shares[1:])
            columns["target_tail"][target] = shares[0]
    return columns


def by_id(targets: Targets, name: str, target: int) -> dict[int, float]:
    used = targets["target_counts"][target] > 0 if "target_counts" in targets else targets[name][target] > -np.inf
    return dict(zip(targets["target_ids"][target][used].tolist(), targets[name][target][used].tolist(), strict=True))


samples = st.builds(
    CodecSpec,
    vocab_size=st.integers(2, 2**17) | st.just(VOCAB),
    estimator=st.just("drawn"),
    draws=st.integers(1, 2**16 - 1),
    weighted=st.booleans(),
)
tops = st.builds(CodecSpec, vocab_size=st.integers(2, 2**17) | st.just(VOCAB), estimator=st.just("kept"))


@PROPERTY
@given(samples | tops, st.lists(st.integers(0, 6), max_size=4), st.integers(1, 20), st.integers(0, 2**32))
def test_what_is_encoded_is_decoded(spec: CodecSpec, rows: list[int], slots: int, seed: int) -> None:
    tokens = np.random.default_rng(seed).zipf(1.3, 200) % spec.vocab_size
    ranking = Ranking.of_tokens(tokens, spec.vocab_size)
    given = [made_up(spec, targets, slots, seed + row) for row, targets in enumerate(rows)]
    decoded = decode([encode(row, spec, ranking) for row in given], spec, ranking).padded(slots)
    assert decoded["target_ids"].shape == (sum(rows), slots)
    place = 0
    for row in given:
        for target in range(len(row["target_ids"])):
            if spec.draws is not None:
                assert by_id(decoded, "target_counts", place) == by_id(row, "target_counts", target)
            for name in {"target_log_weights", "target_log_probs"} & set(row):
                assert by_id(decoded, name, place) == pytest.approx(by_id(row, name, target), abs=LOG_UNIT)
            if spec.draws is None:
                assert decoded["target_tail"][place] == pytest.approx(row["target_tail"][target], abs=2e-3)
                mass = np.exp(decoded["target_log_probs"][place].astype(float)).sum() + decoded["target_tail"][place]
                assert mass == pytest.approx(1, abs=1e-6)
            place += 1


@PROPERTY
@given(st.integers(2, 2**18), st.integers(0, 300), st.integers(0, 2**32))
def test_a_ranking_is_every_id_once_and_its_bytes_are_itself(vocab: int, tokens: int, seed: int) -> None:
    drawn = np.random.default_rng(seed).zipf(1.2, tokens) % vocab
    ranking = Ranking.of_tokens(drawn, vocab)
    assert np.array_equal(ranking.ranks[ranking.ids], np.arange(vocab))
    counts = np.bincount(drawn, minlength=vocab)[ranking.ids]
    assert (np.diff(counts) <= 0).all()
    assert np.array_equal(Ranking.from_bytes(ranking.to_bytes(), vocab).ids, ranking.ids)


def test_a_ranking_with_an_id_twice_or_beyond_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="names an id twice"):
        Ranking(np.array([3, 3]), 10)
    with pytest.raises(ValueError, match="3 to 10; the vocabulary has 10"):
        Ranking(np.array([3, 10]), 10)


def test_a_ranking_that_was_cut_short_is_refused() -> None:
    with pytest.raises(UserError, match=r"a ranking of 7 bytes.*make the cache again"):
        Ranking.from_bytes(Ranking(np.array([3, 1]), 10).to_bytes()[:7], 10)


def test_the_last_of_256000_ids_and_every_count_up_to_the_draws_are_held() -> None:
    counts = np.array([[1, 49], [7, 43], [8, 42], [25, 25], [50, 0]])
    ids = np.array([[255_999, 0], [131_072, 131_071], [5, 255_999], [1, 2], [255_999, 0]])
    given = {"target_ids": ids, "target_counts": counts}
    decoded = decode([encode(given, GEMMA, BY_ID)], GEMMA, BY_ID).padded(2)
    for target in range(5):
        assert by_id(decoded, "target_counts", target) == by_id(given, "target_counts", target)


@PROPERTY
@given(st.integers(1, 5), st.integers(0, 2**32), st.data())
def test_damage_is_refused_or_changes_nothing_but_a_valid_distribution(
    targets: int, seed: int, data: st.DataObject
) -> None:
    encoded = encode(made_up(GEMMA, targets, 12, seed), GEMMA, BY_ID)
    plane = data.draw(st.sampled_from([name for name in PLANES if encoded[name]]))
    damaged = bytearray(encoded[plane])
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        decoded = decode([{**encoded, plane: bytes(damaged)}], GEMMA, BY_ID).padded(50)
    except ValueError:
        return
    assert decoded["target_ids"].max() < VOCAB
    assert (decoded["target_counts"].sum(axis=1) == 50).all()


def test_missing_bytes_and_another_vocabulary_or_number_of_draws_are_refused() -> None:
    targets = {"target_ids": np.array([[3, 9], [140_000, 0]]), "target_counts": np.array([[20, 30], [50, 0]])}
    encoded = encode(targets, GEMMA, BY_ID)
    for plane in ("unique", "symbols", "bits"):
        with pytest.raises(ValueError, match="damaged"):
            decode([{**encoded, plane: encoded[plane][:-1]}], GEMMA, BY_ID)
    small = CodecSpec(vocab_size=132_000, estimator="drawn", draws=50)
    with pytest.raises(ValueError, match="beyond the vocabulary of 132000"):
        decode([encoded], small, Ranking.of_tokens(np.zeros(0, int), 132_000))
    with pytest.raises(ValueError, match="sum to 50 to 50, not to 60 draws"):
        decode([encoded], CodecSpec(vocab_size=VOCAB, estimator="drawn", draws=60), BY_ID)
    with pytest.raises(ValueError, match="max_unique is 1; raise max_unique"):
        decode([encoded], GEMMA, BY_ID).padded(1)


@pytest.mark.parametrize(
    ("ids", "counts", "message"),
    [
        ([[256_000, 1]], [[25, 25]], "the vocabulary has 0 to 255999"),
        ([[-1, 1]], [[25, 25]], "ids -1 to 1"),
        ([[1, 1]], [[25, 25]], "an id twice in one target"),
        ([[1, 2]], [[25, 24]], "sum to 49 to 49, not to 50"),
        ([[1, 2]], [[51, -1]], "a count of -1"),
        ([[1, 2]], [[0, 0]], "a target without ids"),
        ([[1, 2]], [[50]], r"both must be \[targets, slots\]"),
    ],
)
def test_counts_that_are_no_draws_are_not_encoded(ids: list, counts: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode({"target_ids": np.array(ids), "target_counts": np.array(counts)}, GEMMA, BY_ID)


def test_probabilities_that_do_not_sum_to_one_are_not_encoded() -> None:
    spec = CodecSpec(vocab_size=10, estimator="kept")
    targets = {"target_ids": np.array([[1]]), "target_log_probs": np.log([[0.5]]), "target_tail": np.array([0.4])}
    with pytest.raises(ValueError, match="they must sum to 1"):
        encode(targets, spec, Ranking.of_tokens(np.zeros(0, int), 10))


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size=1"):
        CodecSpec(vocab_size=1, estimator="drawn", draws=50)
    with pytest.raises(ValueError, match="draws=65536"):
        CodecSpec(vocab_size=VOCAB, estimator="drawn", draws=65_536)
    with pytest.raises(ValueError, match="only draws have importance weights"):
        CodecSpec(vocab_size=VOCAB, estimator="kept", weighted=True)


def test_decoding_keeps_up_with_training() -> None:
    rng = np.random.default_rng(0)
    ids = np.sort(rng.integers(0, 20_000, (20_000, 12)) + np.arange(12) * 20_000, axis=1)
    counts = np.full((20_000, 12), 4)
    counts[:, 0] = 6
    encoded = encode({"target_ids": ids, "target_counts": counts}, GEMMA, BY_ID)
    began = time.perf_counter()
    decode([encoded], GEMMA, BY_ID).padded(50)
    assert time.perf_counter() - began < 1.0


def test_a_log_weight_that_would_be_cut_off_is_refused() -> None:
    spec = CodecSpec(vocab_size=300, estimator="drawn", draws=5, temperature=2.0, weighted=True)
    targets = made_up(spec, 4, 5, seed=0)
    targets["target_log_weights"][2, targets["target_counts"][2].argmax()] = -40.0
    with pytest.raises(ValueError, match=r"got a log-weight of -40.0; the cache holds ±32"):
        encode(targets, spec, Ranking.of_tokens(np.zeros(0, int), 300))
