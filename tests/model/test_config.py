from dataclasses import FrozenInstanceError

import pytest

from model import gemma2_2b, gemma2_9b, gemma2_27b, gemma2_tiny


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"heads": 4, "kv_heads": 3}, "kv_heads is 3.*divides 4"),
        ({"head_dim": 31}, "head_dim is 31.*try 32"),
        ({"layers": 0}, "layers is 0.*at least 1"),
        ({"window": 2.5}, "window is 2.5.*whole number"),
        ({"attention_softcap": 0.0}, "attention_softcap is 0.0.*above 0"),
        ({"final_softcap": None}, "final_softcap is None"),
    ],
)
def test_an_impossible_shape_is_refused_by_name(overrides, message):
    with pytest.raises(ValueError, match=message):
        gemma2_tiny(**overrides)


def test_a_config_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        gemma2_tiny().layers = 3  # type: ignore[misc]


def test_even_layers_are_local_and_the_last_one_is_global():
    for config in (gemma2_2b(), gemma2_9b(), gemma2_27b()):
        assert config.layer_window(0) == 4096
        assert config.layer_window(1) is None
        assert config.layer_window(config.layers - 1) is None


def test_query_scales_are_the_corrected_ones():
    assert [config().query_scale for config in (gemma2_2b, gemma2_9b, gemma2_27b)] == [256, 256, 144]
