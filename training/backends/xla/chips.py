"""The TPU chips of this process, by their own word. Has not run on a TPU."""

import os

import torch_xla.runtime as xr


def tpu_chips() -> tuple[str, int]:
    """The accelerator type of this host ('' where the machine does not say), and the chips that the process has."""
    return _accelerator_type(), xr.addressable_runtime_device_count()


def _accelerator_type() -> str:
    """GKE sets it; elsewhere torch_xla asks the machine's metadata server."""
    if given := os.environ.get("TPU_ACCELERATOR_TYPE"):
        return given
    from torch_xla._internal import tpu

    try:
        return tpu.get_tpu_type() or ""
    except Exception:  # whatever went wrong there: an account is no reason to end a run
        return ""
