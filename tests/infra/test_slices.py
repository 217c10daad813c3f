"""Chips, slices and meshes as numbers."""

import pytest

from infra.chips import TPUS
from infra.slices import check_mesh, model_flops_utilization, parse_topology, roofline, sent_bytes
from model.sharding import MeshShape


@pytest.mark.parametrize(
    ("text", "slices", "chips", "hosts"),
    [("v5p:4x4x4", 1, 64, 16), ("v5e:16x16", 2, 512, 128), ("v4:8x16x32", 1, 4096, 1024), ("v6e:4x4", 1, 16, 4)],
)
def test_a_topology_is_read_as_the_compiler_names_it(text: str, slices: int, chips: int, hosts: int) -> None:
    place = parse_topology(text, slices)
    assert (place.name, place.chips, place.hosts) == (text, chips, hosts)


@pytest.mark.parametrize(
    ("text", "slices", "message"),
    [
        ("v7x:4x4", 1, "unknown chip 'v7x'.*there are v4, v5e, v5p, v6e"),
        ("v5p:4x4", 1, "3 dimensions: write it as in v5p:4x4x4"),
        ("v5e:4x", 1, "2 dimensions"),
        ("v5e:3x4", 1, "multiples of 4"),
        ("v5e:0x4", 1, "multiples of 4"),
        ("v5e:16x32", 1, "at most 256.*--slices"),
        ("v5e:4x4", 0, "at least 1"),
    ],
)
def test_a_slice_that_nobody_rents_is_refused(text: str, slices: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_topology(text, slices)


def test_a_mesh_is_read_with_its_axes_in_any_order() -> None:
    assert MeshShape.parse("model=4, data=16") == MeshShape(data=16, model=4)
    assert MeshShape.parse("model=4, data=16").text == "data=16,model=4"


@pytest.mark.parametrize("text", ["data=0", "data", "rows=4", "data=2,data=2", "data=-1", "data=1.5", ""])
def test_a_mesh_of_other_axes_or_sizes_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="allowed are replica, data, model, once each"):
        MeshShape.parse(text)


@pytest.mark.parametrize(
    ("mesh", "batch", "message"),
    [
        ("data=8", 8, "8 places, but v5e:4x4 x 1 has 16 chips.*data=16,model=1, data=8,model=2, data=4,model=4"),
        ("data=2,model=8", 2, "model=8; it must divide the heads .8., the key heads .4.*choose 1, 2, 4"),
        ("data=16", 17, "try --batch 16"),
        ("data=16", 0, "try --batch 16"),
    ],
)
def test_a_mesh_that_does_not_divide_is_refused(mesh: str, batch: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_mesh(MeshShape.parse(mesh).sizes, parse_topology("v5e:4x4"), heads=8, kv_heads=4, batch=batch)


def test_bytes_on_the_wire_are_those_of_rings() -> None:
    assert sent_bytes("all-gather", 100, 4) == 300
    assert sent_bytes("reduce-scatter", 400, 4) == 300
    assert sent_bytes("all-reduce", 400, 4) == 600, "a reduce-scatter, then an all-gather"
    assert sent_bytes("collective-permute", 400, 4) == 400
    assert sent_bytes("all-reduce", 400, 1) == 0
    with pytest.raises(AssertionError, match="unknown collective 'gossip'"):
        sent_bytes("gossip", 1, 2)


def test_a_slice_has_the_links_of_its_shape() -> None:
    shares = {
        "v5e:2x2": 2 / 4, "v5e:2x4": 2 / 4, "v6e:4x4": 2 / 4, "v5e:8x16": 3 / 4, "v6e:16x16": 1.0,
        "v5p:2x2x1": 2 / 6, "v4:2x2x4": 3 / 6, "v5p:4x4x4": 1.0, "v4:8x16x32": 1.0,
    }  # fmt: skip
    assert {name: parse_topology(name).ici_share for name in shares} == pytest.approx(shares)


def test_a_roofline_is_bound_by_its_slowest_resource() -> None:
    chip = TPUS["v5e"]
    bounds = roofline(
        parse_topology("v5e:16x16"), flops=197e12, hbm_bytes=2 * 819e9, ici_bytes=0.5 * 200e9, dcn_bytes=0
    )
    assert (bounds.best_seconds, bounds.worst_seconds, bounds.bound_by) == (2.0, 3.5, "HBM")
    assert model_flops_utilization(chip, model_flops=197e12, seconds=bounds.best_seconds) == 0.5
