"""Connected components of a graph whose edges no process holds whole: alternating large-star and small-star.

Kiveris, Lattanzi, Mirrokni, Rastogi, Vassilvitskii: Connected Components in MapReduce and Beyond (SoCC 2014). Each
operation looks at one node with its neighbours at a time, so edges lie in parts by the node that they are looked at
from. Rounds of both end in stars: every node linked to the smallest of its component. An edge is int64 (larger,
smaller). Cost: O(log^2 n) rounds at most, a handful in practice; memory: the edges of one part.
"""

import numpy as np

from data.minhash import mix


def unique_edges(edges_E2: np.ndarray) -> np.ndarray:
    """Each edge once, ordered, (larger, smaller); loops are left out."""
    edges = np.stack([edges_E2.max(axis=1), edges_E2.min(axis=1)], axis=1) if len(edges_E2) else edges_E2
    edges = edges[edges[:, 0] != edges[:, 1]]
    return np.unique(edges, axis=0).reshape(-1, 2)


def stars(edges_E2: np.ndarray) -> np.ndarray:
    """All at once, where the edges fit: (node, smallest of its component) for every node but the smallest."""
    import scipy.sparse.csgraph  # takes a second, which whoever only plans this stage should not wait for

    nodes, ends = np.unique(edges_E2, return_inverse=True)
    ends = ends.reshape(-1, 2)
    graph = scipy.sparse.coo_matrix((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), shape=(len(nodes),) * 2)
    count, label = scipy.sparse.csgraph.connected_components(graph, directed=False)
    smallest = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(smallest, label, nodes)
    return unique_edges(np.stack([nodes, smallest[label]], axis=1))


def large_star(edges_E2: np.ndarray) -> np.ndarray:
    """`edges` (node, neighbour) of whole neighbourhoods: larger neighbours are linked to the smallest around."""
    node, neighbour, smallest = _neighbourhoods(edges_E2)
    larger = neighbour > node
    return unique_edges(np.stack([neighbour[larger], smallest[larger]], axis=1))


def small_star(edges_E2: np.ndarray) -> np.ndarray:
    """`edges` (node, smaller neighbour): the node and these neighbours are linked to the smallest of them."""
    node, neighbour, smallest = _neighbourhoods(edges_E2)
    linked = np.concatenate([np.stack([neighbour, smallest], axis=1), np.stack([node, smallest], axis=1)])
    return unique_edges(linked)


def checksum(edges_E2: np.ndarray) -> int:
    """Of a set of edges, below 2**63, the sum over any parts modulo that: two rounds that agree changed nothing."""
    hashes = mix(mix(edges_E2[:, 0].astype(np.uint64)) + edges_E2[:, 1].astype(np.uint64))
    return int(hashes.sum(dtype=np.uint64)) % (1 << 63)


def part_of(nodes: np.ndarray, parts: int) -> np.ndarray:
    """The part that a node's neighbourhood lies in."""
    return (mix(nodes.astype(np.uint64)) % np.uint64(parts)).astype(np.int64)


def _neighbourhoods(edges_E2: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(node, neighbour, smallest of the node and all its neighbours) for each edge, ordered by node."""
    if not len(edges_E2):
        empty = np.zeros(0, np.int64)
        return empty, empty, empty
    ordered = np.unique(edges_E2, axis=0)
    node, neighbour = ordered[:, 0], ordered[:, 1]
    first = np.flatnonzero(np.concatenate([[True], node[1:] != node[:-1]]))
    smallest = np.minimum(node[first], neighbour[first])  # neighbours ascend
    return node, neighbour, np.repeat(smallest, np.diff(np.append(first, len(node))))
