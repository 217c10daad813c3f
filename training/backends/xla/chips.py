"""The TPU chips of this process, by their own word. Has not run on a TPU."""

import os

import torch_xla.runtime as xr

from training.log.chips import kind_of


def tpu_chips() -> dict[str, int]:
    """Kind, as in a topology (v5e) -> chips that the process has."""
    return {kind_of(_accelerator_type()): xr.addressable_runtime_device_count()}


def _accelerator_type() -> str:
    """GKE sets it; elsewhere torch_xla asks the machine's metadata server."""
    if given := os.environ.get("TPU_ACCELERATOR_TYPE"):
        return given
    from torch_xla._internal import tpu

    try:
        return tpu.get_tpu_type() or ""
    except Exception:  # whatever went wrong there: an account is no reason to end a run
        return ""
