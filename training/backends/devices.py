"""The device of this machine.

Without an accelerator `auto` is `cpu`: at each of five sizes its steps are the faster ones there, 1.3 to 10 times as
fast as those of XLA's compiler for CPUs (docs/benchmarks.md; `python -m tests.benchmarks device`), and its first step
ends sooner.
"""

import importlib.util
import os
from pathlib import Path

import torch

from training.backends.names import Device

TPU_DEVICE: Device = "xla"
"""Device that computes on TPUs."""


def resolve_device(device: Device) -> Device:
    """The device that `auto` means on this machine; any other device is returned as it is."""
    if device != "auto":
        return device
    if has_tpu():
        return TPU_DEVICE
    if torch.cuda.is_available():
        return "cuda"
    return "cpu"


def compiles_here() -> bool:
    """Whether torch_xla is installed."""
    return importlib.util.find_spec("torch_xla") is not None


def has_tpu() -> bool:
    """Whether this machine has TPU chips, asked of the kernel: importing libtpu would take the chips."""
    if "PJRT_DEVICE" in os.environ:
        return os.environ["PJRT_DEVICE"].upper() == "TPU"
    return any(Path("/dev").glob("accel*")) or ("TPU_WORKER_ID" in os.environ and any(Path("/dev").glob("vfio/*")))
