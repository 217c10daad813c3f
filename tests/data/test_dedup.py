"""Who stays of a cluster, over any split into shards; precision and recall against exact Jaccard and datasketch."""

import functools
import itertools
import random
import sysconfig
from pathlib import Path

import datasketch
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import components, dedup, folding, minhash, schema

SHINGLE_WORDS, BANDS, BAND_HASHES = 5, 14, 8


def text_table(texts: list[str], start: int = 0) -> pa.Table:
    rows = [
        {
            "id": schema.document_id("s", "f", start + number),
            "content_hash": schema.content_hash(text),
            "text": text,
            "source": "s",
            "metadata": "{}",
            "masked_spans": [],
        }
        for number, text in enumerate(texts)
    ]
    return pa.Table.from_pylist(rows, schema.TEXT)


def deduplicated(
    shards: list[list[str]], bands: int = 0, min_similarity: float = 0.75
) -> tuple[list[str], list[dict[str, str]]]:
    """(texts that stay, clusters): the stage's phases, without Ray."""
    starts = np.cumsum([0, *map(len, shards)]).tolist()
    tables = [text_table(texts, start) for texts, start in zip(shards, starts, strict=False)]
    settings_ = {"bands": bands, "rows": BAND_HASHES, "shingle_words": SHINGLE_WORDS, "seed": 0}
    keys = pa.concat_tables([dedup.keys_of(table, number, **settings_) for number, table in enumerate(tables)])
    linked, candidates = dedup.links_in(keys, bands)
    firsts = np.repeat(np.unique(candidates[:, 1])[:, None], 2, axis=1)
    requests = np.concatenate([candidates, firsts])
    wanted = pa.table([requests[:, 0], requests[:, 1]], schema=dedup.LINKS)
    shingles = [
        dedup.shingles_of(table, of_shard(wanted, "node", number), SHINGLE_WORDS) for number, table in enumerate(tables)
    ]
    stars = components.stars(np.concatenate([linked, dedup.similar(shingles, min_similarity)]))
    links = pa.table([stars[:, 0], stars[:, 1]], schema=dedup.LINKS)
    drops = pa.concat_tables(
        [dedup.name_kept(table, of_shard(links, "other", number)) for number, table in enumerate(tables)]
    )
    outcomes = [dedup.drop_rows(table, of_shard(drops, "node", number)) for number, table in enumerate(tables)]
    return (
        [text for kept, _ in outcomes for text in kept["text"].to_pylist()],
        [row for _, clusters in outcomes for row in clusters.to_pylist()],
    )


def of_shard(table: pa.Table, column: str, shard: int) -> pa.Table:
    """The rows whose node in `column` lies in the shard."""
    return table.filter(pa.array(table[column].to_numpy() >> 32 == shard))


@settings(deadline=None, max_examples=50)
@given(
    split=st.lists(st.lists(st.sampled_from(["a", "A ", "b", "c\n d", "C D", ""]), max_size=6), min_size=1, max_size=4)
)
def test_the_first_of_each_normalized_text_is_kept_over_any_split_into_shards(split: list[list[str]]) -> None:
    texts = [text for shard in split for text in shard]
    first: dict[str, str] = {}
    for text in texts:
        first.setdefault(" ".join(text.lower().split()), text)
    kept, clusters = deduplicated(split)
    assert kept == list(first.values())
    assert len(kept) + len(clusters) == len(texts)
    assert {row["reason"] for row in clusters} <= {dedup.EXACT}


def test_clusters_name_the_document_that_stays_and_why() -> None:
    long = "one two three four five six seven eight nine ten eleven twelve " * 8
    kept, clusters = deduplicated([["first " + long, "other"], ["second " + long, "OTHER "]], bands=BANDS)
    assert kept == ["first " + long, "other"]
    ids = text_table(["first " + long, "other", "second " + long, "OTHER "])["id"].to_pylist()
    assert [(row["id"], row["kept_id"], row["reason"]) for row in clusters] == [
        (ids[2], ids[0], dedup.NEAR),
        (ids[3], ids[1], dedup.EXACT),
    ]


