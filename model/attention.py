"""Who may look at whom, and the attention that follows from it.

`visible` is the one definition of the mask, for training, prefill and decode alike: a pure function of where queries
and keys stand, never of the tensors' shapes. `attend` is plain PyTorch and runs on every device; a backend may hand the
model another function of the same signature (`Attention`), which then has to agree with `visible`.

Cost of `attend`: scores [B, N, T, S] in float32; two such tensors live on for the backward pass (tanh and softmax), and
three at the peak.

Shapes: B batch, T queries, S keys, N query heads, K key heads, G = N / K, H head size.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Placement(NamedTuple):
    """Where tokens stand: two integer tensors [B, T]."""

    positions: Tensor
    """Place within the document, from 0."""
    segment_ids: Tensor
    """Which document of the row: 1, 2, ...; 0 is padding, -1 an empty slot of a cache."""


class Attention(Protocol):
    """What a backend's attention has to look like; `attend` is the reference."""

    def __call__(
        self,
        q_BTNH: Tensor,
        k_BSKH: Tensor,
        v_BSKH: Tensor,
        query: Placement,
        key: Placement,
        *,
        window: int | None,
        scale: float,
        softcap: float,
    ) -> Tensor: ...


def visible(query: Placement, key: Placement, window: int | None) -> Tensor:
    """Bool [B, T, S]: whether query t may look at key s.

    It may if both are of one segment, the key is not ahead, and, with a window, stands fewer than `window` places
    back: `window` keys including the query itself, as in Google's code and transformers. Padding looks at padding, so
    that no row of scores is empty where queries and keys are the same tokens.
    """
    distance_BTS = query.positions[:, :, None] - key.positions[:, None, :]
    seen_BTS = (query.segment_ids[:, :, None] == key.segment_ids[:, None, :]) & (distance_BTS >= 0)
    if window is not None:
        seen_BTS = seen_BTS & (distance_BTS < window)
    return seen_BTS


def attend(
    q_BTNH: Tensor,
    k_BSKH: Tensor,
    v_BSKH: Tensor,
    query: Placement,
    key: Placement,
    *,
    window: int | None,
    scale: float,
    softcap: float,
) -> Tensor:
    """softmax(mask(softcap(scale * q k))) v, as [B, T, N, H] in q's dtype.

    Query head n uses key head n // (N / K). Scores are scaled, capped, masked and normalized in float32: capping after
    the mask would leak (a masked score would come out as -softcap), and bfloat16 cannot hold the probabilities' sum.
    """
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1], k_BSKH.shape[2]
    G = N // K
    q_BKRH = q_BTNH.view(B, T, K, G, H).permute(0, 2, 3, 1, 4).reshape(B, K, G * T, H)
    scores_BKRS = torch.matmul(q_BKRH, k_BSKH.permute(0, 2, 3, 1)).float()
    # In place where autograd allows it: neither the product nor the multiplication needs its own output again.
    capped_BKRS = scores_BKRS.mul_(scale / softcap).tanh_() * softcap
    hidden_B11TS = visible(query, key, window).logical_not()[:, None, None]
    # The most negative finite number, not -inf: a row without any key becomes a mean, not NaN.
    capped_BKGTS = capped_BKRS.view(B, K, G, T, S).masked_fill_(hidden_B11TS, torch.finfo(torch.float32).min)
    weights_BKRS = torch.softmax(capped_BKGTS, dim=-1).view(B, K, G * T, S).to(v_BSKH.dtype)
    out_BKRH = torch.matmul(weights_BKRS, v_BSKH.permute(0, 2, 1, 3))
    return out_BKRH.view(B, K, G, T, H).permute(0, 3, 1, 2, 4).reshape(B, T, N, H)
