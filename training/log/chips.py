"""The accelerators that a run held, and for how long, which an account counts.

    a worker of a shard   -> `chips_held()` -> its row -> seconds of its shards, in `_RUN.json`
    a worker of training  -> a `began` line in the run's logs -> `held_seconds(logs)` over all attempts

A TPU's runtime gives one process all chips of its host, used or not: they are held, and paid for. Nothing here asks a
device that the process has not opened itself.
"""

import os
import sys


def chips_held(processes: int = 1) -> dict[str, int]:
    """Kind of chip, by its own name -> number of chips that `processes` processes like this one hold; empty if they
    compute on the CPU."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return {torch.cuda.get_device_name(): processes}
    if "torch_xla" in sys.modules and os.environ.get("PJRT_DEVICE", "").upper() == "TPU":
        from training.backends.xla.chips import tpu_chips

        accelerator_type, count = tpu_chips()
        return {kind_of(accelerator_type): count * processes}
    return {}


def kind_of(accelerator_type: str) -> str:
    """A TPU's own name without the size of its slice, `v5litepod` from `v5litepod-16`; `TPU` if the machine does not
    name it."""
    return accelerator_type.partition("-")[0].lower() or "TPU"
