"""Keys and values of earlier tokens, so that decoding computes only the new one.

A global block keeps `max_length` tokens. A local block keeps at most its window, as a ring: the token at position p is
in slot p mod capacity, with its position and segment, from which the mask follows (`model.attention.visible`). Shapes
do not depend on the data, so a device that compiles does so once for the width of prompts and once for single tokens.

A row holds one document, and padding (segment 0) is not stored. The cache is for inference: stored keys and values have
no gradient. Cost: 2 * B * K * H * (max_length or window) numbers a block.

Shapes: B batch, T new tokens, C capacity, S keys seen, K kv heads, H head size.
"""

import torch
from torch import Tensor

from model.attention import Placement
from model.config import Gemma2Config
from model.errors import UserError

EMPTY = -1
"""Segment of an empty slot, which no query has."""


class LayerCache:
    """The ring of one block: C slots, and one more slot for tokens that are not kept."""

    def __init__(
        self, config: Gemma2Config, window: int | None, batch_rows: int, max_length: int,
        device: torch.device | str, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self.capacity = max_length if window is None else min(window, max_length)
        self.evicts = self.capacity < max_length
        slots = self.capacity + 1
        # [B, S, K, H] as a view of [B, K, S, H]: attention takes the keys of each head as one matrix without a copy.
        shape = (batch_rows, config.kv_heads, slots, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype).transpose(1, 2)
        self.values = torch.zeros(shape, device=device, dtype=dtype).transpose(1, 2)
        self.positions = torch.zeros(batch_rows, slots, device=device, dtype=torch.int32)
        self.segment_ids = torch.full_like(self.positions, EMPTY)

    def extend(self, k_BTKH: Tensor, v_BTKH: Tensor, new: Placement) -> tuple[Tensor, Tensor, Placement]:
        """Stores the new tokens. Returns keys and values [B, S, K, H] and their placement [B, S], old and new.

        Several new tokens may replace keys that the first of them still sees. Then old and new keys are joined before
        the ring is written. A single new token replaces only the key that has just left its window.
        """
        placement = Placement(new.positions.to(torch.int32), new.segment_ids.to(torch.int32))
        if self.evicts and k_BTKH.shape[1] > 1:
            keys_BSKH = torch.cat((self.keys, k_BTKH), dim=1)
            values_BSKH = torch.cat((self.values, v_BTKH), dim=1)
            positions_BS = torch.cat((self.positions, placement.positions), dim=1)
            segment_ids_BS = torch.cat((self.segment_ids, placement.segment_ids), dim=1)
            self._write(k_BTKH, v_BTKH, placement)
            return keys_BSKH, values_BSKH, Placement(positions_BS, segment_ids_BS)
        self._write(k_BTKH, v_BTKH, placement)
        return self.keys, self.values, Placement(self.positions, self.segment_ids)

    @torch.no_grad()
    def _write(self, k_BTKH: Tensor, v_BTKH: Tensor, new: Placement) -> None:
        kept_BT = new.segment_ids > 0
        if k_BTKH.shape[1] > 1:
            # If tokens share a slot, only the newest is written: the order of writes to one slot is not defined.
            newest_B1 = torch.where(kept_BT, new.positions, -1).amax(dim=1, keepdim=True)
            kept_BT = kept_BT & (new.positions > newest_B1 - self.capacity)
        slots_BT = torch.where(kept_BT, new.positions % self.capacity, self.capacity).long()
        rows_B1 = torch.arange(k_BTKH.shape[0], device=k_BTKH.device)[:, None]
        self.keys[rows_B1, slots_BT] = k_BTKH.detach()
        self.values[rows_B1, slots_BT] = v_BTKH.detach()
        self.positions[rows_B1, slots_BT] = new.positions
        self.segment_ids[rows_B1, slots_BT] = torch.where(kept_BT, new.segment_ids, EMPTY)


class Cache:
    """A `LayerCache` for every block, for rows of up to `max_length` positions (unchecked: a check costs a sync)."""

    def __init__(
        self,
        config: Gemma2Config,
        *,
        batch_rows: int,
        max_length: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if batch_rows < 1 or max_length < 1:
            raise UserError(
                f"got batch_rows={batch_rows} and max_length={max_length}, but a cache holds at least one row of one "
                "token; give 1 or more for both"
            )
        self.layers = [
            LayerCache(config, config.layer_window(index), batch_rows, max_length, device, dtype)
            for index in range(config.layers)
        ]
