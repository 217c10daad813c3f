"""The same model on torch_xla (XLA:CPU), in a process of its own: PJRT_DEVICE has to be set before the import."""

import json
import os
import subprocess
import sys

import pytest

from tests.programs.places import REPOSITORY

pytest.importorskip("torch_xla")
pytestmark = pytest.mark.slow

PROGRAM = """
import json
import torch, torch_xla
import torch_xla.debug.metrics as metrics
from model import Cache, Gemma2, gemma2_tiny, generate

device = torch_xla.device()  # before the first backward pass: PyTorch's engine counts devices once
config = gemma2_tiny(window=5, layers=4, d_model=72, init_std=0.1)
here, there = Gemma2(config), Gemma2(config).to(device)
tokens = torch.randint(3, 1024, (2, 30), generator=torch.Generator().manual_seed(0))
positions = torch.tensor([[*range(12), *range(10), *range(8)], [*range(30)]])
segment_ids = torch.tensor([[1] * 12 + [2] * 10 + [0] * 8, [1] * 30])
batch = (tokens, positions, segment_ids)
report = {}

with torch.no_grad():
    difference = here(*batch) - there(*(tensor.to(device) for tensor in batch)).cpu()
report["logits"] = float(difference.abs().max())

def gradients(model, *batch):
    logits = model(*batch)
    (logits.sin() * (batch[2] > 0)[..., None]).sum().backward()
    torch_xla.sync()  # one graph for all, not one for each gradient that is fetched
    return {name: parameter.grad.cpu() for name, parameter in model.named_parameters()}

expected, got = gradients(here, *batch), gradients(there, *(tensor.to(device) for tensor in batch))
report["gradients"] = max(float((got[name] - expected[name]).norm() / expected[name].norm()) for name in expected)

with torch.no_grad():
    full = here(tokens)
    cache, pieces, start = Cache(config, batch_rows=2, max_length=30, device=device), [], 0
    compiles = []
    for length in [12] + [1] * 18:
        places = torch.arange(start, start + length).expand(2, length)
        pieces.append(there(tokens[:, start : start + length].to(device), places.to(device), cache=cache))
        torch_xla.sync()
        compiles.append(metrics.metric_data("CompileTime")[0])
        start += length
    report["decode"] = float((torch.cat(pieces, dim=1).cpu() - full).abs().max())
    report["late_compiles"] = compiles[-1] - compiles[3]

prompts = [[2, 5, 6], [2]]
report["same_text"] = generate(here, prompts, 8, seed=1) == generate(
    there, prompts, 8, seed=1, step_boundary=torch_xla.sync
)
report["fallbacks"] = [name for name in metrics.counter_names() if name.startswith("aten::")]
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def report():
    root = REPOSITORY
    environment = os.environ | {"PJRT_DEVICE": "CPU", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=root, env=environment, capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


def test_logits_and_gradients_are_those_of_plain_pytorch(report):
    assert report["logits"] <= 1e-5
    assert report["gradients"] <= 1e-4


def test_decoding_is_the_full_forward_and_stops_compiling(report):
    assert report["decode"] <= 2e-5
    assert report["late_compiles"] == 0


def test_generation_gives_the_same_text(report):
    assert report["same_text"]


def test_nothing_falls_back_to_the_host(report):
    assert report["fallbacks"] == []
