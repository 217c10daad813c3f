"""Every accelerator that the project knows: its speed, its names, its machine, its price.

    CHIPS = TPUS + GPUS, by name          `chip_called` -> the chip that a device's own name means

A new chip is one entry below, and no other file spells its name. Every price, power and carbon figure has a unit, a
source and a date. Sources of the other figures of TPUs:

- https://cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e (system architecture: peak, HBM, ICI of a chip, pod size)
- v4's links (6 of 50 GB/s each way) and 4-chip hosts: arXiv 2304.01433, Table 4; the cloud page has no figure per chip
- HBM that a compiled program may use: "Used X of Y hbm" in libtpu's error when a program does not fit
  (tests/infra/test_aot.py)
- cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus (accelerator labels, topologies, machines)

Peaks of GPUs are those of NVIDIA's data sheets.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

GIB = 2**30
OURS = "ours"
"""first word in the source of a constant that nobody publishes: our own estimate or measurement"""
PRICING = "Google Cloud's list prices on demand"
CLOUD_REGIONS = "GoogleCloudPlatform/region-carbon-info, data/yearly/2024.csv, hourly grid mix"
V4_PAPER = "arXiv 2304.01433, Table 4: most that production jobs drew, ASIC and HBM (mean 170, idle 90)"
LIKE_V4 = f"{OURS}: none is published; as many operations a joule as v4 at its most, 275e12 / 192"
AUTOSCALER = "kubernetes/autoscaler, gce_price_info.go"
QUOTED = f"{OURS}: as others' public code quotes Google Cloud on demand, not looked up there"
GPU_SHEET = "NVIDIA's data sheet of the SXM module: most that it draws"

FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
"""topologies of two dimensions with 4 chips a host"""
CUBES = (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4"),
    *("4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16", "8x16x32"),
)
"""topologies of three dimensions; from 4x4x4 on, sides are multiples of 4 in rising order"""
COMPILING_HOST = "v5litepod-8"
"""pod type of the machine on which libtpu takes itself to compile; any pod type works"""


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A number with unit, source and date, on which a plan rests."""

    value: float
    unit: str
    source: str
    date: str
    """date of the source"""


def constant(value: float, unit: str, source: str, date: str) -> Constant:
    return Constant(value=value, unit=unit, source=source, date=date)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine type of Google Compute Engine that holds chips."""

    name: str
    chips: int
    vcpus: int
    gigabytes: int
    """memory of the host, in GB"""


@dataclass(frozen=True, kw_only=True)
class Chip:
    """An accelerator of any maker."""

    name: str
    """name in topologies and in constants of prices: v5p in v5p:4x4x4"""
    peak_flops: float
    """dense bfloat16 operations a second"""
    machine: Machine
    """machine type that is rented with the chip"""
    usd_per_chip_hour: Constant
    """price on demand, with the chip's share of the machine"""
    watts_per_chip: Constant
    """power of the chip, without the host"""
    grid_kg_per_kwh: Constant
    """carbon factor of the region in which the chip is taken to run"""

    @property
    def vcpus_per_chip(self) -> Constant:
        machine = self.machine
        source = f"machine type {machine.name}, {machine.vcpus} / {machine.chips}"
        return constant(machine.vcpus / machine.chips, "vCPU", source, "2025")


@dataclass(frozen=True, kw_only=True)
class Tpu(Chip):
    """A TPU chip of Google, which is rented in whole slices."""

    hbm_bytes: int
    """high-bandwidth memory of a chip, in bytes"""
    usable_hbm_bytes: int
    """HBM that libtpu lets a program use, in bytes; the runtime has the rest"""
    hbm_bandwidth: float
    """bandwidth of HBM, in bytes a second"""
    ici_bandwidth: float
    """bytes a second that a chip can send to its neighbours over all links together, in one direction"""
    dcn_bandwidth: float
    """bytes a second of a chip's share of its host's network card, in one direction"""
    dimensions: int
    """dimensions of the torus: 2 or 3"""
    largest_slice: int
    """number of chips in the largest slice"""
    generation: str
    """first part of a pod type and of the chip's own name: v5litepod in v5litepod-16"""
    pod_type_cores: int
    """number by which a pod type counts one chip: the cores of the chip, or 1"""
    ray_name: str
    """accelerator type in Ray"""
    gke_accelerator: str
    """value of the node label cloud.google.com/gke-tpu-accelerator"""
    gke_topologies: tuple[str, ...]
    """shapes of slices that Kubernetes Engine offers, with `chips_per_host` chips a host"""
    compiler_options: Mapping[str, Any] = field(default_factory=dict)
    """options of libtpu's compiler besides the topology"""

    @property
    def chips_per_host(self) -> int:
        """Chips of a host in a slice of several hosts."""
        return self.machine.chips

    def pod_type(self, chips: int) -> str:
        """Name of a slice in the cloud and in Ray: v5litepod-16, or v4-16 for 8 chips of 2 cores."""
        return f"{self.generation}-{chips * self.pod_type_cores}"

    def is_called(self, device_name: str) -> bool:
        return device_name.partition("-")[0].lower() in (self.name, self.generation)


