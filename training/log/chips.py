"""Which accelerators a run held, and for how long: what an account counts.

    a worker of a shard   -> `chips_held()` -> its row -> seconds of its shards, in `_RUN.json`
    a worker of training  -> a `began` line in the run's logs -> `held_seconds(logs)` over all attempts

A TPU's runtime gives one process all chips of its host, used or not: they are held, and paid for. Nothing here asks a
device that the process has not opened itself.
"""

import os
import sys
from collections.abc import Mapping

SHORT_NAMES = {"v5litepod": "v5e"}
"""generations of TPUs that a topology calls otherwise than a pod's type does"""
BEGAN = "began"
"""kind of the line that each attempt's log starts with"""


def chips_held(processes: int = 1) -> dict[str, int]:
    """Kind of chip, as it calls itself -> how many so many processes like this one hold; empty where they compute on
    the CPU."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return {torch.cuda.get_device_name(): processes}
    if "torch_xla" in sys.modules and os.environ.get("PJRT_DEVICE", "").upper() == "TPU":
        from training.backends.xla.chips import tpu_chips

        return {kind: count * processes for kind, count in tpu_chips().items()}
    return {}


def kind_of(accelerator_type: str) -> str:
    """A TPU's type as topologies call it: `v5litepod-16` -> v5e, `v4-8` -> v4; `TPU` where the machine does not say."""
    generation = accelerator_type.partition("-")[0].lower()
    return SHORT_NAMES.get(generation, generation) or "TPU"


def held_seconds(logs_uri: str) -> dict[str, float]:
    """Kind of chip -> chip-seconds of all attempts of a training run, by its logs: from each begin to its last line.

    What a killed attempt did after the last line that it wrote is not in them.
    """
    from training.log.run_log import read_lines  # imports torch

    held: dict[str, float] = {}
    chips: Mapping[str, int] = {}
    last = 0.0
    for line in read_lines(logs_uri):
        if line["kind"] == BEGAN:
            chips, last = line["chips"], line["since"]
        for kind, count in chips.items():
            held[kind] = held.get(kind, 0.0) + count * max(0.0, line["time"] - last)
        last = line["time"]
    return held
