"""The layers as a scan over (local, global) pairs, so that graph and compile time do not grow with depth.

`PairedLayers` holds the blocks' parameters stacked, [pairs, ...] each. `scan_layers` returns the `RunLayers` that runs
them in XLA's while loop, forward and, in reverse, backward. The backward pass runs a pair's forward again inside the
loop's body and differentiates it there. The policy decides what is kept instead of computed again, by name:

    none         all that autograd saves is kept, and nothing is computed again
    projections  the results of each block's seven products with weights are kept; norms, rotations, attention and the
                 activation are computed again
    full         the residual stream between pairs, [pairs, B, T, D], is kept; everything else is computed again

`training/backends/xla/remat.py` has the policies.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch_xla.experimental.scan import _scan_impl_flat as scan  # without autograd: ours is below

from model import Block, LayerInputs, RunLayers
from model.attention import Attention
from model.cache import Cache
from model.sharding import ROWS, TABLE, Spec, parameter_specs
from training.backends.xla.remat import keeper
from training.config import Remat

Constrain = Callable[[Tensor, Spec], None]
"""Annotates a tensor, in place, with its division, for the compiler."""

PREFIX = "model.layers."
STACKED = ("local", "global")
STREAM: Spec = (ROWS, None, None)
BY_TABLE: Spec = ("replica", None, "data")


class PairedLayers(nn.Module):
    """Blocks 0, 2, ... stacked as `local`, blocks 1, 3, ... as `global`; an odd number's last block keeps its name."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.pairs = len(blocks) // 2
        if self.pairs:
            for offset, name in enumerate(STACKED):
                self.add_module(name, _stack(blocks[offset : 2 * self.pairs : 2]))
        self.rest = [blocks[-1]] if len(blocks) % 2 else []  # in a list, so that it is registered once
        for block in self.rest:
            self.add_module(str(len(blocks) - 1), block)

    def stacked(self) -> list[Block]:
        """The (local, global) blocks, whose parameters have the pairs in front."""
        return [getattr(self, name) for name in STACKED] if self.pairs else []


def _stack(blocks: Sequence[Block]) -> Block:
    stacked = copy.deepcopy(blocks[0])
    for name, _ in list(stacked.named_parameters()):
        owner, _, attribute = name.rpartition(".")
        whole = torch.stack([block.get_parameter(name).detach() for block in blocks])
        setattr(stacked.get_submodule(owner), attribute, nn.Parameter(whole))
    return stacked


def stacked_specs(names: Iterable[str]) -> dict[str, Spec]:
    """The specs of `parameter_specs`; stacked parameters have an undivided dimension in front."""
    return {
        name: (None, *spec) if name.split(".")[2] in STACKED and name.startswith(PREFIX) else spec
        for name, spec in parameter_specs(names).items()
    }


