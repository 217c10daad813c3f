"""The TPU chips of this process, as its runtime reports them. This code has not run on a TPU."""

import os

import torch_xla.runtime as xr


def tpu_chips() -> tuple[str, int]:
    """The accelerator type of this host ('' if the machine does not name it), and the number of the process's chips."""
    return _accelerator_type(), xr.addressable_runtime_device_count()


def _accelerator_type() -> str:
    """From the variable that GKE sets; elsewhere torch_xla asks the machine's metadata server."""
    if given := os.environ.get("TPU_ACCELERATOR_TYPE"):
        return given
    from torch_xla._internal import tpu

    try:
        return tpu.get_tpu_type() or ""
    except Exception:  # whatever went wrong: an account is no reason to end a run
        return ""
