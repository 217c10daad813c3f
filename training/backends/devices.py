"""Which device there is on this machine, and what it can do."""

import importlib.util
import os
from pathlib import Path

import torch

from training.config import Device
from training.errors import UserError


def resolve_device(device: Device) -> Device:
    """What `auto` means on this machine; any other device is itself."""
    if device != "auto":
        return device
    if has_tpu():
        return "xla"
    if torch.cuda.is_available():
        return "cuda"
    return "xla" if importlib.util.find_spec("torch_xla") is not None else "cpu"


def has_tpu() -> bool:
    """Whether this machine has TPU chips, asked of the kernel: importing libtpu would take the chips."""
    if "PJRT_DEVICE" in os.environ:
        return os.environ["PJRT_DEVICE"].upper() == "TPU"
    return any(Path("/dev").glob("accel*")) or ("TPU_WORKER_ID" in os.environ and any(Path("/dev").glob("vfio/*")))


def check_workers(device: Device, workers: int, *, on_slices: bool = False) -> None:
    """Raises UserError where `device` (resolved) cannot share a step between so many processes.

    `on_slices`: they are to be one on each host of TPU slices, wherever we are.
    """
    if device != "xla" or workers == 1 or on_slices:
        return
    if has_tpu():
        raise UserError(
            f"{workers} workers on device 'xla' without a topology: say which slice they are the hosts of, as in "
            "--topology v5e:4x4, which gives their number, or use workers=1"
        )
    raise UserError(
        f"{workers} workers on device 'xla' without a TPU: XLA on a CPU has no collectives between processes, each "
        "worker would silently train on its own rows; use workers=1, or device 'cpu' for several processes"
    )
