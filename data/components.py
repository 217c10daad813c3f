"""Connected components of a graph whose edges no process holds whole: alternating large-star and small-star.

Kiveris, Lattanzi, Mirrokni, Rastogi, Vassilvitskii: Connected Components in MapReduce and Beyond (SoCC 2014). Both
operations look at one node and its neighbours at a time, so the edges are divided into parts by that node. Rounds of
both operations end in stars: every node is linked to the smallest node of its component. An edge is int64 (larger,
smaller). Cost: at most O(log^2 n) rounds, a handful in practice. Memory: the edges of one part.
"""

import numpy as np

from data.minhash import mix


def unique_edges(edges_E2: np.ndarray) -> np.ndarray:
    """Each edge once as (larger, smaller), in order. Loops are left out."""
    edges = np.stack([edges_E2.max(axis=1), edges_E2.min(axis=1)], axis=1) if len(edges_E2) else edges_E2
    edges = edges[edges[:, 0] != edges[:, 1]]
    return np.unique(edges, axis=0).reshape(-1, 2)


def stars(edges_E2: np.ndarray) -> np.ndarray:
    """(node, smallest node of its component) for every node but the smallest, at once, if all edges fit in memory."""
    import scipy.sparse.csgraph  # takes a second, which `plan` should not wait for

    nodes, ends = np.unique(edges_E2, return_inverse=True)
    ends = ends.reshape(-1, 2)
    graph = scipy.sparse.coo_matrix((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), shape=(len(nodes),) * 2)
    count, label = scipy.sparse.csgraph.connected_components(graph, directed=False)
    smallest = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(smallest, label, nodes)
    return unique_edges(np.stack([nodes, smallest[label]], axis=1))


def large_star(edges_E2: np.ndarray) -> np.ndarray:
    """Links the larger neighbours of each node to the smallest node of its neighbourhood.

    Edges are (node, neighbour), and all edges of a node are given.
    """
    node, neighbour, smallest = _neighbourhoods(edges_E2)
    larger = neighbour > node
    return unique_edges(np.stack([neighbour[larger], smallest[larger]], axis=1))


def small_star(edges_E2: np.ndarray) -> np.ndarray:
    """Links each node and its smaller neighbours to the smallest of them. Edges are (node, smaller neighbour)."""
    node, neighbour, smallest = _neighbourhoods(edges_E2)
    linked = np.concatenate([np.stack([neighbour, smallest], axis=1), np.stack([node, smallest], axis=1)])
    return unique_edges(linked)


def checksum(edges_E2: np.ndarray) -> int:
    """A checksum of a set of edges, below 2**63. Checksums of parts add up, modulo 2**63, to that of the whole.

    Two rounds with one checksum have the same edges: the components are found.
    """
    hashes = mix(mix(edges_E2[:, 0].astype(np.uint64)) + edges_E2[:, 1].astype(np.uint64))
    return int(hashes.sum(dtype=np.uint64)) % (1 << 63)


def part_of(nodes: np.ndarray, parts: int) -> np.ndarray:
    """The part that holds the edges of each node."""
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