@dataclass(frozen=True, kw_only=True)
class Gpu(Chip):
    """A GPU of NVIDIA. `peak_flops` is that of the SXM module."""

    device_name: str
    """part of the name that CUDA gives the device"""
    slower_cards: Mapping[str, float] = field(default_factory=dict)
    """word after `device_name` -> peak operations a second of a slower card with that word in its name"""

    def is_called(self, device_name: str) -> bool:
        return self.device_name.lower() in device_name.lower()


TPUS: Mapping[str, Tpu] = {
    chip.name: chip
    for chip in (
        # 275 TFLOP/s, 32 GiB, 1200 GB/s; 6 links of 50 GB/s; no public figure for the network, so it is taken from v5p
        Tpu(
            name="v4", generation="v4", pod_type_cores=2, ray_name="TPU-V4", gke_accelerator="tpu-v4-podslice",
            peak_flops=275e12, hbm_bytes=32 * GIB, usable_hbm_bytes=int(30.75 * GIB), hbm_bandwidth=1200e9,
            ici_bandwidth=300e9, dcn_bandwidth=6.25e9, dimensions=3, largest_slice=4096, gke_topologies=CUBES,
            machine=Machine(name="ct4p-hightpu-4t", chips=4, vcpus=240, gigabytes=407),
            # both cores of a chip are one device, as in the cloud; by default each core is a device
            compiler_options={"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)},
            usd_per_chip_hour=constant(3.22, "USD", f"{PRICING}, us-central2", "2025"),
            watts_per_chip=constant(192, "W", V4_PAPER, "2023-04"),
            grid_kg_per_kwh=constant(0.37223, "kgCO2e", f"us-central2; {CLOUD_REGIONS}", "2024"),
        ),
        # 197 TFLOP/s, 16 GB, 819 GB/s, ICI 400 GB/s both ways, 6.4 Tbit/s for a pod of 256
        Tpu(
            name="v5e", generation="v5litepod", pod_type_cores=1, ray_name="TPU-V5LITEPOD",
            gke_accelerator="tpu-v5-lite-podslice",
            peak_flops=197e12, hbm_bytes=16 * GIB, usable_hbm_bytes=int(15.75 * GIB), hbm_bandwidth=819e9,
            ici_bandwidth=200e9, dcn_bandwidth=3.125e9, dimensions=2, largest_slice=256, gke_topologies=FLAT,
            machine=Machine(name="ct5lp-hightpu-4t", chips=4, vcpus=112, gigabytes=192),
            usd_per_chip_hour=constant(1.20, "USD", f"{PRICING}; kubernetes/autoscaler has 4.80 a host", "2025"),
            watts_per_chip=constant(138, "W", LIKE_V4, "2026-11"),
            grid_kg_per_kwh=constant(0.41272, "kgCO2e", f"us-central1; {CLOUD_REGIONS}", "2024"),
        ),
        # 459 TFLOP/s, 95 GB, 2765 GB/s, ICI 1200 GB/s both ways, 50 Gbit/s a chip
        Tpu(
            name="v5p", generation="v5p", pod_type_cores=2, ray_name="TPU-V5P", gke_accelerator="tpu-v5p-slice",
            peak_flops=459e12, hbm_bytes=95 * GIB, usable_hbm_bytes=int(95.74 * GIB), hbm_bandwidth=2765e9,
            ici_bandwidth=600e9, dcn_bandwidth=6.25e9, dimensions=3, largest_slice=6144,
            gke_topologies=(*CUBES, "8x24x32"),
            machine=Machine(name="ct5p-hightpu-4t", chips=4, vcpus=208, gigabytes=448),
            usd_per_chip_hour=constant(4.20, "USD", f"{PRICING}; kubernetes/autoscaler has 16.80 a host", "2025"),
            watts_per_chip=constant(320, "W", LIKE_V4, "2026-11"),
            grid_kg_per_kwh=constant(0.32305, "kgCO2e", f"us-east5; {CLOUD_REGIONS}", "2024"),
        ),
        # 918 TFLOP/s, 32 GB, 1600 GB/s, ICI 800 GB/s both ways, 25.6 Tbit/s for a pod of 256
        Tpu(
            name="v6e", generation="v6e", pod_type_cores=1, ray_name="TPU-V6E", gke_accelerator="tpu-v6e-slice",
            peak_flops=918e12, hbm_bytes=32 * GIB, usable_hbm_bytes=int(31.25 * GIB), hbm_bandwidth=1600e9,
            ici_bandwidth=400e9, dcn_bandwidth=12.5e9, dimensions=2, largest_slice=256, gke_topologies=FLAT,
            machine=Machine(name="ct6e-standard-4t", chips=4, vcpus=180, gigabytes=720),
            usd_per_chip_hour=constant(2.70, "USD", f"{PRICING}; kubernetes/autoscaler has 10.80 a host", "2025"),
            watts_per_chip=constant(
                385, "W", f"{OURS}: from v5e's; Google says 67 % more operations a joule than v5e", "2024-07"
            ),
            grid_kg_per_kwh=constant(0.32305, "kgCO2e", f"us-east5; {CLOUD_REGIONS}", "2024"),
        ),
    )
}  # fmt: skip
GPUS: Mapping[str, Gpu] = {
    chip.name: chip
    for chip in (
        Gpu(
            name="h100", device_name="H100", peak_flops=989e12, slower_cards={"PCIe": 756e12, "NVL": 835e12},
            machine=Machine(name="a3-highgpu-8g", chips=8, vcpus=208, gigabytes=1872),
            usd_per_chip_hour=constant(11, "USD", f"{QUOTED}: a3-highgpu-8g, about 88 a host of 8", "2026-11"),
            watts_per_chip=constant(700, "W", GPU_SHEET, "2023"),
            grid_kg_per_kwh=constant(0.41272, "kgCO2e", f"us-central1; {CLOUD_REGIONS}", "2024"),
        ),
        Gpu(
            name="h200", device_name="H200", peak_flops=989e12, slower_cards={"NVL": 835e12},
            machine=Machine(name="a3-ultragpu-8g", chips=8, vcpus=224, gigabytes=2952),
            usd_per_chip_hour=constant(10.8, "USD", f"{QUOTED}: a3-ultragpu-8g, about 87 a host of 8", "2026-11"),
            watts_per_chip=constant(700, "W", GPU_SHEET, "2024"),
            grid_kg_per_kwh=constant(0.41272, "kgCO2e", f"us-central1; {CLOUD_REGIONS}", "2024"),
        ),
        Gpu(
            name="a100", device_name="A100", peak_flops=312e12,
            machine=Machine(name="a2-ultragpu-1g", chips=1, vcpus=12, gigabytes=170),
            usd_per_chip_hour=constant(5.07, "USD", f"{AUTOSCALER}: a2-ultragpu-1g, with 80 GB", "2025"),
            watts_per_chip=constant(400, "W", GPU_SHEET, "2021"),
            grid_kg_per_kwh=constant(0.41272, "kgCO2e", f"us-central1; {CLOUD_REGIONS}", "2024"),
        ),
    )
}  # fmt: skip
CHIPS: Mapping[str, Tpu | Gpu] = {**TPUS, **GPUS}


def chip_called(device_name: str) -> Tpu | Gpu | None:
    """The chip that a device's own name means; None for a device that is not in the table.

    Examples: `v5litepod-16` -> v5e, `NVIDIA H100 80GB HBM3` -> h100. A TPU's name in the table also means that TPU.
    """
    return next((chip for chip in CHIPS.values() if chip.is_called(device_name)), None)


def pod_chips(pod_type: str) -> int:
    """Chips of a slice of this pod type: 16 of v5litepod-16, 8 of v4-16. 0 for a pod type without a number.

    A chip that is not in the table counts as one.
    """
    chip, count = chip_called(pod_type), pod_type.rpartition("-")[2]
    return int(count) // (chip.pod_type_cores if isinstance(chip, Tpu) else 1) if count.isdigit() else 0


def shown_name(device_name: str) -> str:
    """The name of a TPU in topologies; the device's own name for any other device."""
    chip = chip_called(device_name)
    return chip.name if isinstance(chip, Tpu) else device_name


def gpu_peaks() -> dict[str, float]:
    """Part of a GPU's own name -> dense bfloat16 operations a second. The first part that fits a name counts."""
    peaks: dict[str, float] = {}
    for gpu in GPUS.values():
        peaks |= {f"{gpu.device_name} {card}": peak for card, peak in gpu.slower_cards.items()}
        peaks[gpu.device_name] = gpu.peak_flops
    return peaks
