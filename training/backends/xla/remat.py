"""What is kept for the backward pass of a scanned pair of layers: one context manager for each policy.

The same code is run twice inside of it. While the forward pass is traced, `Keep(record=list)` appends the values to
keep. When the backward pass traces that code again, `Keep(replay=list)` puts the kept values in their places. Nothing
then reads the operations that would have made these values, and a lazy tensor that nothing reads is not lowered.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from training.config import Remat
from training.errors import UserError

Keep = Callable[[list[Tensor] | None, list[Tensor] | None], contextlib.AbstractContextManager[None]]
"""(record, replay), one of which is given."""


def keeper(remat: str) -> Keep:
    """The policy of that name. Raises UserError for any other."""
    if remat not in get_args(Remat):
        raise UserError(f"remat is {remat!r}; allowed are {', '.join(get_args(Remat))}")
    return {"none": keep_all, "projections": keep_projections, "full": keep_nothing}[remat]


@contextlib.contextmanager
def keep_nothing(record: list[Tensor] | None, replay: list[Tensor] | None) -> Iterator[None]:
    """Everything is computed again."""
    yield


@contextlib.contextmanager
def keep_projections(record: list[Tensor] | None, replay: list[Tensor] | None) -> Iterator[None]:
    """The results of products with weights (`F.linear`) are kept."""
    with _Projections(record, replay):
        yield


class _Projections(TorchFunctionMode):
    def __init__(self, record: list[Tensor] | None, replay: list[Tensor] | None) -> None:
        super().__init__()
        self.record = record
        self.replay = iter(replay or ())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is not F.linear:
            return out
        if self.record is None:
            return _Instead.apply(out, next(self.replay))
        self.record.append(out.detach())
        return out


class _Instead(torch.autograd.Function):
    """The value of the second tensor with the history of the first."""

    @staticmethod
    def forward(ctx: Any, again: Tensor, kept: Tensor) -> Tensor:
        return kept.view_as(kept)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None


@contextlib.contextmanager
def keep_all(record: list[Tensor] | None, replay: list[Tensor] | None) -> Iterator[None]:
    """All that autograd saves is kept, each tensor once; leaves (the stream and the weights) are available anyway."""
    places: dict[Any, int] = {}
    kept = replay if record is None else record
    assert kept is not None

    def pack(tensor: Tensor) -> Any:
        origin = _origin(tensor)
        if origin is not None and origin not in places:
            places[origin] = len(places)
            if record is not None:
                record.append(tensor.detach())
        if record is not None:
            return None  # nothing is differentiated here, and an operation that holds its own result is never freed
        return tensor if origin is None else kept[places[origin]]

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


# Operations with the same values as their input, or nearly (a cast): kept only if the input is not a leaf.
_VIEWS = (
    "View",
    "Transpose",
    "T",
    "Permute",
    "Unsqueeze",
    "Squeeze",
    "Expand",
    "Alias",
    "UnsafeView",
    "ToCopy",
    "Slice",
)


def _origin(tensor: Tensor) -> Any:
    """What identifies a computed tensor each time it is saved; None for tensors that follow from leaves alone."""
    if not tensor.is_floating_point():
        return None  # masks and ids come from the inputs
    if not tensor.requires_grad:
        # Either an operation's own result, which autograd detaches, or a view of the rotary angles.
        return None if tensor._base is not None else object()
    path: list[str] = []
    node = tensor.grad_fn
    while node is not None and node.name().removesuffix("Backward0") in _VIEWS:
        path.append(node.name())
        node = node.next_functions[0][0]
    if node is None or node.name().endswith("AccumulateGrad"):
        return None
    return (node._sequence_nr(), tensor.output_nr, *path, *tensor.shape)  # type: ignore[attr-defined]
