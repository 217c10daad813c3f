"""Splash attention (jax's Pallas kernel for TPUs) as an `Attention` of the model: it keeps no scores in memory and
leaves out blocks without a visible key.

    q, k, v, segments -> HLO lowered by jax, once for each shape -> a call in torch_xla's program, forward and backward

jax only lowers the kernel; it never holds a device. On a mesh each chip runs the kernel on its own rows and heads. In
`interpret` mode the same kernel becomes ordinary XLA operations, which run on a CPU: slowly, for tests.

The kernel computes the mask of `model.attention.visible` from places in the row. Within a segment positions go up by
one from token to token, so distances are the same. For this reason there is no cache. jax counts the keys behind the
query, so a window of W keys, the query's own included, is W - 1 there.

Kernel: jax.experimental.pallas.ops.tpu.splash_attention; FlashAttention-2 (arXiv 2307.08691) with block-sparse masks.

Shapes: B rows, T tokens, N query heads, K key heads, H head size; the kernel's order is B, N, T, H.
"""

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax is imported: the TPU is torch_xla's

import jax
import jax.numpy as jnp
import torch
import torch_xla
import torch_xla.core.xla_builder as xb
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
from torch import Tensor

from model import Gemma2Config
from model.attention import Attention, Placement
from model.sharding import ROWS, MeshShape
from training.errors import UserError

LANES = 128
"""Width of a TPU's vector registers: head sizes and blocks are multiples of it."""
BLOCKS = (512, 256, LANES)
"""Tokens in a block of queries or keys; the largest size that divides the row is taken."""
DTYPES = {torch.float32: jnp.float32, torch.bfloat16: jnp.bfloat16}

# torch_xla's programs are divided by GSPMD, which does not know Shardy's annotations.
jax.config.update("jax_use_shardy_partitioner", False)


def fits_splash(config: Gemma2Config) -> bool:
    """Whether the kernel supports the model's head size; it supports those of 2B, 9B and 27B."""
    return config.head_dim % LANES == 0


def splash_attention(mesh: MeshShape | None = None, *, interpret: bool = False) -> Attention:
    """The kernel, for parameters and rows that are divided over `mesh` as in model/sharding.py.

    The function raises UserError for what the kernel cannot compute: head sizes that are no multiple of 128, and rows
    whose length is no multiple of 128. It takes no cache.
    """

    def attention(
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
        B, T, N, H = q_BTNH.shape
        assert query is key, "splash attention reads no cache: decode with model.attention.attend"
        if H % LANES or T % LANES:
            raise UserError(
                f"got head_dim {H} and rows of {T} tokens for splash attention; both must be multiples of {LANES}: "
                f"pack rows of such a length, or use model.attention.attend"
            )
        call = _Call(B, T, N, k_BSKH.shape[2], H, q_BTNH.dtype, window, softcap, mesh or MeshShape(), interpret)
        # Queries are scaled in float32 and rounded once, before the kernel, which has no scale of its own.
        q_BTNH = (q_BTNH.float() * scale).to(q_BTNH.dtype)
        q_BNTH, k_BKTH, v_BKTH = (tensor.transpose(1, 2) for tensor in (q_BTNH, k_BSKH, v_BSKH))
        out_BNTH: Tensor = _Splash.apply(call, q_BNTH, k_BKTH, v_BKTH, query.segment_ids.int())
        return out_BNTH.transpose(1, 2)

    return attention


@dataclass(frozen=True)
class _Call:
    """All that a lowered program depends on."""

    B: int
    T: int
    N: int
    K: int
    H: int
    dtype: torch.dtype
    window: int | None
    softcap: float
    mesh: MeshShape
    interpret: bool


class _Splash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, segments_BT: Tensor) -> Tensor:
        inputs = (q_BNTH, k_BKTH, v_BKTH, segments_BT)
        out_BNTH, log_sums_BNT = _run(_forward(call), inputs)
        ctx.call = call
        ctx.save_for_backward(*inputs, out_BNTH, log_sums_BNT)
        return out_BNTH

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *_run(_backward(ctx.call), (*ctx.saved_tensors, *gradients)), None)


