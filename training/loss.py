"""Losses as (sum over targets, number of targets), float32; whoever has all sums divides once, at the end.

Target t of a row is token t+1, or the teacher's distribution there, wherever `loss_mask[t]` is set. The logits of a
whole batch never exist at once: the head runs on slices of time, and in training each slice's gradient is taken right
away, in closed form and in the slice's own memory, so what is kept for the backward pass is the size of the hidden
states. Products, sums and gradients are float32 whatever the model's type. Cost: the head's three matrix products, two
slices of logits, and one float32 gradient of the embedding table.

Each objective is cross-entropy -sum_i p_i log q_i in nats to some target p; they differ in what is known of p. The
student's q is softmax(logits / T) of the capped logits at `temperature` T, and p has to be the teacher's at the same
temperature. Convention: a loss at T is multiplied by T^2, because gradients shrink by about 1 / T^2 (arXiv 1503.02531,
section 2); so neither the learning rate nor the share of the next token has to follow T. Of every loss to a teacher,
`alpha` is the share of the next token, at temperature 1:

    (1 - alpha) T^2 -sum_i p_i log q_i  +  alpha -log softmax(logits)_next

One product with the table serves both; at T = 1 one softmax does too.

Batches are dicts of tensors: tokens, segment_ids, positions int32 [B, T]; loss_mask bool [B, T]; and for distillation
    sampled   target_ids, target_counts int32 [B, T, K], padded with count 0
    top-k     target_ids int32, target_log_probs float [B, T, K], padded with -inf, and target_tail float [B, T]
    full      target_probs float [B, T, V]
The ids of one target are distinct, apart from padding, whose id may be any.

Shapes: B batch, T time, P positions of a slice, D model, V vocabulary, K distinct ids at a target.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor

from data.logits import CodecSpec
from model import Gemma2
from training.config import Tail, TrainingConfig
from training.errors import UserError
from training.loss_head import CHUNK_POSITIONS, Head, HeadLoss, RunHead, loop_head, to_weighted_ids

Batch = Mapping[str, Tensor]
LossFunction = Callable[[Gemma2, Batch], tuple[Tensor, Tensor]]


def next_token_loss(
    model: Gemma2,
    batch: Batch,
    *,
    chunk_positions: int = CHUNK_POSITIONS,
    run_head: "RunHead | None" = None,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats to the next token, summed over targets, and the number of targets; both float32 scalars.

    `run_head`, here and below: how the backend walks the slices; None is `loop_head`. `z_loss`: weight of log(Z)^2 at
    each target in the gradient (arXiv 2204.02311, section 5); the sum is without it.
    """
    next_BT1 = _next_ids(batch)
    weights_BT1 = torch.ones_like(next_BT1, dtype=torch.float32)
    head = Head(model.config.final_softcap, 1.0, to_weighted_ids, chunk_positions, z_loss=z_loss)
    return _masked_sum(model, batch, head, [next_BT1, weights_BT1], run_head)


