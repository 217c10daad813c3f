"""Duplicates, exact and near: which document of a cluster is kept, and which documents are dropped.

    TEXT shard -> keys_of -> (by key) links_in -> (components.py) -> (node, kept) -> drop_rows -> TEXT, CLUSTERS
                             candidates -> (by shard) shingles_of -> (by first document) similar -> links

A node is a document's place, shard * 2**32 + row. Documents that share a key may be duplicates. A document has one key
for its normalized text (128 bits, folded, white space as single spaces), and one key for each band of MinHash
(minhash.py). Equal texts are linked at once. Documents that only share a band are candidates: their shingles are
compared, and they are linked if the Jaccard similarity is high enough. Each connected component keeps its first
document, in the order of the shards. Only keys, links and the shingles of candidates are shuffled.
"""

import itertools
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import xxhash

from data import folding, minhash, schema

KEYS = pa.schema([("high", pa.uint64()), ("low", pa.uint64()), ("node", pa.int64())])
LINKS = pa.schema([("node", pa.int64()), ("other", pa.int64())])
SHINGLES = pa.schema(
    [("group", pa.int64()), ("node", pa.int64()), ("shingles", pa.large_list(pa.field("item", pa.uint32())))]
)
"""a candidate of a group; the group is the first document of a bucket. Shingles are sorted, distinct and cut to 32
bits: two documents of 10,000 shingles each share one by chance in 2 of 100 cases, which moves their similarity by
1 in 20,000"""
MOST_LEADERS = 8
"""documents of a group that each later one is compared with: time is linear in the size of the group"""
DROPS = pa.schema([("node", pa.int64()), ("kept_id", pa.string()), ("kept_text", pa.string())])
"""documents that a shard drops; kept_text is the normalized hash of the document that is kept instead"""
EXACT, NEAR = "exact_duplicate", "near_duplicate"


def place(shard: int, rows: np.ndarray) -> np.ndarray:
    """Nodes of the documents at `rows` of TEXT shard number `shard`."""
    return (np.int64(shard) << np.int64(32)) + rows.astype(np.int64)


def normalized_hashes(texts: pa.ChunkedArray) -> list[str]:
    """32 hex digits (xxh3-128) for each text, equal for texts that differ only in their folding and white space."""
    return [digest for block in folding.blocks(texts) for digest in _hashes_of(folding.fold(block))]


def _hashes_of(folded: pa.LargeStringArray) -> list[str]:
    return [xxhash.xxh3_128_hexdigest(" ".join(text.split()).encode()) for text in folded.to_pylist()]


def keys_of(table: pa.Table, shard: int, *, bands: int, rows: int, shingle_words: int, seed: int) -> pa.Table:
    """KEYS of the documents of one shard. With 0 `bands`, only exact duplicates share a key.

    Of equal texts in the shard, only the first has keys of bands: the others are linked to it by their text.
    """
    digests: list[str] = []
    seen: set[str] = set()
    banded_nodes, banded_keys = [np.zeros(0, np.int64)], [np.zeros((0, bands), np.uint64)]
    for block in folding.blocks(table["text"]):
        folded, before = folding.fold(block), len(digests)
        digests += _hashes_of(folded)
        new = np.zeros(len(folded), bool)
        for row, digest in enumerate(digests[before:]):
            new[row] = digest not in seen
            seen.add(digest)
        if bands and new.any():
            signatures = minhash.signatures_of(folded.filter(pa.array(new)), shingle_words, bands * rows, seed)
            worded = minhash.has_words(signatures)
            banded_keys.append(minhash.band_keys(signatures[worded], bands))
            banded_nodes.append(place(shard, before + np.flatnonzero(new)[worded]))
    halves = np.frombuffer(bytes.fromhex("".join(digests)), ">u8").reshape(-1, 2).astype(np.uint64)
    node, key = np.concatenate(banded_nodes), np.concatenate(banded_keys)
    return pa.table(
        [
            np.concatenate([halves[:, 0], key.T.reshape(-1)]),
            np.concatenate([halves[:, 1], np.repeat(np.arange(bands, dtype=np.uint64), len(node))]),
            np.concatenate([place(shard, np.arange(len(digests))), np.tile(node, bands)]),
        ],
        schema=KEYS,
    )


def links_in(keys: pa.Table, bands: int) -> tuple[np.ndarray, np.ndarray]:
    """(links of equal texts, candidates that share a band), each int64 [links, 2]: a document, the first with its key.

    `keys` must hold all rows of each of its keys.
    """
    high, low, node = (keys[name].to_numpy() for name in KEYS.names)
    order = np.lexsort((node, low, high))
    high, low, node = high[order], low[order], node[order]
    new = np.ones(len(node), bool)
    new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    first = node[np.flatnonzero(new)][np.cumsum(new) - 1] if len(node) else node
    links, of_band = np.stack([node[~new], first[~new]], axis=1), low[~new] < bands
    return _distinct(links[~of_band]), _distinct(links[of_band])


