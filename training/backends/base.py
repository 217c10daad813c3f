"""Where a step runs: the protocol of a backend, and what backends share.

The loop uses a device through its backend alone: place tensors, sum over workers, mark the end of a step, read values
back. Another device is another class with these methods. Values are read back every few steps, so that the host never
waits for the device inside a step.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from model import Gemma2
from training.backends.abilities import Abilities
from training.backends.gradients import sum_gradients
from training.config import Remat
from training.logit_slices import RunSlices
from training.loss import Batch, LossFunction
from training.loss_head import RunHead
from training.optim import global_norm

MessageT = TypeVar("MessageT")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowShare:
    """The rows of a step that a worker reads."""

    part: int = 0
    """Place of the worker's part among the parts, in the order of the step's slots."""
    parts: int = 1
    """Number of equal parts; fewer than workers if several workers hold the chips of one model axis and read the same
    rows."""
    first: bool = True
    """Whether this worker reports the rows of its part."""


def every(name: str) -> bool:
    """Whether to keep a tensor: always."""
    return True


class Backend(Protocol):
    """What the loop needs of a device."""

    abilities: Abilities
    device: torch.device
    rank: int
    world_size: int
    row_share: RowShare
    remat: Remat
    """Policy of recomputation in the backward pass."""
    run_head: RunHead
    """Loop over the head's chunks."""
    run_slices: RunSlices
    """Loop over slices of logits, in forward passes that keep something of them."""
    snapshot_by_all: bool
    """Whether each worker has a part of the tensors: then a snapshot, and a gradient, needs all workers."""
    least_rows: int
    """Least number of rows that the worker's devices can divide."""

    def place_model(
        self,
        model: Gemma2,
        *,
        training: bool = False,
        decodes: bool = False,
        compute_dtype: torch.dtype = torch.float32,
    ) -> Gemma2:
        """Moves the parameters to the device, in place.

        The model then runs whole rows, as the device runs them best: layers may be combined, which gives their
        parameters other names, and attention keeps no scores of [T, T]. A model that `decodes` keeps its layers and
        takes a cache. For `training`, parameters may also be divided over workers and gathered in `compute_dtype`;
        `restore` and `snapshot` translate.
        """

    def parts(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This process's parts of placed tensors, in their own memory: the whole tensors unless workers share them."""

    def gradients(
        self,
        model: Gemma2,
        loss_function: LossFunction,
        micro_batches: Sequence[Batch],
        compute_dtype: torch.dtype,
    ) -> tuple[list[Tensor], Tensor]:
        """Float32 gradients of the sum of losses, as `parts` of the parameters in order, and [loss_sum, targets].

        They are over this worker's rows, and `all_reduce_` sums them; if the parameters are divided over workers, they
        are over all workers' rows.
        """

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """The L2 norm over all elements, of the parts of all workers."""

    def restore(self, tensors: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
        """Copies host tensors, by Hugging Face's names, into placed ones, by the names of the placed parameters."""

    def zeros_like(self, tensor: Tensor) -> Tensor:
        """Float32 zeros with the shape of a placed tensor, divided over the chips in the same way."""

    def to_device(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """Copies host arrays to the device."""

    def all_reduce_(self, tensors: Sequence[Tensor]) -> None:
        """Sums what `gradients` returned over the workers, in place; does nothing for one worker."""

    def checksum(self, tensors: Sequence[Tensor]) -> Tensor:
        """`training.backends.checksum.checksum` of the parts of all workers, without leaving the device."""

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Host rows of all workers, in rank order. Every worker must call it; it does not wait for the device."""

    def step_boundary(self) -> None:
        """Ends a step: hands the traced program to the device."""

    def fetch(self, values: Sequence[Tensor]) -> list[list[float]]:
        """The elements of vectors on the device as Python floats; waits for them."""

    def snapshot(self, tensors: Mapping[str, Tensor], keeps: Callable[[str], bool] = every) -> dict[str, Tensor]:
        """Copies on the host, which later steps do not change, of the tensors that `keeps` selects.

        The copies have Hugging Face's names; a prefix of the names stays in front.
        """

    def compiles(self) -> int:
        """Programs compiled so far in this process (0 for a backend that does not compile)."""

    def peak_device_bytes(self) -> int | None:
        """Most memory, in bytes, that this process had on its device so far; None: host memory, or unknown."""


class WholeParameters:
    """The methods that all backends share whose parameters are whole for this process."""

    def parts(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(tensors)

    def gradients(
        self,
        model: Gemma2,
        loss_function: LossFunction,
        micro_batches: Sequence[Batch],
        compute_dtype: torch.dtype,
    ) -> tuple[list[Tensor], Tensor]:
        return sum_gradients(model, loss_function, micro_batches, compute_dtype)

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        return global_norm(gradients)


def host_group() -> torch.distributed.ProcessGroup | None:
    """A group in which processes exchange host values over gloo; None if the default group uses gloo.

    A collective of nccl runs on the device, after all work that the device still has. Every process must call this, in
    the same order.
    """
    return None if torch.distributed.get_backend() == "gloo" else torch.distributed.new_group(backend="gloo")


def gather_rows(rows: np.ndarray, world_size: int, group: torch.distributed.ProcessGroup | None = None) -> np.ndarray:
    """Host rows of all processes, in rank order, through a gloo group (default: the default group)."""
    if world_size == 1:
        return rows
    gathered: list[np.ndarray | None] = [None] * world_size
    torch.distributed.all_gather_object(gathered, rows, group=group)
    return np.concatenate([part for part in gathered if part is not None])


def exchange(backend: Backend, message: MessageT) -> list[MessageT]:
    """The messages of all workers, in rank order. Every worker must take part."""
    if backend.world_size == 1:
        return [message]
    rows = np.empty(1, object)
    rows[0] = message
    messages: list[MessageT] = backend.gather(rows).tolist()
    return messages


SlotColumns = tuple[int, tuple[np.ndarray, ...]]
"""(part of the step, columns of its host rows), as one worker reports them."""


def slot_columns(backend: Backend, *columns: np.ndarray) -> SlotColumns:
    """This worker's columns of a step's host rows, for `join_slots`; empty if another worker reports the same rows."""
    own_columns = columns if backend.row_share.first else tuple(column[:0] for column in columns)
    return backend.row_share.part, own_columns


def join_slots(parts: Sequence[SlotColumns]) -> tuple[np.ndarray, ...]:
    """The columns of all workers, each in the order of the step's slots."""
    in_order = [columns for _, columns in sorted(parts, key=lambda entry: entry[0])]
    return tuple(np.concatenate(pieces) for pieces in zip(*in_order, strict=True))


def gather_slots(backend: Backend, *columns: np.ndarray) -> tuple[np.ndarray, ...]:
    """Columns of a step's host rows from all parts of the step, in the order of its slots. Every worker must call it.

    This is an exchange of its own, for values that are seldom needed, such as the rows of a bad step.
    """
    return join_slots(exchange(backend, slot_columns(backend, *columns)))