def distill_loss(
    model: Gemma2,
    batch: Batch,
    draws: int,
    *,
    temperature: float = 1.0,
    alpha: float = 0.0,
    chunk_positions: int = CHUNK_POSITIONS,
    run_head: "RunHead | None" = None,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats to counts / N of the teacher's N `draws`, summed over targets, and their number.

    Its gradient has full distillation's as its expectation (arXiv 2503.16870).
    """
    head = Head(model.config.final_softcap, temperature, to_weighted_ids, chunk_positions, alpha, z_loss)
    weights_BTK = batch["target_counts"].float() * (head.target_mass / draws)
    return _masked_sum(model, batch, head, [batch["target_ids"].long(), weights_BTK], run_head)


def distill_topk_loss(
    model: Gemma2,
    batch: Batch,
    *,
    tail: Tail = "bucket",
    temperature: float = 1.0,
    alpha: float = 0.0,
    chunk_positions: int = CHUNK_POSITIONS,
    run_head: "RunHead | None" = None,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats to what the teacher's K best ids say, summed over targets, and their number.

    `target_tail` is p_tail, the teacher's mass outside of the K ids, which the cache keeps because 1 - sum p_i would
    lose its digits. At least one id of each target is real. What becomes of the tail is `tail`:

    `bucket`        -sum_K p_i log q_i - p_tail log q_tail, where q_tail is the student's mass outside of the K ids: the
                    student is free in how it spreads the tail, and is not pushed to have none
    `renormalize`   the K probabilities divided by their sum: the usual top-k, whose optimum has no tail at all
    `ground_truth`  p_tail goes to the true next token, among the K or not (the "naive fix" of arXiv 2503.16870)
    """
    log_probs_BTK = batch["target_log_probs"].float()
    ids_BTK = batch["target_ids"].long()
    # Padding repeats the first id, so that it takes nothing out of the tail.
    ids_BTK = torch.where(log_probs_BTK == -torch.inf, ids_BTK[..., :1], ids_BTK)
    objective = _to_top_and_tail if tail == "bucket" else to_weighted_ids
    head = Head(model.config.final_softcap, temperature, objective, chunk_positions, alpha, z_loss)
    probs_BTK = log_probs_BTK.exp()
    tail_BT1 = batch["target_tail"].float()[..., None] * head.target_mass
    match tail:
        case "bucket":
            targets = [ids_BTK, probs_BTK * head.target_mass, tail_BT1]
        case "renormalize":
            kept_BT1 = probs_BTK.sum(-1, keepdim=True)  # 0 where there is no target
            tiny = torch.finfo(torch.float32).tiny
            targets = [ids_BTK, probs_BTK * (head.target_mass / kept_BT1.clamp_min(tiny))]
        case "ground_truth":
            ids_BTK = torch.cat([ids_BTK, _next_ids(batch)], dim=-1)
            targets = [ids_BTK, torch.cat([probs_BTK * head.target_mass, tail_BT1], dim=-1)]
        case _:
            raise UserError(f"tail is {tail!r}; allowed are {', '.join(map(repr, get_args(Tail)))}")
    return _masked_sum(model, batch, head, targets, run_head)


def distill_full_loss(
    model: Gemma2,
    batch: Batch,
    *,
    temperature: float = 1.0,
    alpha: float = 0.0,
    chunk_positions: int = CHUNK_POSITIONS,
    run_head: "RunHead | None" = None,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats to the teacher's whole distribution: what the others estimate, for tests of them."""
    head = Head(model.config.final_softcap, temperature, _to_distribution, chunk_positions, alpha, z_loss)
    probs_BTV = batch["target_probs"].float()
    targets = [probs_BTV if head.target_mass == 1.0 else probs_BTV * head.target_mass]
    return _masked_sum(model, batch, head, targets, run_head)


def _next_ids(batch: Batch) -> Tensor:
    """The next token of each, int64 [B, T, 1]; the last column wraps around, and no mask sets it."""
    return batch["tokens"].roll(-1, dims=1).long()[..., None]


def _to_top_and_tail(
    log_q_PV: Tensor, ids_PK: Tensor, probs_PK: Tensor, tail_P1: Tensor
) -> tuple[Tensor, Callable[[], Tensor]]:
    """-sum_K p_i log q_i - p_tail log q_tail; gradient q_i - p_i at the K ids, q_j (1 - p_tail / q_tail) elsewhere.

    q_tail is summed over the other ids relative to the greatest of them: 1 - sum_K q_i would cancel, and underflow
    could make its logarithm infinite. Without any other id all of this is a finite number times p_tail = 0.
    """
    log_top_PK = log_q_PV.gather(-1, ids_PK)
    others_PV = log_q_PV.scatter_(-1, ids_PK, torch.finfo(torch.float32).min)
    greatest_P1 = others_PV.amax(-1, keepdim=True)
    others_PV = others_PV.sub_(greatest_P1).exp_()
    sum_P1 = others_PV.sum(-1, keepdim=True)
    losses_P1 = -(log_top_PK * probs_PK).sum(-1, keepdim=True) - tail_P1 * (greatest_P1 + sum_P1.log())

    def gradient() -> Tensor:
        others_PV.mul_(greatest_P1.exp() - tail_P1 / sum_P1)
        return others_PV.scatter_(-1, ids_PK, log_top_PK.exp()).scatter_add_(-1, ids_PK, -probs_PK)

    return losses_P1[..., 0], gradient


def _to_distribution(log_q_PV: Tensor, probs_PV: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
    """-sum_V p_i log q_i; gradient q - p."""
    losses_P = -(log_q_PV * probs_PV).sum(-1)
    return losses_P, lambda: log_q_PV.exp_().sub_(probs_PV)


def _masked_sum(
    model: Gemma2, batch: Batch, head: "Head", targets: list[Tensor], run_head: "RunHead | None"
) -> tuple[Tensor, Tensor]:
    hidden_BTD = model.hidden(batch["tokens"], batch["positions"], batch["segment_ids"])
    weight_VD = model.model.embed_tokens.weight
    mask_BT = batch["loss_mask"].float()
    if head.alpha:
        targets = [*targets, _next_ids(batch)]
    run = run_head or loop_head
    if torch.is_grad_enabled():
        loss_sum: Tensor = HeadLoss.apply(hidden_BTD, weight_VD, run, head, mask_BT, *targets)
    else:
        loss_sum, _ = run(head, hidden_BTD, weight_VD, mask_BT, targets, with_gradients=False)
    return loss_sum, mask_BT.sum()


def loss_function(config: TrainingConfig, codec: CodecSpec | None, run_head: RunHead = loop_head) -> LossFunction:
    """The loss that the config's objective and the kind of cached logits name."""
    if config.objective == "next_token":
        return partial(next_token_loss, run_head=run_head, z_loss=config.z_loss)
    if codec is None:
        raise UserError("objective 'distill' needs to know what the cached logits are; pass their codec")
    distill = config.distill
    mix: dict[str, Any] = {
        "temperature": distill.temperature,
        "alpha": distill.alpha,
        "run_head": run_head,
        "z_loss": config.z_loss,
    }
    if codec.draws is not None:
        return partial(distill_loss, draws=codec.draws, **mix)
    if codec.estimator == "topk":
        return partial(distill_topk_loss, tail=distill.tail, **mix)
    return partial(distill_full_loss, **mix)