def stack_tensors(tensors: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Stacks tensors of single blocks into tensors of `PairedLayers`, whose parameters have the given `names`."""
    stacked = {}
    names = set(names)
    for name in sorted(names):
        members = _members(name, tensors, names)
        stacked[name] = tensors[name] if members is None else torch.stack([tensors[member] for member in members])
    return stacked


def unstack_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `stack_tensors`."""
    single = {}
    for name, tensor in tensors.items():
        head, offset, tail = _split(name)
        if offset is None:
            single[name] = tensor
        else:
            single |= {f"{head}{2 * pair + offset}.{tail}": part for pair, part in enumerate(tensor.unbind())}
    return single


def _split(name: str) -> tuple[str, int | None, str]:
    """The parts of a stacked name: ("…model.layers.", 1, "mlp.up_proj.weight"); None in the middle for other names."""
    before, prefix, tail = name.partition(PREFIX)
    kind, _, tail = tail.partition(".")
    return (before + PREFIX, STACKED.index(kind), tail) if prefix and kind in STACKED else (name, None, "")


def _members(name: str, tensors: Mapping[str, Tensor], names: set[str]) -> list[str] | None:
    head, offset, tail = _split(name)
    if offset is None:
        return None
    members: list[str] = []
    # With an odd number of blocks the last block is in no pair and has its own name.
    while (member := f"{head}{offset + 2 * len(members)}.{tail}") in tensors and member not in names:
        members.append(member)
    return members


def scan_layers(remat: Remat, constrain: Constrain | None = None) -> RunLayers:
    """The `RunLayers` that scans `PairedLayers`; on a mesh `constrain` divides streams, weights and gradients.

    Raises UserError for a `remat` that is no policy.
    """
    keeper(remat)

    def run(
        layers: Iterable[Block], x_BTD: Tensor, inputs: LayerInputs, attention: Attention, cache: Cache | None
    ) -> Tensor:
        assert isinstance(layers, PairedLayers), "scan_layers walks PairedLayers"
        assert cache is None, "layers are scanned: generate with a model whose layers are looped"
        if constrain is not None:
            x_BTD = _Entrance.apply(constrain, x_BTD)
        if layers.pairs:
            pair = _Pair(layers.stacked(), attention, remat, constrain)
            x_BTD = _ScanPairs.apply(pair, torch.is_grad_enabled(), x_BTD, *inputs, *pair.weights())
        for block in layers.rest:
            x_BTD = block(x_BTD, inputs, attention)
        return x_BTD

    return run


class _Entrance(torch.autograd.Function):
    """The entrance of the embedded tokens into the stream, on a mesh.

    Embedded tokens come from the table, and their gradients are added up into the table, with d_model divided over
    `data`. The stream has its rows divided over replicas and data at once. To get from one division to the other the
    compiler would put all rows on each chip; so there is a step in between, in which replicas divide the rows.
    """

    @staticmethod
    def forward(ctx: Any, constrain: Constrain, x_BTD: Tensor) -> Tensor:
        ctx.constrain = constrain
        x_BTD = x_BTD * 1
        constrain(x_BTD, BY_TABLE)
        x_BTD = x_BTD * 1
        constrain(x_BTD, STREAM)
        return x_BTD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        g_BTD = gradients[0] * 1
        ctx.constrain(g_BTD, STREAM)
        g_BTD = g_BTD * 1
        ctx.constrain(g_BTD, BY_TABLE)
        return None, g_BTD


class _Pair:
    """The computation of one iteration: a local and a global block, with the given weights."""

    def __init__(self, blocks: list[Block], attention: Attention, remat: Remat, constrain: Constrain | None) -> None:
        self.blocks, self.attention, self.constrain = blocks, attention, constrain
        self.keep = keeper(remat)
        self.names = [[name for name, _ in block.named_parameters()] for block in blocks]
        self.specs = [TABLE[f"{PREFIX}*.{name}"] for names in self.names for name in names]

    def weights(self) -> list[Tensor]:
        return [parameter for block in self.blocks for parameter in block.parameters()]

    def output(self, x_BTD: Tensor, inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
        for block, names in zip(self.blocks, self.names, strict=True):
            own, weights = weights[: len(names)], weights[len(names) :]
            arguments = (x_BTD, LayerInputs(*inputs), self.attention)
            x_BTD = functional_call(block, dict(zip(names, own, strict=True)), arguments, strict=True)
        return x_BTD

    def record(self, x_BTD: Tensor, inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The output, and the tensors that are kept for the backward pass."""
        x_BTD, weights = self._leaves(x_BTD, weights)
        kept: list[Tensor] = []
        with torch.enable_grad(), self.keep(kept, None):
            out_BTD = self.output(x_BTD, inputs, weights)
        return self._placed(out_BTD.detach(), STREAM), kept

    def gradients(
        self, g_BTD: Tensor, x_BTD: Tensor, inputs: Sequence[Tensor], weights: Sequence[Tensor], kept: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Gradients of the input stream and of the weights, from the gradient of the output stream."""
        x_BTD, weights = self._leaves(x_BTD, weights)
        with torch.enable_grad(), self.keep(None, kept):
            out_BTD = self.output(x_BTD, inputs, weights)
            of_x, *of_weights = torch.autograd.grad(out_BTD, [x_BTD, *weights], self._placed(g_BTD, STREAM))
        of_weights = [self._placed(gradient, spec) for gradient, spec in zip(of_weights, self.specs, strict=True)]
        return self._placed(of_x, STREAM), of_weights

    def _leaves(self, x_BTD: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The leaves of one iteration's graph: divided as in the table, with the weights gathered over `data`."""
        x_BTD = self._placed(x_BTD.detach(), STREAM)
        leaves = []
        for weight, spec in zip(weights, self.specs, strict=True):
            weight = self._placed(weight.detach(), spec)
            gathered = tuple(None if axes == "data" else axes for axes in spec)
            leaves.append(self._placed(weight, gathered) if gathered != spec else weight)
        return x_BTD.requires_grad_(), [leaf.requires_grad_() for leaf in leaves]

    def _placed(self, tensor: Tensor, spec: Spec) -> Tensor:
        if self.constrain is not None:
            self.constrain(tensor, spec)
        return tensor


INPUTS = len(LayerInputs._fields)


class _ScanPairs(torch.autograd.Function):
    """The loop over pairs, in reverse for the gradients; `inputs` are no parameters and get no gradient."""

    @staticmethod
    def forward(ctx: Any, pair: _Pair, training: bool, x_BTD: Tensor, *inputs_and_weights: Tensor) -> Tensor:
        inputs, weights = inputs_and_weights[:INPUTS], inputs_and_weights[INPUTS:]

        def body(carry: Sequence[Tensor], slices: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            x_BTD, *inputs = carry
            out_BTD, kept = pair.record(x_BTD, inputs, slices)
            # The carry holds the inputs: a tensor that the body took from outside would be read at trace time.
            return [out_BTD, *_copies(inputs)], [x_BTD * 1, *kept] if training else []

        carry, stacks = scan(body, [x_BTD, *inputs], list(weights))
        ctx.pair = pair
        ctx.save_for_backward(*inputs, *weights, *stacks)
        return carry[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        pair: _Pair = ctx.pair
        saved, count = ctx.saved_tensors, len(pair.specs)
        inputs, weights, stacks = saved[:INPUTS], saved[INPUTS : INPUTS + count], saved[INPUTS + count :]

        def body(carry: Sequence[Tensor], slices: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            g_BTD, *inputs = carry
            weights, (x_BTD, *kept) = slices[:count], slices[count:]
            of_x, of_weights = pair.gradients(g_BTD, x_BTD, inputs, weights, list(kept))
            return [of_x, *_copies(inputs)], of_weights

        carry, of_weights = scan(body, [gradients[0], *inputs], [*weights, *stacks], reverse=True)
        return (None, None, carry[0], *[None] * INPUTS, *of_weights)


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor * 1 for tensor in tensors]
