"""Gemma 2 (arXiv 2408.00118), from top to bottom: norm, rope, attention, mlp, block, model.

This is one model for training, prefill and decode on every device. Nothing here depends on a device, a rank or a
sampler. A backend can pass in its own attention and its own loop over the layers. Modules and parameters have Hugging
Face's names, so a state dict is a checkpoint of `transformers.Gemma2ForCausalLM` without its tied `lm_head`.

Data flow: tokens [B, T] -> embedding * sqrt(D) -> blocks -> final norm (`hidden`) -> the same embedding table, capped
(`logits`, float32). Cost: about 2 FLOPs a parameter and token forward (`model.flops`), and 4 * B * T * V bytes of
logits, by far the largest tensor. To save memory, compute `hidden` and call `logits` on the part that is needed.

Shapes: B batch, T time, S keys, N heads, K kv heads, H head size, D model, F ffw, V vocabulary. The suffix of a
tensor's name is its shape.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.attention import Attention, Placement, attend
from model.cache import Cache, LayerCache
from model.config import Gemma2Config
from model.head import table_product


class LayerInputs(NamedTuple):
    """Inputs of every block besides the residual stream. All are tensors, so a scan over layers can carry them."""

    cos_BTR: Tensor
    """Cosines of the rotary angles, float32, R = H / 2."""
    sin_BTR: Tensor
    """Sines of the rotary angles, float32."""
    positions_BT: Tensor
    """Place of each token within its document, from 0."""
    segment_ids_BT: Tensor
    """Number of each token's document within the row; 0 for padding."""


class Linear(nn.Linear):
    """A linear layer without bias, and without PyTorch's initial draw, which takes seconds and would be overwritten."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        """Does nothing: `Gemma2.init_weights` draws the weights."""


class Embedding(nn.Embedding):
    """An embedding without PyTorch's initial draw, like `Linear`."""

    def reset_parameters(self) -> None:
        """Does nothing: `Gemma2.init_weights` draws the weights."""


class RMSNorm(nn.Module):
    """x / rms(x) * (1 + weight) in float32, rounded only at the end (gemma_pytorch's order since f499fd4)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x_BTD: Tensor) -> Tensor:
        x32_BTD = x_BTD.float()
        x32_BTD = x32_BTD * torch.rsqrt(x32_BTD.square().mean(-1, keepdim=True) + self.eps)
        return (x32_BTD * (1.0 + self.weight.float())).to(x_BTD.dtype)


def rotary_angles(positions_BT: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [B, T, H / 2] of position * theta**(-2i / H), float32 whatever the model's dtype.

    The wavelengths are computed on the host, so that all devices rotate by the same angles.
    """
    exponents_R = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    frequencies_R = (1.0 / theta**exponents_R).to(positions_BT.device)
    angles_BTR = positions_BT.float()[:, :, None] * frequencies_R
    return angles_BTR.cos(), angles_BTR.sin()


def rotate(x_BTNH: Tensor, cos_BTR: Tensor, sin_BTR: Tensor) -> Tensor:
    """Rotates the (first half, second half) pairs of each head, in float32, and returns x's dtype."""
    first_BTNR, second_BTNR = x_BTNH.float().chunk(2, dim=-1)
    cos_BT1R, sin_BT1R = cos_BTR[:, :, None], sin_BTR[:, :, None]
    turned = (first_BTNR * cos_BT1R - second_BTNR * sin_BT1R, second_BTNR * cos_BT1R + first_BTNR * sin_BT1R)
    return torch.cat(turned, dim=-1).to(x_BTNH.dtype)


class SelfAttention(nn.Module):
    """Grouped-query attention with rotary positions: local with a `window`, global if it is None."""

    def __init__(self, config: Gemma2Config, window: int | None) -> None:
        super().__init__()
        D, N, K, H = config.d_model, config.heads, config.kv_heads, config.head_dim
        self.q_proj = Linear(D, N * H)
        self.k_proj = Linear(D, K * H)
        self.v_proj = Linear(D, K * H)
        self.o_proj = Linear(N * H, D)
        self.heads, self.kv_heads, self.head_dim = N, K, H
        self.window = window
        self.scale = config.query_scale**-0.5
        self.softcap = config.attention_softcap

    def forward(
        self, x_BTD: Tensor, inputs: LayerInputs, attention: Attention, cache: LayerCache | None = None
    ) -> Tensor:
        B, T, _ = x_BTD.shape
        q_BTNH = self.q_proj(x_BTD).view(B, T, self.heads, self.head_dim)
        k_BSKH = self.k_proj(x_BTD).view(B, T, self.kv_heads, self.head_dim)
        v_BSKH = self.v_proj(x_BTD).view(B, T, self.kv_heads, self.head_dim)
        q_BTNH = rotate(q_BTNH, inputs.cos_BTR, inputs.sin_BTR)
        k_BSKH = rotate(k_BSKH, inputs.cos_BTR, inputs.sin_BTR)
        query = key = Placement(inputs.positions_BT, inputs.segment_ids_BT)
        if cache is not None:
            k_BSKH, v_BSKH, key = cache.extend(k_BSKH, v_BSKH, query)
        out_BTNH = attention(
            q_BTNH, k_BSKH, v_BSKH, query, key, window=self.window, scale=self.scale, softcap=self.softcap
        )
        return self.o_proj(out_BTNH.reshape(B, T, self.heads * self.head_dim))


