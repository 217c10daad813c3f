"""Several workers that divide a model between them: PyTorch's FSDP2, on GPUs over nccl and on CPUs over gloo.

Each worker holds 1/N of every parameter, gradient and moment, along the first dimension: ZeRO stage 3 (arXiv
1910.02054), the `data` axis of `model/sharding.py`. With a `replica` axis each of its groups of workers holds a whole
model, and the gradients that were scattered in each group are summed between the groups ("hybrid" sharding). A block's
weights are gathered before the block runs and dropped after it, forward and backward. The embedding table and the last
norm, which the head needs too, stay whole for a micro-batch. Gradients are scattered as SUMS over workers: the division
by the number of targets happens once, in the optimizer.

The step (`training/step.py`) gets plain tensors, the worker's parts. Norms and checksums, which are over all parts, are
summed over the workers of a group. A checksum is a sum over elements, so it is the same number however the model is
divided. The tests ran on CPUs and on one GPU, not on two GPUs.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from model import Gemma2
from training.backends.base import every
from training.backends.checksum import bit_sum, halves
from training.backends.names import Device
from training.backends.torch_backend import TorchBackend
from training.loss import Batch, LossFunction
from training.optim import global_norm


class FsdpBackend(TorchBackend):
    """The backend of a worker that trains with its part of every parameter. Models that do not train are whole."""

    def __init__(self, name: Device, rank: int, world_size: int, replica: int = 1) -> None:
        super().__init__(name, rank, world_size)
        self.snapshot_by_all = True
        axes = {**({"replica": replica} if replica > 1 else {}), "data": world_size // replica}
        self.mesh = init_device_mesh(self.device.type, tuple(axes.values()), mesh_dim_names=tuple(axes))
        self.parts_group = self.mesh.get_group("data")  # the workers that hold the parts of one model

    def place_model(
        self,
        model: Gemma2,
        *,
        training: bool = False,
        decodes: bool = False,
        compute_dtype: torch.dtype = torch.float32,
    ) -> Gemma2:
        if not training:
            return super().place_model(model, decodes=decodes)
        # As `sum_gradients` does with whole weights. Inputs are not cast: the rotary angles must stay float32.
        policy = MixedPrecisionPolicy(
            param_dtype=None if compute_dtype == torch.float32 else compute_dtype,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )
        for block in model.model.layers:  # each block moves to the device whole and leaves its part there
            fully_shard(block, mesh=self.mesh, mp_policy=policy)
        # The head multiplies by the embedding table after `hidden` has returned.
        fully_shard(model, mesh=self.mesh, mp_policy=policy, reshard_after_forward=False)
        register_fsdp_forward_method(model, "hidden")
        for module in model.modules():
            if isinstance(module, FSDPModule):  # the default is the mean over workers
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        return model

    def parts(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: _part(tensor) for name, tensor in tensors.items()}

    def gradients(
        self,
        model: Gemma2,
        loss_function: LossFunction,
        micro_batches: Sequence[Batch],
        compute_dtype: torch.dtype,
    ) -> tuple[list[Tensor], Tensor]:
        sums = torch.zeros(2, device=self.device)
        for batch in micro_batches:
            loss_sum, targets = loss_function(model, batch)
            loss_sum.backward()
            sums = sums + torch.stack([loss_sum.detach(), targets])
        gradients = []
        for parameter in model.parameters():
            assert parameter.grad is not None
            gradients.append(_part(parameter.grad))
            parameter.grad = None
        torch.distributed.all_reduce(sums)
        return gradients, sums

    def all_reduce_(self, tensors: Sequence[Tensor]) -> None:
        pass  # `gradients` are sums over all workers

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        square = global_norm(gradients).square()
        torch.distributed.all_reduce(square, group=self.parts_group)
        return square.sqrt()

    def checksum(self, tensors: Sequence[Tensor]) -> Tensor:
        total = bit_sum(tensors).long()  # so that no sum of sums overflows
        torch.distributed.all_reduce(total, group=self.parts_group)
        return halves(total)

    def restore(self, tensors: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
        for name, tensor in into.items():
            if isinstance(tensor, DTensor):  # every worker has read the whole tensor and takes its part of its own copy
                whole = distribute_tensor(tensors[name], self.mesh, tensor.placements, src_data_rank=None)
                _part(tensor).copy_(_part(whole))
            else:
                tensor.copy_(tensors[name])

    def snapshot(self, tensors: Mapping[str, Tensor], keeps: Callable[[str], bool] = every) -> dict[str, Tensor]:
        """Copies on the host; one tensor at a time is whole on the device of every worker."""
        copies = {}
        for name, tensor in tensors.items():
            whole = tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()
            if keeps(name):
                copies[name] = whole.to("cpu", copy=True)
        return copies


def _part(tensor: Tensor) -> Tensor:
    """This worker's part, in the tensor's own memory."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor
