"""What is known of a chip: the names that others give it, its machine, its peak."""

import dataclasses

import pytest

from infra.chips import CHIPS, GPUS, TPUS, Constant, chip_called, gpu_peaks, pod_chips, shown_name


def test_every_figure_of_money_and_energy_says_where_it_comes_from() -> None:
    for chip in CHIPS.values():
        figures = [getattr(chip, field.name) for field in dataclasses.fields(chip)]
        constants = [figure for figure in [*figures, chip.vcpus_per_chip] if isinstance(figure, Constant)]
        assert len(constants) == 4
        assert all(constant.source and constant.date and constant.unit for constant in constants)


def test_no_two_chips_share_a_name_of_any_kind() -> None:
    for name in ("generation", "ray_name", "gke_accelerator"):
        assert len({getattr(tpu, name) for tpu in TPUS.values()}) == len(TPUS)
    for chip in CHIPS.values():
        own_name = getattr(chip, "device_name", chip.name)
        assert [other for other in CHIPS.values() if other.is_called(own_name)] == [chip]


@pytest.mark.parametrize(
    ("device_name", "name", "shown"),
    [
        ("v5litepod-16", "v5e", "v5e"),
        ("v5e", "v5e", "v5e"),
        ("v4-8", "v4", "v4"),
        ("v6e-4", "v6e", "v6e"),
        ("NVIDIA H100 80GB HBM3", "h100", "NVIDIA H100 80GB HBM3"),
        ("NVIDIA A100-SXM4-80GB", "a100", "NVIDIA A100-SXM4-80GB"),
        ("TPU", None, "TPU"),
        ("Tesla T4", None, "Tesla T4"),
    ],
)
def test_a_chip_is_known_by_what_it_calls_itself(device_name: str, name: str | None, shown: str) -> None:
    chip = chip_called(device_name)
    assert (chip.name if chip else None, shown_name(device_name)) == (name, shown)


@pytest.mark.parametrize(
    ("chip", "chips", "pod_type"), [("v5e", 16, "v5litepod-16"), ("v4", 8, "v4-16"), ("v5p", 64, "v5p-128")]
)
def test_a_pod_type_counts_chips_or_cores(chip: str, chips: int, pod_type: str) -> None:
    assert TPUS[chip].pod_type(chips) == pod_type
    assert pod_chips(pod_type) == chips


def test_a_pod_type_of_an_unknown_chip_counts_chips() -> None:
    assert (pod_chips("v9-16"), pod_chips("v5litepod")) == (16, 0)


@pytest.mark.parametrize(
    ("device_name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("Tesla T4", None),
    ],
)
def test_slower_cards_of_a_name_are_told_apart(device_name: str, peak: float | None) -> None:
    assert next((flops for part, flops in gpu_peaks().items() if part in device_name), None) == peak
    assert len(gpu_peaks()) == sum(1 + len(gpu.slower_cards) for gpu in GPUS.values())
