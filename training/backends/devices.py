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


def lacking(device: Device) -> str:
    """What this machine lacks to compute on the device, in words; empty if it can."""
    if device == "cuda" and not torch.cuda.is_available():
        return "PyTorch finds no GPU here"
    if device == TPU_DEVICE and not compiles_here():
        return "torch_xla is not installed here"
    return ""


def stands_in(device: Device) -> str:
    """What computes in place of the accelerator that the device is for, in words; empty if the accelerator does."""
    if device == TPU_DEVICE and compiles_here() and not has_tpu():
        return "no TPU is here, so XLA computes on the CPU"
    return ""


def compiles_here() -> bool:
    """Whether torch_xla is installed."""
    return importlib.util.find_spec("torch_xla") is not None


def has_tpu() -> bool:
    """Whether this machine has TPU chips, asked of the kernel: importing libtpu would take the chips."""
    if "PJRT_DEVICE" in os.environ:
        return os.environ["PJRT_DEVICE"].upper() == "TPU"
    return any(Path("/dev").glob("accel*")) or ("TPU_WORKER_ID" in os.environ and any(Path("/dev").glob("vfio/*")))