def _distinct(links_E2: np.ndarray) -> np.ndarray:
    return np.unique(links_E2, axis=0).reshape(-1, 2)


def shingles_of(table: pa.Table, candidates: pa.Table, shingle_words: int) -> pa.Table:
    """SHINGLES for the (node, group) of `candidates`, in order. All nodes are in this TEXT shard."""
    pairs = _distinct(np.stack([candidates["node"].to_numpy(), candidates["other"].to_numpy()], axis=1))
    rows, number = np.unique(pairs[:, 0] & 0xFFFFFFFF, return_inverse=True)
    sets: list[np.ndarray] = []
    for block in folding.blocks(table["text"].take(pa.array(rows))):
        hashes, offsets = minhash.shingle_hashes(block, shingle_words)
        cut = (hashes >> np.uint64(32)).astype(np.uint32)
        sets += [np.unique(cut[start:end]) for start, end in itertools.pairwise(offsets)]
    ends = np.cumsum([0, *map(len, sets)])
    values = pa.array(np.concatenate([*sets, np.zeros(0, np.uint32)]))
    shingles = pa.LargeListArray.from_arrays(pa.array(ends), values).take(pa.array(number))
    return pa.table([pa.array(pairs[:, 1]), pa.array(pairs[:, 0]), shingles], schema=SHINGLES)


def similar(tables: Iterable[pa.Table], min_similarity: float) -> np.ndarray:
    """Links of candidates to the first document of their group that is similar enough, int64 [links, 2].

    `tables` are SHINGLES with all rows of each of their groups, in the order of the nodes. A document that is similar
    to none of the leaders of its group becomes a leader, if the group has fewer than MOST_LEADERS.
    """
    leaders: dict[int, list[tuple[int, np.ndarray]]] = {}
    links = []
    for table in tables:
        for chunk in table.to_batches():
            ends, values = chunk["shingles"].offsets.to_numpy(), chunk["shingles"].values.to_numpy()
            groups, nodes = chunk["group"].to_pylist(), chunk["node"].to_pylist()
            for group, node, start, end in zip(groups, nodes, ends[:-1], ends[1:], strict=True):
                shingles, known = values[start:end], leaders.setdefault(group, [])
                for leader, others in known:
                    if _at_least(shingles, others, min_similarity):
                        links.append((node, leader))
                        break
                else:
                    if len(known) < MOST_LEADERS:
                        known.append((node, shingles.copy()))
    return np.array(links, np.int64).reshape(-1, 2)


def _at_least(a: np.ndarray, b: np.ndarray, min_similarity: float) -> bool:
    """Whether the Jaccard similarity of two sets, as sorted distinct values, is at least `min_similarity`."""
    if min(len(a), len(b)) < min_similarity * max(len(a), len(b)):
        return False
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared >= min_similarity * (len(a) + len(b) - shared)


def name_kept(table: pa.Table, links: pa.Table) -> pa.Table:
    """DROPS for the (node, kept) of `links`. All kept documents are in this TEXT shard."""
    rows = links["other"].to_numpy() & 0xFFFFFFFF
    distinct, number = np.unique(rows, return_inverse=True)
    kept = table.take(pa.array(distinct))
    texts = pa.array(normalized_hashes(kept["text"]), pa.string())
    number = pa.array(number)
    return pa.table([links["node"], kept["id"].take(number), texts.take(number)], schema=DROPS)


def drop_rows(table: pa.Table, drops: pa.Table) -> tuple[pa.Table, pa.Table]:
    """(kept TEXT, CLUSTERS of the dropped documents) of one shard. All `drops` are documents of this shard."""
    ordered = drops.sort_by("node")
    rows = ordered["node"].to_numpy() & 0xFFFFFFFF
    keep = np.ones(table.num_rows, dtype=bool)
    keep[rows] = False
    dropped = table.take(pa.array(rows))
    kinds = [
        EXACT if digest == kept else NEAR
        for digest, kept in zip(normalized_hashes(dropped["text"]), ordered["kept_text"].to_pylist(), strict=True)
    ]
    columns = [dropped["id"], ordered["kept_id"], dropped["content_hash"], pa.array(kinds, pa.string())]
    return table.filter(pa.array(keep)), pa.table(columns, schema=schema.CLUSTERS)