class MLP(nn.Module):
    """down(gelu_tanh(gate(x)) * up(x))."""

    def __init__(self, config: Gemma2Config) -> None:
        super().__init__()
        self.gate_proj = Linear(config.d_model, config.ffw_dim)
        self.up_proj = Linear(config.d_model, config.ffw_dim)
        self.down_proj = Linear(config.ffw_dim, config.d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.gate_proj(x_BTD), approximate="tanh") * self.up_proj(x_BTD))


class Block(nn.Module):
    """Attention and MLP, each with a norm before and after it. The second norm's output is added to the stream."""

    def __init__(self, config: Gemma2Config, window: int | None) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config, window)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.d_model, config.norm_eps)
        # In Llama a norm of this name comes before the MLP; here it follows the attention.
        self.post_attention_layernorm = RMSNorm(config.d_model, config.norm_eps)
        self.pre_feedforward_layernorm = RMSNorm(config.d_model, config.norm_eps)
        self.post_feedforward_layernorm = RMSNorm(config.d_model, config.norm_eps)

    def forward(
        self, x_BTD: Tensor, inputs: LayerInputs, attention: Attention, cache: LayerCache | None = None
    ) -> Tensor:
        attended_BTD = self.self_attn(self.input_layernorm(x_BTD), inputs, attention, cache)
        x_BTD = x_BTD + self.post_attention_layernorm(attended_BTD)
        return x_BTD + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x_BTD)))


RunLayers = Callable[[Iterable[Block], Tensor, LayerInputs, Attention, Cache | None], Tensor]
"""(layers, x_BTD, inputs, attention, cache) -> x_BTD: runs the blocks (by a loop, a scan, remat)."""


def loop_layers(
    layers: Iterable[Block], x_BTD: Tensor, inputs: LayerInputs, attention: Attention, cache: Cache | None
) -> Tensor:
    """Runs one block after the other, and keeps everything for the backward pass."""
    for index, layer in enumerate(layers):
        x_BTD = layer(x_BTD, inputs, attention, None if cache is None else cache.layers[index])
    return x_BTD


class Decoder(nn.Module):
    """The part that Hugging Face calls `model`. It only gives the parameters their names."""

    def __init__(self, config: Gemma2Config) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Block(config, config.layer_window(index)) for index in range(config.layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)


class Gemma2(nn.Module):
    """The language model, with weights drawn from `seed` (on the `meta` device: shapes only).

    `attention` and `run_layers` can be passed here, or set later as attributes of the same names.
    """

    def __init__(
        self,
        config: Gemma2Config,
        *,
        seed: int = 0,
        attention: Attention = attend,
        run_layers: RunLayers = loop_layers,
    ) -> None:
        super().__init__()
        self.config = config
        self.attention = attention
        self.run_layers = run_layers
        self.model = Decoder(config)
        if not self.model.norm.weight.is_meta:
            self.init_weights(seed)

    @property
    def table(self) -> Tensor:
        """The embedding [V, D], which is also the matrix of the head."""
        return self.model.embed_tokens.weight

    def forward(
        self,
        tokens_BT: Tensor,
        positions: Tensor | None = None,
        segment_ids: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Logits [B, T, V], float32, for the token after each of `tokens_BT`; arguments as in `hidden`."""
        return self.logits(self.hidden(tokens_BT, positions, segment_ids, cache))

    def hidden(
        self,
        tokens_BT: Tensor,
        positions: Tensor | None = None,
        segment_ids: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Hidden states [B, T, D] after the final norm.

        tokens_BT, positions, segment_ids: integers [B, T]. Positions count from 0 in each document (default: from 0 in
        each row). Segments separate the documents of a row (default: one document), and 0 marks padding. With a
        `cache`, tokens also see the keys and values of earlier calls, and positions must be given.
        """
        B, T = tokens_BT.shape
        if positions is None:
            assert cache is None, "got a cache but no positions; pass positions [B, T] that continue those in the cache"
            positions = torch.arange(T, device=tokens_BT.device, dtype=torch.int32).expand(B, T)
        if segment_ids is None:
            segment_ids = torch.ones_like(tokens_BT, dtype=torch.int32)
        cos_BTR, sin_BTR = rotary_angles(positions, self.config.head_dim, self.config.rope_theta)
        x_BTD = self.model.embed_tokens(tokens_BT)
        x_BTD = x_BTD * _rounded(self.config.d_model**0.5, x_BTD.dtype)
        inputs = LayerInputs(cos_BTR, sin_BTR, positions, segment_ids)
        x_BTD = self.run_layers(self.model.layers, x_BTD, inputs, self.attention, cache)  # type: ignore[arg-type]
        return self.model.norm(x_BTD)

    def logits(self, hidden: Tensor) -> Tensor:
        """Capped logits [..., V] in float32, from hidden states [..., D] after the final norm.

        The product is also computed in float32: bfloat16 logits near the cap of 30 are 0.125 apart. bfloat16 factors
        lose nothing if the hardware multiplies in TF32 (`torch.set_float32_matmul_precision("high")`).
        """
        cap = self.config.final_softcap
        return (table_product(hidden.float(), self.table.float()) / cap).tanh() * cap

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Sets norms to 0 (they multiply by 1 + weight), and draws all other weights from normal(0, init_std).

        Each tensor is drawn on the host by its own generator, seeded by `seed` and the tensor's name. So the values do
        not depend on device, dtype (except for rounding), sharding or the other tensors.
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.zero_()
                continue
            digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            drawn = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
            parameter.copy_(drawn.normal_(0.0, self.config.init_std, generator=generator))


def _rounded(value: float, dtype: torch.dtype) -> float:
    """`value` rounded to `dtype`, as all published code rounds sqrt(D) (bfloat16: 59.75 for 9B, not 59.8665)."""
    return torch.tensor(value, dtype=dtype, device="cpu").item()
