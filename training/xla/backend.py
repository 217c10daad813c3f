"""PyTorch/XLA on one process: the product's path, on a TPU and, compiled by the same compiler, on a CPU.

Operations on the device are recorded; `step_boundary` hands the recorded step to XLA, which compiles it when it sees
it for the first time and runs it in the background. Parameters and moments are updated in place: XLA writes into
their own buffers. Nothing may read a value inside a step, since that would cut the program in two and wait for it.

PJRT_DEVICE decides between TPU and CPU when torch_xla is imported; it is set here where nobody has set it.
"""

import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from training.backend import check_workers, has_tpu

os.environ.setdefault("PJRT_DEVICE", "TPU" if has_tpu() else "CPU")

import torch_xla
from torch_xla.debug import metrics


class XlaBackend:
    """One process on an XLA device."""

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        check_workers("xla", world_size)
        self.name = "xla"
        self.rank = rank
        self.world_size = world_size
        self.device: torch.device = torch_xla.device()

    def place_model(self, model: nn.Module) -> nn.Module:
        return model.to(self.device)

    def to_device(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        tensors = torch_xla._XLAC._xla_tensors_from_aten(
            [torch.from_numpy(array) for array in arrays.values()], [str(self.device)] * len(arrays)
        )
        return dict(zip(arrays, tensors, strict=True))

    def all_reduce_(self, tensors: Sequence[Tensor]) -> None:
        pass  # one process: there is nobody to sum with

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return rows

    def step_boundary(self) -> None:
        torch_xla.sync()

    def fetch(self, values: Sequence[Tensor]) -> list[list[float]]:
        return [[float(element) for element in value] for value in torch_xla._XLAC._xla_get_cpu_tensors(list(values))]

    def snapshot(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        torch_xla.sync(wait=True)
        copies = torch_xla._XLAC._xla_get_cpu_tensors([tensor.detach() for tensor in tensors.values()])
        return dict(zip(tensors, copies, strict=True))

    def compiles(self) -> int:
        data = metrics.metric_data("CompileTime")
        return int(data[0]) if data is not None else 0
