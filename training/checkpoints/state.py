"""Weights and optimizer state between a device and the host, by the names of the model, whatever the mesh."""

from collections.abc import Mapping

from torch import Tensor

from training.backends.base import Backend
from training.checkpoints.files import FIRST_PREFIX, SECOND_PREFIX, Writer
from training.checkpoints.save_load import ALONE
from training.optim import OptimizerState


def snapshot_state(
    backend: Backend, weights: Mapping[str, Tensor], optimizer: OptimizerState, writer: Writer = ALONE
) -> tuple[dict[str, Tensor], OptimizerState]:
    """Copies on the host, which later steps do not change, of all tensors or of the tensors in the writer's files."""
    first, second = f"optimizer/{FIRST_PREFIX}", f"optimizer/{SECOND_PREFIX}"
    parts = {"model/": weights, first: optimizer.first, second: optimizer.second}
    if optimizer.average is not None:
        parts["average/"] = optimizer.average
    placed = {prefix + name: tensor.detach() for prefix, part in parts.items() for name, tensor in part.items()}
    host = backend.snapshot(placed, writer.keeps)
    statistics = optimizer.loss_statistics
    state = OptimizerState(
        first=_under(first, host),
        second=_under(second, host),
        average=_under("average/", host) if optimizer.average is not None else None,
        loss_statistics=statistics.detach().to("cpu", copy=True) if statistics is not None else None,
    )
    return _under("model/", host), state


def restore_state(backend: Backend, saved: OptimizerState, into: OptimizerState) -> None:
    """Copies host tensors into placed tensors. What was not saved (an average that begins now) stays as it is."""
    backend.restore(saved.first, into.first)
    backend.restore(saved.second, into.second)
    if saved.average and into.average is not None:
        backend.restore(saved.average, into.average)
    if saved.loss_statistics is not None and into.loss_statistics is not None:
        into.loss_statistics.copy_(saved.loss_statistics)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