def jaccard(a: str, b: str) -> float:
    """The similarity of two texts by their shingles, computed plainly."""
    sets = []
    for text in (a, b):
        words = text.lower().split()
        sets.append({tuple(words[k : k + SHINGLE_WORDS]) for k in range(max(len(words) - SHINGLE_WORDS + 1, 1))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def family(*, header: int, body: int, pages: int) -> list[str]:
    """Pages of words of their own after one header."""
    draw = random.Random(7)
    words = [f"w{number}" for number in range(5000)]
    top = " ".join(draw.sample(words, header))
    return [top + " " + " ".join(draw.sample(words, body)) for _ in range(pages)]


def test_pages_with_one_header_are_not_one_document() -> None:
    """Half of each page is the header: many share a band, none are similar enough."""
    pages = family(header=120, body=60, pages=106)
    assert jaccard(pages[0], pages[1]) == pytest.approx(0.5, abs=0.05)
    keys = dedup.keys_of(text_table(pages), 0, bands=BANDS, rows=BAND_HASHES, shingle_words=SHINGLE_WORDS, seed=0)
    assert len(dedup.links_in(keys, BANDS)[1]) > 10
    kept, clusters = deduplicated([pages[:50], pages[50:]], bands=BANDS)
    assert kept == pages
    assert clusters == []


@pytest.mark.parametrize("least", [0.5, 0.75, 0.9])
def test_a_dropped_document_is_similar_to_one_of_its_cluster(least: float) -> None:
    texts = labelled_texts()
    kept, clusters = deduplicated([texts[:200], texts[200:]], bands=BANDS, min_similarity=least)
    by_id = dict(zip(text_table(texts)["id"].to_pylist(), texts, strict=True))
    assert len(kept) + len(clusters) == len(texts)
    members: dict[str, list[str]] = {}
    for row in clusters:
        if row["reason"] == dedup.NEAR:
            others = members.setdefault(row["kept_id"], [by_id[row["kept_id"]]])
            others.append(by_id[row["id"]])
    assert members
    for family_texts in members.values():
        for text in family_texts:
            assert max(shared(text, other) for other in family_texts if other is not text) >= least


def shared(a: str, b: str) -> float:
    """The similarity of two texts by all 64 bits of their shingles."""
    hashes, (_, middle, _) = minhash.shingle_hashes(pa.array([a, b]), SHINGLE_WORDS)
    sets = set(hashes[:middle].tolist()), set(hashes[middle:].tolist())
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 27), min_size=2, max_size=40), st.integers(1, 4))
def test_what_is_kept_does_not_depend_on_the_shards(numbers: list[int], count: int) -> None:
    texts = [labelled_texts()[number] for number in numbers]
    whole = deduplicated([texts], bands=BANDS)
    cuts = np.linspace(0, len(texts), count + 1).astype(int).tolist()
    assert deduplicated([texts[a:b] for a, b in itertools.pairwise(cuts)], bands=BANDS) == whole


def test_a_group_is_compared_with_a_bounded_number_of_leaders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is linear in the size of a bucket of documents that are not similar."""
    calls = []
    monkeypatch.setattr(dedup, "_at_least", lambda *_: calls.append(0) is not None)
    pages = family(header=10, body=10, pages=200)
    wanted = pa.table([np.arange(200), np.zeros(200, np.int64)], schema=dedup.LINKS)
    assert len(dedup.similar([dedup.shingles_of(text_table(pages), wanted, SHINGLE_WORDS)], 0.75)) == 0
    assert len(calls) <= 200 * dedup.MOST_LEADERS


def test_documents_without_words_are_no_near_duplicates() -> None:
    kept, _ = deduplicated([["!!!", "???", "", "-"]], bands=BANDS)
    assert kept == ["!!!", "???", "", "-"]


@functools.cache
def labelled_texts() -> list[str]:
    """Passages of the standard library, each with copies of which more and more words are replaced."""
    draw = random.Random(5)
    words = [
        word
        for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-d]*.py"))
        for word in path.read_text(encoding="utf-8").split()
    ]
    texts = []
    for number in range(60):
        passage = words[number * 300 : number * 300 + draw.randint(60, 300)]
        texts.append(" ".join(passage))
        for share in (0.005, 0.01, 0.02, 0.05, 0.1, 0.3):
            copy = [draw.choice(words) if draw.random() < share else word for word in passage]
            texts.append(" ".join(copy))
    return texts


@pytest.mark.slow
def test_near_duplicates_are_found_as_by_datasketch_and_as_theory_says() -> None:
    texts = labelled_texts()
    hashes, offsets = minhash.shingle_hashes(pa.array(texts), SHINGLE_WORDS)
    sets = [set(hashes[a:b].tolist()) for a, b in itertools.pairwise(offsets)]
    similarity = {
        (a, b): len(sets[a] & sets[b]) / len(sets[a] | sets[b])
        for a in range(len(sets))
        for b in range(a)
        if not sets[a].isdisjoint(sets[b])
    }
    signatures = minhash.signatures(pa.chunked_array([texts]), SHINGLE_WORDS, BANDS * BAND_HASHES, seed=0)
    keys = minhash.band_keys(signatures, BANDS)
    ours = {pair for pair in similarity if (keys[pair[0]] == keys[pair[1]]).any()}
    alone = [pair for pair in itertools.combinations(range(len(texts)), 2) if pair[::-1] not in similarity]
    assert not any((keys[a] == keys[b]).any() for a, b in alone)  # nothing in common: never taken for a duplicate

    rival = datasketch.MinHashLSH(num_perm=BANDS * BAND_HASHES, params=(BANDS, BAND_HASHES))
    sketches = [datasketch.MinHash(BANDS * BAND_HASHES, hashfunc=int) for _ in texts]
    for number, (sketch, shingles) in enumerate(zip(sketches, sets, strict=True)):
        sketch.update_batch([shingle & 0xFFFFFFFF for shingle in shingles])
        rival.insert(number, sketch)
    theirs = {(a, b) for a in range(len(texts)) for b in rival.query(sketches[a]) if (a, b) in similarity}

    def recall(pairs: set[tuple[int, int]], low: float) -> float:
        wanted = {pair for pair, value in similarity.items() if value >= low}
        return len(pairs & wanted) / len(wanted)

    def precision(pairs: set[tuple[int, int]], low: float) -> float:
        return sum(similarity[pair] >= low for pair in pairs) / len(pairs)

    expected = sum(1 - (1 - value**BAND_HASHES) ** BANDS for value in similarity.values())
    assert len(ours) == pytest.approx(expected, rel=0.1)
    assert recall(ours, 0.85) >= 0.97
    assert precision(ours, 0.5) >= 0.97
    for low in (0.7, 0.8, 0.9):
        assert recall(ours, low) == pytest.approx(recall(theirs, low), abs=0.06)
        assert precision(ours, low) == pytest.approx(precision(theirs, low), abs=0.06)


@pytest.mark.parametrize("size", [1, 100, 10**9])
def test_keys_do_not_depend_on_how_texts_are_cut_into_blocks(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    texts = pa.chunked_array([["", "a b c d e f g", "日本語のテキスト"], [], ["x" * 500, "é è", "A b C d e f g"]])
    whole = minhash.signatures(texts, SHINGLE_WORDS, 16, seed=1)
    monkeypatch.setattr(folding, "BLOCK_BYTES", size)
    assert np.array_equal(minhash.signatures(texts, SHINGLE_WORDS, 16, seed=1), whole)
    assert np.array_equal(whole[1], whole[-1])  # letter case


@settings(deadline=None, max_examples=100)
@given(st.lists(st.text(alphabet="aB1 .,\n\u00e9\u65e5\u3042", max_size=40), max_size=8))
def test_shingles_are_those_of_a_plain_word_loop(texts: list[str]) -> None:
    hashes, offsets = minhash.shingle_hashes(pa.array(texts, pa.string()), 3)
    seen: dict[tuple[str, ...], int] = {}
    for text, (start, end) in zip(texts, itertools.pairwise(offsets), strict=True):
        words, word = [], ""
        for character in text.lower() + " ":
            alone = character in "\u65e5\u3042"
            inside = character.isalnum() and not alone
            if word and not inside:
                words.append(word)
                word = ""
            word += character if inside else ""
            words += [character] if alone else []
        wanted = [tuple(words[k : k + 3]) for k in range(max(len(words) - 2, min(len(words), 1)))]
        assert end - start == len(wanted)
        for shingle, value in zip(wanted, hashes[start:end].tolist(), strict=True):
            assert seen.setdefault(shingle, value) == value
    assert len(set(seen.values())) == len(seen)
