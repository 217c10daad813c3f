"""The sharding table: strict both ways, and refusals that name what is allowed."""

import math

import pytest
import torch

from model import Gemma2, gemma2_2b, gemma2_9b, gemma2_27b, gemma2_tiny
from model.sharding import (
    TABLE,
    MeshShape,
    check_mesh,
    check_rows,
    parameter_specs,
    row_groups,
    shard_shape,
)


def shapes(config):
    with torch.device("meta"):
        return {name: tuple(parameter.shape) for name, parameter in Gemma2(config).named_parameters()}


@pytest.mark.parametrize("config", [gemma2_tiny(), gemma2_2b(), gemma2_27b()], ids=["tiny", "2b", "27b"])
def test_every_parameter_has_one_spec_with_an_entry_for_each_dimension(config) -> None:
    of = shapes(config)
    specs = parameter_specs(of)
    assert specs.keys() == of.keys()
    assert all(len(spec) == len(of[name]) for name, spec in specs.items())


def test_a_parameter_without_a_pattern_is_refused_by_name() -> None:
    with pytest.raises(AssertionError, match=r"lm_head.weight' matches no pattern"):
        parameter_specs([*shapes(gemma2_tiny()), "lm_head.weight"])


def test_a_parameter_with_two_patterns_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLE, "model.norm.*", (None,))
    with pytest.raises(AssertionError, match=r"'model.norm.weight' matches the patterns"):
        parameter_specs(shapes(gemma2_tiny()))


def test_a_pattern_without_a_parameter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLE, "model.layers.*.router.weight", (None,))
    with pytest.raises(AssertionError, match=r"no parameter matches .*router"):
        parameter_specs(shapes(gemma2_tiny()))


@pytest.mark.parametrize(
    ("config", "mesh", "message"),
    [
        (gemma2_2b(), MeshShape(model=8), r"model=8 does not divide kv_heads 4; model may be 1, 2, 4; .* on data"),
        (gemma2_27b(), MeshShape(model=3), r"model=3 does not divide heads 32 and kv_heads 16 and vocab_size 256000"),
        (gemma2_2b(), MeshShape(data=512), r"data=512 does not divide d_model 2304; data may be .*256.* on replica"),
    ],
)
def test_a_mesh_that_does_not_divide_the_model_is_refused_with_what_is_allowed(config, mesh, message) -> None:
    with pytest.raises(ValueError, match=message):
        check_mesh(config, mesh)


def test_the_reports_own_slices_are_possible() -> None:
    check_mesh(gemma2_2b(), MeshShape(replica=2, data=256, model=1))
    check_mesh(gemma2_9b(), MeshShape(replica=2, data=512, model=4))
    check_mesh(gemma2_27b(), MeshShape(data=768, model=8))


def test_an_axis_below_one_and_rows_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="mesh axis data is 0"):
        MeshShape(data=0)
    with pytest.raises(ValueError, match="use a multiple of 8 rows"):
        check_rows(12, MeshShape(replica=2, data=4, model=2))


def test_hosts_that_share_a_model_axis_read_the_same_rows() -> None:
    mesh = MeshShape(replica=2, data=4, model=4)  # 32 chips
    assert [row_groups(hosts, mesh) for hosts in (1, 2, 8, 16, 32)] == [1, 2, 8, 8, 8]
    with pytest.raises(ValueError, match=r"data=4,model=3 on 3 hosts of 4 chips; model=3 must divide"):
        row_groups(3, MeshShape(data=4, model=3))


def test_the_shards_of_a_tensor_add_up_to_it() -> None:
    mesh = MeshShape(replica=3, data=4, model=2)
    assert shard_shape((64, 32), ("model", "data"), mesh) == (32, 8)
    of = shapes(gemma2_2b())
    whole = sum(math.prod(shape) for shape in of.values())
    norms = sum(math.prod(shape) for shape in of.values() if len(shape) == 1)
    specs = parameter_specs(of)
    assert (
        sum(math.prod(shard_shape(shape, specs[name], mesh)) for name, shape in of.items())
        == (whole - norms) // 8 + norms
    )
