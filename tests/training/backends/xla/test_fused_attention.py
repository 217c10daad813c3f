"""The GPU benchmark's attention and step, run where there is no GPU: the same numbers as the model's own."""

import subprocess
import sys

import pytest
import torch

from model import Placement, attend, gemma2_tiny
from tests.benchmarks.train_step import fused_attention, our_step, transformers_step

pytestmark = [  # of flex_attention without torch.compile, which only these tests use
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


@pytest.fixture(autouse=True)
def _nothing_traced_before() -> None:
    torch._dynamo.reset()  # a second softcap in one process would be traced as a symbol, and flex_attention takes none


@pytest.mark.parametrize("window", [None, 7, 64, 300])
def test_fused_attention_is_the_models_attention(window: int | None) -> None:
    torch.manual_seed(0)
    rows, length, heads, kv_heads, size = 2, 256, 4, 2, 32
    q, k, v = (torch.randn(rows, length, n, size, requires_grad=True) for n in (heads, kv_heads, kv_heads))
    lengths = torch.tensor([100, 156])
    positions = torch.cat([torch.arange(n) for n in lengths]).expand(rows, -1)
    segments = torch.repeat_interleave(torch.tensor([1, 2]), lengths).expand(rows, -1)
    place = Placement(positions, segments)
    given = {"window": window, "scale": 0.6, "softcap": 5.0}
    upstream = torch.randn(rows, length, heads, size)
    outputs = []
    for attention in (attend, fused_attention(compiled=False)):
        out = attention(q, k, v, place, place, **given)
        outputs.append((out, *torch.autograd.grad(out, (q, k, v), upstream)))
    for ours, theirs in zip(*outputs, strict=True):
        torch.testing.assert_close(theirs, ours, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
def test_both_sides_of_the_benchmark_take_the_same_step() -> None:
    ours = our_step(gemma2_tiny(window=64), "cpu", 256)
    theirs = transformers_step(gemma2_tiny(window=64), "cpu", 256, "eager")
    assert ours() == pytest.approx(theirs(), rel=1e-5)


@pytest.mark.slow
def test_without_a_gpu_it_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: the benchmark would run")
    words = ["-m", "tests.benchmarks.train_step", "--device", "cuda"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
    assert "not run" in done.stdout
