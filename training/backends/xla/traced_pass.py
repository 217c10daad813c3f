"""A forward pass over whole rows as an HLO program for a mesh of TPU chips, as training/backends/xla/traced_step.py.

`draws`: the teacher's pass of `cache_logits`, from tokens to drawn ids. `losses`: the pass of `evaluate_model`, from
tokens to the sum of losses. Weights are read and stay as they are; there are no moments.

    python -m training.backends.xla.traced_pass REQUEST.json OUT_DIR    writes OUT_DIR/hlo.pb and OUT_DIR/trace.json
"""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

import training.backends.xla.traced_step as step  # before torch_xla, whose environment it sets
from model.sharding import ROWS
from training.backends.xla.head import scan_head, scan_slices
from training.distill.kinds.sample import LEVELS, Sample
from training.logit_slices import Columns
from training.loss import LossOptions, next_token_loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class PassRequest(step.TraceRequest):
    """A forward pass, and the mesh that it runs on. `targets` is the number of draws."""

    keeps: Literal["draws", "losses"] = "draws"
    """Results of the pass."""


def trace_pass(request: PassRequest) -> step.Traced:
    """Traces one forward pass, at most once in a process."""
    began = time.perf_counter()
    tracer = step.Tracer(request)
    with torch.no_grad():
        model = tracer.model(updated=False)
        batch = tracer.batch()
        if request.keeps == "losses":
            options = LossOptions(run_head=scan_head(request.mesh.row_shards, tracer.constrain))
            outputs = list(next_token_loss(model, batch, options))
        else:
            kind = Sample(draws=request.targets)
            shape = (request.rows, request.sequence_length, request.targets, LEVELS)
            noise = {"uniforms": tracer.placeholder(shape, torch.float32, (ROWS, None, None, None))}

            def keep(logits_PV: Tensor, noise: Columns, _: Columns) -> tuple[Tensor, ...]:
                return kind.keep(logits_PV, noise)

            hidden_BTD = model.hidden(batch["tokens"], batch["positions"], batch["segment_ids"])
            run = scan_slices(request.mesh, tracer.constrain)
            outputs = list(run(hidden_BTD, model.table, model.config.final_softcap, noise, {}, keep))
        hlo, donated = tracer.lower(outputs)
    parameters, _ = tracer.bytes_per_chip(model)
    return step.Traced(
        hlo=hlo,
        donated=donated,
        num_partitions=request.mesh.chips,
        parameter_bytes_per_chip=parameters,
        optimizer_bytes_per_chip=0,
        trace_seconds=time.perf_counter() - began,
    )


def main(request_path: str, out_directory: str) -> None:
    request = PassRequest.from_json(Path(request_path).read_text())
    step.write(request, trace_pass(request), out_directory)


if __name__ == "__main__":
    main(*sys.argv[1:])
