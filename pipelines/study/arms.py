"""The arms of the study, and the teacher's targets for the rows of a step, computed once for all arms.

    scratch        the next token
    full           the teacher's whole distribution, which the other arms estimate and no cache could hold
    sample50, 12   counts of N draws from the distribution (unbiased)
    topk12, 50     the K best ids, renormalized: the usual cache (biased)
    sample50+next  counts of 50 draws, with a share of the next token

Shapes: B rows, T time, V vocabulary, K ids kept.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from model import Gemma2
from pipelines.study.text import COLUMNS
from training.config import DistillConfig, Tail
from training.distill.kinds.full import distill_full_loss
from training.distill.kinds.sample import distill_loss, sample_teacher
from training.distill.kinds.topk import distill_topk_loss
from training.distill.log_probs import top_k_teacher
from training.feed import HostBatch
from training.loss import LossFunction, LossOptions, next_token_loss

SAMPLING_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to learn; `name` is its name in metrics, tables and plots."""

    name: str
    draws: int = 0
    """number N of draws of a sample; 0: no sample"""
    kept: int = 0
    """number K of ids of a top-k; 0: no top-k"""
    full: bool = False
    """whether the arm learns from the teacher's whole distribution"""
    distill: DistillConfig = field(default_factory=DistillConfig)
    """settings of the loss"""

    @property
    def learns_from(self) -> str:
        """The target of the arm in words, for tables."""
        if self.full:
            what = "the whole distribution"
        elif self.draws:
            what = f"{self.draws} draws"
        elif self.kept:
            what = f"top {self.kept}, {TAILS[self.distill.tail]}"
        else:
            return "the next token alone"
        if self.distill.alpha:
            what += f", and {self.distill.alpha:.0%} next token"
        return what if self.distill.temperature == 1.0 else f"{what}, at T = {self.distill.temperature:g}"

    def loss(self) -> LossFunction:
        options = LossOptions(distill=self.distill)
        if self.full:
            return partial(distill_full_loss, options=options)
        if self.draws:
            return partial(distill_loss, draws=self.draws, options=options)
        if self.kept:
            return partial(distill_topk_loss, options=options)
        return next_token_loss


TAILS: dict[Tail, str] = {
    "renormalize": "renormalized",
    "bucket": "tail as one",
    "ground_truth": "tail to the next token",
}


def arms(alpha: float) -> tuple[Arm, ...]:
    """The seven arms of the study."""
    usual = DistillConfig(tail="renormalize")
    return (
        Arm(name="scratch"),
        Arm(name="full", full=True),
        Arm(name="sample50", draws=50),
        Arm(name="sample12", draws=12),
        Arm(name="topk12", kept=12, distill=usual),
        Arm(name="topk50", kept=50, distill=usual),
        Arm(name="sample50+next", draws=50, distill=DistillConfig(alpha=alpha)),
    )


def with_tails() -> tuple[Arm, ...]:
    """Two more arms, which keep the tail of a top-k."""
    tails: tuple[tuple[str, Tail], ...] = (("bucket", "bucket"), ("truth", "ground_truth"))
    return tuple(Arm(name=f"topk12 {name}", kept=12, distill=DistillConfig(tail=tail)) for name, tail in tails)


def at_temperatures(temperatures: tuple[float, ...]) -> tuple[Arm, ...]:
    """Full distillation at several T, where teacher and student are softened alike."""
    return tuple(
        Arm(name=f"full T={temperature:g}", full=True, distill=replace(DistillConfig(), temperature=temperature))
        for temperature in temperatures
    )


class Teacher:
    """The teacher's targets for rows. Its weights are only read, so several threads may call it at once."""

    def __init__(self, model: Gemma2, weights_hash: str, arms: tuple[Arm, ...]) -> None:
        self.model, self.weights_hash, self.arms = model, weights_hash, arms
        self.forward_cpu_seconds: list[float] = []
        """CPU seconds of the forward pass of each call, in the thread of the call"""

    @torch.no_grad()
    def targets(self, batch: HostBatch) -> Mapping[str, Mapping[str, Tensor]]:
        """Arm name -> batch for the loss of that arm."""
        base = {name: torch.from_numpy(batch[name]) for name in COLUMNS}
        began = time.thread_time()
        logits_BTV = self.model(base["tokens"], base["positions"], base["segment_ids"])
        self.forward_cpu_seconds.append(time.thread_time() - began)
        columns: dict[tuple[object, ...], dict[str, Tensor]] = {}
        answers: dict[str, Mapping[str, Tensor]] = {}
        for arm in self.arms:
            temperature = arm.distill.temperature
            key = (arm.full, arm.draws, arm.kept, temperature)
            if key not in columns:
                columns[key] = self._columns(arm, logits_BTV if temperature == 1.0 else logits_BTV / temperature, batch)
            answers[arm.name] = base | columns[key]
        return answers

    def _columns(self, arm: Arm, logits_BTV: Tensor, batch: HostBatch) -> dict[str, Tensor]:
        if arm.full:
            return {"target_probs": logits_BTV.softmax(-1)}
        if arm.draws:
            return counted(arm.draws, logits_BTV, batch["sequence_hash"], self.weights_hash)
        if arm.kept:
            return top_columns(logits_BTV, arm.kept)
        return {}


def counted(
    draws: int, logits_BTV: Tensor, sequence_hashes: np.ndarray, weights_hash: str, seed: int = SAMPLING_SEED
) -> dict[str, Tensor]:
    """The columns of a sample, drawn as `cache_logits` draws, at every position (few positions have no target)."""
    rows, length, _ = logits_BTV.shape
    drawn = [
        sample_teacher(
            logits_TV.numpy(),
            draws=draws,
            seed=seed,
            teacher_hash=weights_hash,
            sequence_hash=int(sequence_hash),
            positions=np.arange(length),
        )
        for logits_TV, sequence_hash in zip(logits_BTV, sequence_hashes, strict=True)
    ]
    width = max(ids.shape[1] for ids, _ in drawn)
    ids_BTK, counts_BTK = (np.zeros((rows, length, width), np.int32) for _ in range(2))
    for row, (ids, counts) in enumerate(drawn):
        ids_BTK[row, :, : ids.shape[1]], counts_BTK[row, :, : ids.shape[1]] = ids, counts
    return {"target_ids": torch.from_numpy(ids_BTK), "target_counts": torch.from_numpy(counts_BTK)}


def top_columns(logits_BTV: Tensor, kept: int) -> dict[str, Tensor]:
    """The columns of a top-k target, from logits."""
    kept_PK = top_k_teacher(logits_BTV.flatten(0, 1), kept)
    ids_BTK, log_probs_BTK, tail_BT = (part.unflatten(0, logits_BTV.shape[:2]) for part in kept_PK)
    return {"target_ids": ids_BTK, "target_log_probs": log_probs_BTK, "target_tail": tail_BT}


def join(parts: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One batch of several; lists of ids are padded to the longest."""
    joined = {}
    for name in parts[0]:
        tensors = [part[name] for part in parts]
        if name in ("target_ids", "target_counts"):
            width = max(tensor.shape[-1] for tensor in tensors)
            tensors = [torch.nn.functional.pad(tensor, (0, width - tensor.shape[-1])) for tensor in tensors]
        joined[name] = torch.cat(tensors)
    return joined
