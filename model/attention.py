"""The attention mask, and attention under it.

`visible` is the only definition of the mask, for training, prefill and decode. It is a pure function of the positions
and segments of queries and keys, and does not depend on the tensors' shapes. `attend` is plain PyTorch and runs on
every device. A backend may give the model another function with the same signature (`Attention`), which must agree with
`visible`.

Cost of `attend`: scores [B, N, T, S] in float32. Two such tensors are kept for the backward pass (tanh and softmax),
and three exist at the peak. `attend_in_parts` is for forward passes over long rows: its scores have a bounded size.

Shapes: B batch, T queries, S keys, N query heads, K key heads, G = N / K, H head size.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

MOST_SCORES = 2**26
"""Scores that `attend_in_parts` has at once: 256 MiB in float32."""


class Placement(NamedTuple):
    """The places of tokens: two integer tensors [B, T]."""

    positions: Tensor
    """Place within the document, from 0."""
    segment_ids: Tensor
    """Number of the document in the row: 1, 2, ...; 0 for padding, -1 for an empty slot of a cache."""


class Attention(Protocol):
    """The signature of a backend's attention. `attend` is the reference."""

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
    """Bool [B, T, S]: whether query t sees key s.

    It does if both are in one segment and the key is not later. With a window, the key must also be fewer than `window`
    places back, which makes `window` keys including the query's own, as in Google's code and transformers. Padding sees
    padding, so no row of scores is empty if queries and keys are the same tokens.
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

    Query head n uses key head n // (N / K). Scores are scaled, capped, masked and normalized in float32. Capping after
    the mask would leak (a masked score would become -softcap), and bfloat16 is too coarse for the sum of probabilities.
    """
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1], k_BSKH.shape[2]
    G = N // K
    q_BKRH = q_BTNH.view(B, T, K, G, H).permute(0, 2, 3, 1, 4).reshape(B, K, G * T, H)
    scores_BKRS = torch.matmul(q_BKRH, k_BSKH.permute(0, 2, 3, 1)).float()
    # In place if autograd allows it: the backward pass needs neither the product nor the scaled scores.
    capped_BKRS = scores_BKRS.mul_(scale / softcap).tanh_() * softcap
    hidden_B11TS = visible(query, key, window).logical_not()[:, None, None]
    # The most negative finite number instead of -inf: a row without any visible key becomes a mean, not NaN.
    capped_BKGTS = capped_BKRS.view(B, K, G, T, S).masked_fill_(hidden_B11TS, torch.finfo(torch.float32).min)
    weights_BKRS = torch.softmax(capped_BKGTS, dim=-1).view(B, K, G * T, S).to(v_BSKH.dtype)
    out_BKRH = torch.matmul(weights_BKRS, v_BSKH.permute(0, 2, 1, 3))
    return out_BKRH.view(B, K, G, T, H).permute(0, 3, 1, 2, 4).reshape(B, T, N, H)


def attend_in_parts(
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
    """`attend` for the tokens of packed rows, a part of the queries at a time: scores of [T, T] never exist.

    Within a segment of a packed row, positions go up from token to token. So the keys that a part sees are neither
    later in the row than the part, nor earlier than the window of its first query; no others are read. It takes no
    cache. Scores that exist at once: B * N * (queries of a part) * T, at most `MOST_SCORES` or those of one query.
    """
    assert query is key, "the rows must be whole: decode with model.attention.attend"
    B, T, N, _ = q_BTNH.shape
    queries = max(1, MOST_SCORES // (B * N * T))
    parts = []
    for start in range(0, T, queries):
        end = min(start + queries, T)
        first = 0 if window is None else max(0, start + 1 - window)
        of_part, seen = (
            Placement(query.positions[:, cut], query.segment_ids[:, cut])
            for cut in (slice(start, end), slice(first, end))
        )
        part_BTNH = attend(
            q_BTNH[:, start:end], k_BSKH[:, first:end], v_BSKH[:, first:end], of_part, seen,
            window=window, scale=scale, softcap=softcap,
        )  # fmt: skip
        parts.append(part_BTNH)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
