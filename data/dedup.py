"""Duplicates, exact and near: which document of a cluster is kept, and which documents are dropped.

    TEXT shard -> keys_of -> (by key) links_in -> (components.py) -> (node, kept) -> drop_rows -> TEXT, CLUSTERS

A node is a document's place, shard * 2**32 + row. Documents that share a key are linked. A document has one key for its
normalized text (128 bits, lower case, white space as single spaces), and one key for each band of MinHash (minhash.py).
Each connected component keeps its first document, in the order of the shards. Texts stay in place; only keys and links
are shuffled.
"""

import numpy as np
import pyarrow as pa
import xxhash

from data import minhash, schema

KEYS = pa.schema([("high", pa.uint64()), ("low", pa.uint64()), ("node", pa.int64())])
LINKS = pa.schema([("node", pa.int64()), ("other", pa.int64())])
DROPS = pa.schema([("node", pa.int64()), ("kept_id", pa.string()), ("kept_text", pa.string())])
"""documents that a shard drops; kept_text is the `normalized_hash` of the document that is kept instead"""
EXACT, NEAR = "exact_duplicate", "near_duplicate"


def place(shard: int, rows: np.ndarray) -> np.ndarray:
    """Nodes of the documents at `rows` of TEXT shard number `shard`."""
    return (np.int64(shard) << np.int64(32)) + rows.astype(np.int64)


def normalized_hash(text: str) -> str:
    """32 hex digits (xxh3-128), equal for texts that differ only in letter case and white space."""
    return xxhash.xxh3_128_hexdigest(" ".join(text.lower().split()).encode())


def keys_of(table: pa.Table, shard: int, *, bands: int, rows: int, shingle_words: int, seed: int) -> pa.Table:
    """KEYS of the documents of one shard. With 0 `bands`, only exact duplicates share a key."""
    texts = table["text"].to_pylist()
    digests = [normalized_hash(text) for text in texts]
    halves = np.frombuffer(bytes.fromhex("".join(digests)), ">u8").reshape(-1, 2).astype(np.uint64)
    nodes = place(shard, np.arange(len(texts)))
    high, low, node = [halves[:, 0]], [halves[:, 1]], [nodes]
    if bands and len(texts):
        signatures = minhash.signatures(table["text"], shingle_words, bands * rows, seed)
        worded = minhash.has_words(signatures)
        keys = minhash.band_keys(signatures[worded], bands)
        for band in range(bands):
            high.append(keys[:, band])
            low.append(np.full(len(keys), band, np.uint64))
            node.append(nodes[worded])
    return pa.table([np.concatenate(high), np.concatenate(low), np.concatenate(node)], schema=KEYS)


def links_in(keys: pa.Table) -> np.ndarray:
    """Links of each document to the first document with the same key, int64 [links, 2].

    `keys` must hold all rows of each of its keys.
    """
    high, low, node = (keys[name].to_numpy() for name in KEYS.names)
    order = np.lexsort((node, low, high))
    high, low, node = high[order], low[order], node[order]
    new = np.ones(len(node), bool)
    new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    first = node[np.flatnonzero(new)][np.cumsum(new) - 1] if len(node) else node
    return np.unique(np.stack([node[~new], first[~new]], axis=1), axis=0).reshape(-1, 2)


def name_kept(table: pa.Table, links: pa.Table) -> pa.Table:
    """DROPS for the (node, kept) of `links`. All kept documents are in this TEXT shard."""
    rows = links["other"].to_numpy() & 0xFFFFFFFF
    distinct, number = np.unique(rows, return_inverse=True)
    kept = table.take(pa.array(distinct))
    texts = pa.array([normalized_hash(text) for text in kept["text"].to_pylist()], pa.string())
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
        EXACT if normalized_hash(text) == kept else NEAR
        for text, kept in zip(dropped["text"].to_pylist(), ordered["kept_text"].to_pylist(), strict=True)
    ]
    columns = [dropped["id"], ordered["kept_id"], dropped["content_hash"], pa.array(kinds, pa.string())]
    return table.filter(pa.array(keep)), pa.table(columns, schema=schema.CLUSTERS)
