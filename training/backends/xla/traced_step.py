"""Our training step as an HLO program for a mesh of TPU chips, traced on any machine and never run.

    TraceRequest -> model on `meta` -> placeholders, divided as model/sharding.py says -> train_step -> HLO -> Traced

Parameters, moments and the batch are placeholders without a buffer, so 27B traces in a few GB. The process stands for
all chips: torch_xla's annotations need the ids of chips, not the chips. The compiler reports what the program needs on
a chip (`infra/aot.py`). This module computes no values: tests run the same code on XLA:CPU for that.

    python -m training.backends.xla.traced_step REQUEST.json OUT_DIR    writes OUT_DIR/hlo.pb and OUT_DIR/trace.json
"""

import dataclasses
import functools
import json
import math
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

# Set before torch_xla is imported. A few virtual devices make it keep annotations; thousands break the backward pass.
os.environ["PJRT_DEVICE"] = "CPU"
os.environ.setdefault("CPU_NUM_DEVICES", "8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import torch
import torch_xla
import torch_xla.core.xla_builder as xb
import torch_xla.runtime as xr
from torch import Tensor, nn

from model import Gemma2, Gemma2Config
from model.sharding import ROWS, MeshShape, Spec, check_mesh, check_rows, shard_shape
from training.backends.base import Backend
from training.backends.torch_backend import TorchBackend
from training.backends.xla.checksum import checksum
from training.backends.xla.head import scan_head
from training.backends.xla.layers import PairedLayers, scan_layers, stacked_specs
from training.backends.xla.mesh import ChipMesh
from training.backends.xla.remat import keeper
from training.config import Objective, OptimizerConfig, Remat
from training.distill.kinds.sample import distill_loss
from training.errors import UserError
from training.loss import LossFunction, LossOptions, next_token_loss
from training.optim import OptimizerState
from training.step import COMPUTE_TYPES, train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class TraceRequest:
    """A training step, and the mesh that it runs on."""

    model: Gemma2Config
    """Sizes of the model."""
    mesh: MeshShape
    """Chips along each axis."""
    sequence_length: int
    """Tokens in a row."""
    rows: int
    """Rows of a step, over all chips."""
    remat: Remat = "full"
    """Policy of recomputation in the backward pass."""
    objective: Objective = "next_token"
    """Objective of the loss."""
    targets: int = 50
    """Ids at a target, the width that targets are padded to, for `distill`."""
    parameter_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of parameters and activations; the moments are float32."""
    attention: Literal["splash", "plain"] = "splash"
    """Attention: `splash` is the TPU kernel, `plain` is model/attention.py, whose scores are [B, N, T, T]."""

    def __post_init__(self) -> None:
        keeper(self.remat)
        allowed = {
            "objective": get_args(Objective),
            "parameter_dtype": tuple(COMPUTE_TYPES),
            "attention": ("splash", "plain"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise UserError(f"{name} is {getattr(self, name)!r}; allowed are {', '.join(values)}")
        for name in ("sequence_length", "rows", "targets"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        check_mesh(self.model, self.mesh)
        check_rows(self.rows, self.mesh)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `json.dumps(dataclasses.asdict(request))`."""
        fields = json.loads(text)
        known = {field.name for field in dataclasses.fields(cls)}
        assert fields.keys() <= known, f"a trace request has no fields {sorted(fields.keys() - known)}"
        return cls(**fields | {"model": Gemma2Config(**fields["model"]), "mesh": MeshShape(**fields["mesh"])})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traced:
    """The program of one step."""

    hlo: bytes
    """Serialized HloModuleProto."""
    donated: tuple[int, ...]
    """Numbers of the program's arguments whose buffers become its results: parameters and moments."""
    num_partitions: int
    """Number of chips."""
    parameter_bytes_per_chip: int
    optimizer_bytes_per_chip: int
    trace_seconds: float


def trace_step(request: TraceRequest) -> Traced:
    """Traces one optimizer step, at most once in a process, since it sets torch_xla's count of devices for the mesh."""
    began = time.perf_counter()
    tracer = Tracer(request)
    model = tracer.model()
    state = OptimizerState(first=tracer.moments(model), second=tracer.moments(model))
    scalars = tracer.placeholder((3,), torch.float32, (None,))
    values = train_step(
        model, tracer.loss_function(), state, [tracer.batch()], scalars, OptimizerConfig(), tracer.backend()
    )
    updated = {name: parameter.detach() for name, parameter in model.named_parameters()}
    outputs = [*updated.values(), *state.first.values(), *state.second.values(), values]
    hlo, donated = tracer.lower(outputs)
    parameters, optimizer = tracer.bytes_per_chip(model)
    return Traced(
        hlo=hlo,
        donated=donated,
        num_partitions=request.mesh.chips,
        parameter_bytes_per_chip=parameters,
        optimizer_bytes_per_chip=optimizer,
        trace_seconds=time.perf_counter() - began,
    )


class _Placeholders(TorchBackend):
    """The backend of one worker on a device that exists in the trace alone."""

    def checksum(self, tensors: Sequence[Tensor]) -> Tensor:
        if any(tensor.dtype != torch.float32 for tensor in tensors):
            return torch.zeros(2, device=tensors[0].device)  # for bfloat16 weights, which only a trace can have
        return checksum(tensors)


class Tracer:
    """Placeholders on a mesh, and the list of the donated ones. A process makes one: it counts the mesh's chips."""

    def __init__(self, request: TraceRequest) -> None:
        self.request = request
        xr.use_spmd()
        torch_xla.device()
        # The annotations of a mesh of any size need only the ids of its chips; everything else here uses one device.
        xr.global_runtime_device_count = lambda: request.mesh.chips
        self.constrain = ChipMesh(request.mesh).constrain
        self.donated: list[Tensor] = []

    def placeholder(self, shape: tuple[int, ...], dtype: torch.dtype, spec: Spec, donate: bool = False) -> Tensor:
        tensor = xb.create_placeholder_tensor(shape, dtype)
        _, (argument,) = torch_xla._XLAC._get_tensors_xla_device_data_node([tensor])
        if donate:
            self.donated.append(argument)
        self.constrain(tensor, spec)
        return tensor

    def model(self, *, updated: bool = True) -> Gemma2:
        """The model as `place_model` makes it; `updated`: its parameters become results of the program."""
        request = self.request
        with torch.device("meta"):
            model = Gemma2(request.model)
        model.model.layers = PairedLayers(list(model.model.layers))  # type: ignore[assignment,arg-type]
        self.specs = stacked_specs(name for name, _ in model.named_parameters())
        for name, parameter in list(model.named_parameters()):
            owner, _, attribute = name.rpartition(".")
            value = self.placeholder(
                tuple(parameter.shape), COMPUTE_TYPES[request.parameter_dtype], self.specs[name], donate=updated
            )
            setattr(model.get_submodule(owner), attribute, nn.Parameter(value))
        model.run_layers = scan_layers(request.remat, self.constrain)
        if request.attention == "splash":
            from training.backends.xla.attention import (
                splash_attention,  # imports jax, which plain attention does not need
            )

            model.attention = splash_attention(request.mesh)
        return model

    def moments(self, model: Gemma2) -> dict[str, Tensor]:
        return {
            name: self.placeholder(tuple(parameter.shape), torch.float32, self.specs[name], donate=True)
            for name, parameter in model.named_parameters()
        }

    def batch(self) -> dict[str, Tensor]:
        shape = (self.request.rows, self.request.sequence_length)
        columns = dict.fromkeys(("tokens", "segment_ids", "positions"), torch.int32) | {"loss_mask": torch.bool}
        batch = {name: self.placeholder(shape, dtype, (ROWS, None)) for name, dtype in columns.items()}
        if self.request.objective == "distill":
            for name in ("target_ids", "target_counts"):
                batch[name] = self.placeholder((*shape, self.request.targets), torch.int32, (ROWS, None, None))
        return batch

    def loss_function(self) -> LossFunction:
        options = LossOptions(run_head=scan_head(self.request.mesh.row_shards, self.constrain))
        if self.request.objective == "next_token":
            return functools.partial(next_token_loss, options=options)
        return functools.partial(distill_loss, draws=self.request.targets, options=options)

    def backend(self) -> Backend:
        return _Placeholders("cpu")  # one worker, so nothing to sum

    def lower(self, outputs: list[Tensor]) -> tuple[bytes, tuple[int, ...]]:
        context = torch_xla._XLAC.lowering.LoweringContext("train_step")
        context.build(outputs)
        numbers = [context.tensor_parameter_id(argument) for argument in self.donated]
        assert -1 not in numbers, "a parameter or moment is no argument"
        assert len(set(numbers)) == len(numbers), "two of them are one argument"
        return context.hlo(), tuple(sorted(numbers))

    def bytes_per_chip(self, model: Gemma2) -> tuple[int, int]:
        elements = sum(
            math.prod(shard_shape(parameter.shape, self.specs[name], self.request.mesh))
            for name, parameter in model.named_parameters()
        )
        return elements * COMPUTE_TYPES[self.request.parameter_dtype].itemsize, elements * 2 * torch.float32.itemsize


def write(request: TraceRequest, traced: Traced, out_directory: str) -> None:
    """Writes the program, hlo.pb, and what is known of it, trace.json."""
    out = Path(out_directory)
    out.mkdir(parents=True, exist_ok=True)
    (out / "hlo.pb").write_bytes(traced.hlo)
    trace: dict[str, Any] = {
        field.name: getattr(traced, field.name) for field in dataclasses.fields(traced) if field.name != "hlo"
    }
    trace["request"] = dataclasses.asdict(request)
    trace["model"] = dataclasses.asdict(request.model)
    trace["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (out / "trace.json").write_text(json.dumps(trace, indent=1) + "\n")


def main(request_path: str, out_directory: str) -> None:
    request = TraceRequest.from_json(Path(request_path).read_text())
    write(request, trace_step(request), out_directory)


if __name__ == "__main__":
    main(*sys.argv[1:])