def _run(computation: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
    outputs: list[Tensor] = torch_xla._XLAC._xla_user_computation("xla::splash_attention", list(inputs), computation)
    return outputs


@functools.cache
def _forward(call: _Call) -> Any:
    """(q, k, v, segments) -> (out, log of the sum of exponentials [B, N, T])."""
    kernel = _kernel(call, save_residuals=True)

    def of_row(q: Any, k: Any, v: Any, segments: Any) -> Any:
        out, (log_sums,) = kernel(q, k, v, splash.SegmentIds(segments, segments))
        return out, log_sums

    return _lowered(call, of_row, "qkks", "ql")


@functools.cache
def _backward(call: _Call) -> Any:
    """(q, k, v, segments, out, log sums, gradient of out) -> gradients of q, k, v."""
    kernel = _kernel(call, save_residuals=False)

    def of_row(q: Any, k: Any, v: Any, segments: Any, out: Any, log_sums: Any, gradient: Any) -> Any:
        ids = splash.SegmentIds(segments, segments)
        kept = (q, k, v, ids, None, out, log_sums, kernel.dq_mask_info, kernel.dkv_mask_info)
        # jax.vjp of the kernel, as a program of its own, would run the forward kernel once more.
        gradients = splash._splash_attention_bwd(**kernel.kwargs, res=kept, do=gradient)
        return gradients[3:6]

    return _lowered(call, of_row, "qkksqlq", "qkk")


def _kernel(call: _Call, save_residuals: bool) -> Any:
    """The kernel for the heads of one chip."""
    shape = (call.T, call.T)
    mask: masks.Mask
    if call.window is None:
        mask = masks.CausalMask(shape)
    else:
        mask = masks.LocalMask(shape, window_size=(call.window - 1, 0), offset=0)
    block = next(size for size in BLOCKS if call.T % size == 0)
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    return splash.make_splash_mha(
        masks.MultiHeadMask([mask] * (call.N // call.mesh.model)),
        block_sizes=splash.BlockSizes(**dict.fromkeys((*names, "block_q_dq", "block_kv_dq"), block)),
        save_residuals=save_residuals,
        attn_logits_soft_cap=call.softcap,
        head_shards=1,
        q_seq_shards=1,
        interpret=call.interpret,
    )


def _lowered(call: _Call, of_row: Callable[..., Any], inputs: str, outputs: str) -> Any:
    """The function of one row as an XLA computation, for all rows and, on a mesh, for all chips.

    Letters name arguments and results: q and k are arrays of query and key heads, l is float32 [B, N, T], s is
    segments.
    """
    of_rows: Callable[..., Any] = jax.vmap(of_row)
    heads = PartitionSpec(ROWS, "model")
    specs = {"q": heads, "k": heads, "l": heads, "s": PartitionSpec(ROWS)}
    options: dict[str, Any] = {}
    if call.mesh.chips > 1:
        sizes = call.mesh.sizes
        mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
        of_rows = jax.shard_map(
            of_rows,
            mesh=mesh,
            in_specs=tuple(specs[letter] for letter in inputs),
            out_specs=tuple(specs[letter] for letter in outputs),
            check_vma=False,  # the kernel does not declare the axes over which its results vary
        )
        options["in_shardings"] = tuple(NamedSharding(mesh, specs[letter]) for letter in inputs)
    dtype = DTYPES[call.dtype]
    structs = {
        "q": jax.ShapeDtypeStruct((call.B, call.N, call.T, call.H), dtype),
        "k": jax.ShapeDtypeStruct((call.B, call.K, call.T, call.H), dtype),
        "l": jax.ShapeDtypeStruct((call.B, call.N, call.T), jnp.float32),
        "s": jax.ShapeDtypeStruct((call.B, call.T), jnp.int32),
    }
    traced = jax.jit(of_rows, keep_unused=True, **options).trace(*(structs[letter] for letter in inputs))
    hlo = traced.lower(lowering_platforms=("cpu" if call.interpret else "tpu",)).compiler_ir("hlo")
    return xb.computation_from_module_proto("splash_attention", hlo.as_serialized_hlo_module_proto())
