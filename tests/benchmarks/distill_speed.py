"""A train step from cached targets against the next-token step: same model and rows, targets already decoded."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from model import Gemma2, Gemma2Config
from pipelines.study.arms import counted, top_columns
from tests.benchmarks.model_speed import Benchmark
from training.backends.torch_backend import TorchBackend
from training.config import DistillConfig, OptimizerConfig
from training.distill.kinds.sample import distill_loss
from training.distill.kinds.topk import distill_topk_loss
from training.loss import LossFunction, LossOptions, next_token_loss
from training.optim import init_state, step_scalars
from training.step import train_step

ROWS, LENGTH, DRAWS, KEPT = 8, 256, 50, 50
STUDENT = Gemma2Config(
    vocab_size=8192, d_model=256, layers=4, heads=4, kv_heads=2, head_dim=64, ffw_dim=1024, window=128, query_scale=64
)
SPREAD = 3.0
"""of the made-up teacher's logits: 50 draws find some 34 different ids, many for a teacher"""


def benchmarks() -> Iterator[Benchmark]:
    """Steps from 50 draws, from draws mixed with the next token, and from each treatment of a top 50."""
    plain = _step(next_token_loss, {})
    generator = torch.Generator().manual_seed(0)
    logits_BTV = SPREAD * torch.randn(ROWS, LENGTH, STUDENT.vocab_size, generator=generator)
    drawn = counted(DRAWS, logits_BTV, torch.arange(ROWS).numpy(), "made up", 0)
    kept = top_columns(logits_BTV, KEPT)
    unique = float((drawn["target_counts"] > 0).sum(-1).float().mean())
    mixed = LossOptions(distill=DistillConfig(alpha=0.2))
    renormalized = LossOptions(distill=DistillConfig(tail="renormalize"))
    sides: dict[str, tuple[LossFunction, Mapping[str, Tensor]]] = {
        f"{DRAWS} draws, {unique:.0f} ids": (partial(distill_loss, draws=DRAWS), drawn),
        f"{DRAWS} draws, alpha 0.2": (partial(distill_loss, draws=DRAWS, options=mixed), drawn),
        f"top {KEPT}, bucket": (distill_topk_loss, kept),
        f"top {KEPT}, renormalize": (partial(distill_topk_loss, options=renormalized), kept),
    }
    for name, (loss, targets) in sides.items():
        yield Benchmark(
            what=f"step from the cache: {name}",
            amount=ROWS * LENGTH,
            unit="tok",
            ours=_step(loss, targets),
            rival=plain,
            rival_name="next-token step",
        )


def _step(loss: LossFunction, targets: Mapping[str, Tensor]) -> Callable[[], object]:
    model = Gemma2(STUDENT)
    state = init_state({name: parameter.detach() for name, parameter in model.named_parameters()})
    optimizer = OptimizerConfig(learning_rate=1e-5)
    scalars = torch.tensor(step_scalars(optimizer, 0, 100))
    mask = torch.ones(ROWS, LENGTH, dtype=torch.bool)
    mask[:, -1] = False
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, STUDENT.vocab_size, (ROWS, LENGTH), generator=generator, dtype=torch.int32)
    batch = {
        "tokens": tokens,
        "segment_ids": torch.ones_like(tokens),
        "positions": torch.arange(LENGTH, dtype=torch.int32).expand(ROWS, LENGTH),
        "loss_mask": mask,
        **targets,
    }
    return lambda: train_step(model, loss, state, [batch], scalars, optimizer, TorchBackend("cpu"))
