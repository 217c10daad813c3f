"""Connected components in parts are those of the whole graph."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import components


def in_rounds(edges: np.ndarray, parts: int) -> np.ndarray:
    """The stage's loop, without Ray."""
    current, before = np.concatenate([edges, edges[:, ::-1]]), -1
    for _ in range(64):
        divided = [current[components.part_of(current[:, 0], parts) == part] for part in range(parts)]
        mine = [components.unique_edges(part[part[:, 0] > part[:, 1]]) for part in divided]
        now = sum(components.checksum(part) for part in mine) % (1 << 63)
        if now == before:
            return np.unique(np.concatenate(mine), axis=0)
        before = now
        large = np.concatenate([components.large_star(part) for part in divided])
        places = components.part_of(large[:, 0], parts)
        small = np.concatenate([components.small_star(large[places == part]) for part in range(parts)])
        current = np.concatenate([small, small[:, ::-1]])
    raise AssertionError("no end")


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40),
    st.integers(1, 4),
)
def test_rounds_over_parts_end_in_the_stars_of_the_whole_graph(pairs: list[tuple[int, int]], parts: int) -> None:
    edges = components.unique_edges(np.array(pairs, np.int64).reshape(-1, 2))
    assert np.array_equal(in_rounds(edges, parts), components.stars(edges).reshape(-1, 2))


@pytest.mark.parametrize("parts", [1, 3])
def test_a_long_chain_ends_in_its_first_node(parts: int) -> None:
    chain = np.stack([np.arange(1, 2000), np.arange(1999)], axis=1)
    stars = in_rounds(chain, parts)
    assert stars[:, 1].max() == 0
    assert stars[:, 0].tolist() == list(range(1, 2000))
