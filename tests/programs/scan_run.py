"""The measurements of `test_scan.py`: `python -m tests.programs.scan_run`.

With the word `all`, both depths have each remat.
"""

import json
import sys
from typing import Any, get_args

import torch
import torch_xla

from model import Gemma2
from tests.programs.xla_examples import (
    LOSSES,
    batch_of,
    example_batch,
    example_config,
    largest_difference,
    loss_and_gradients,
    loss_function,
)
from training.backends.torch_backend import TorchBackend
from training.backends.xla.backend import XlaBackend
from training.backends.xla.layers import unstack_tensors
from training.config import OptimizerConfig, Remat
from training.optim import init_state, step_scalars
from training.step import train_step

BATCH = example_batch()
STEPS = 4


REMATS: tuple[tuple[int, tuple[Remat, ...]], ...] = ((3, ("none",)), (4, ("projections", "full")))
"""(layers, what each of them is trained with)"""


def differences(plain: TorchBackend, everything: bool) -> dict[str, float]:
    by_case = {}
    for layers, some in REMATS:
        remats = get_args(Remat) if everything else some
        config = example_config(layers)
        expected = loss_and_gradients(config, plain, "next_token", BATCH)
        for remat in remats:
            got = loss_and_gradients(config, XlaBackend(remat=remat), "next_token", BATCH)
            by_case[f"{layers} layers, {remat}"] = largest_difference(got, expected)
    config = example_config(3)
    for objective in LOSSES.keys() - {"next_token"}:
        expected = loss_and_gradients(config, plain, objective, BATCH)
        by_case[objective] = largest_difference(loss_and_gradients(config, XlaBackend(), objective, BATCH), expected)
    return by_case


def forward_differences(plain: TorchBackend) -> dict[str, float]:
    """Differences of logits, and of the loss without gradients."""
    config = example_config(5)
    outputs = []
    for backend in (plain, XlaBackend()):
        model = backend.place_model(Gemma2(config), training=True)
        batch = backend.to_device(batch_of("next_token", BATCH))
        with torch.no_grad():
            logits = model(batch["tokens"], batch["positions"], batch["segment_ids"])
            loss, _ = loss_function("next_token", backend)(model, batch)
        outputs.append((logits.cpu(), float(loss)))
    (logits, loss), (scanned_logits, scanned_loss) = outputs
    return {"logits": float((logits - scanned_logits).abs().max()), "loss": abs(loss - scanned_loss) / loss}


def program(layers: int, remat: Remat) -> dict[str, int]:
    """Number of instructions, and of products, in the loss and its gradients."""
    backend = XlaBackend(remat=remat)
    model = backend.place_model(Gemma2(example_config(layers)), training=True)
    batch = backend.to_device(batch_of("next_token", BATCH))
    loss, _ = loss_function("next_token", backend)(model, batch)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    text = torch_xla._XLAC._get_xla_tensors_hlo([loss, *gradients])
    lines = [line for line in text.splitlines() if " = " in line]
    return {"instructions": len(lines), "products": sum(" dot(" in line for line in lines)}


def compiles_by_step(objective: str, remat: Remat) -> list[int]:
    """Number of programs compiled by the end of each step, with two micro-batches a step and new rows in each."""
    backend = XlaBackend(remat=remat)
    model = backend.place_model(Gemma2(example_config(3)), training=True)
    state = init_state({name: parameter.detach() for name, parameter in model.named_parameters()})
    backend.step_boundary()
    config, counts = OptimizerConfig(warmup_steps=3), []
    for step in range(STEPS):
        micro_batches = [backend.to_device(batch_of(objective, example_batch(10 * step + part))) for part in (1, 2)]
        scalars = torch.tensor(step_scalars(config, step, STEPS)).to(backend.device)
        train_step(model, loss_function(objective, backend), state, micro_batches, scalars, config, backend)
        backend.step_boundary()
        counts.append(backend.compiles())
    return counts


def round_trip() -> bool:
    """Whether weights that were stacked and unstacked for a checkpoint are the model's own."""
    plain = Gemma2(example_config(5))
    placed = XlaBackend().place_model(Gemma2(example_config(5)), training=True)
    unstacked = unstack_tensors({name: parameter.detach().cpu() for name, parameter in placed.named_parameters()})
    own = dict(plain.named_parameters())
    return unstacked.keys() == own.keys() and all(torch.equal(unstacked[name], own[name]) for name in own)


def main(*words: str) -> dict[str, Any]:
    torch_xla.device()  # before the first backward pass: PyTorch's engine counts devices once
    plain = TorchBackend("cpu")
    return {
        "differences": differences(plain, words == ("all",)),
        "forward": forward_differences(plain),
        "programs": {remat: [program(layers, remat) for layers in (4, 8)] for remat in get_args(Remat)},
        "compiles": [compiles_by_step("next_token", "none"), compiles_by_step("distill", "full")],
        "round_trip": round_trip(),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
