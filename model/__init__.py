"""What is computed: Gemma 2 in plain PyTorch, with formats of weights, cache, sampling, sharding and costs."""

from model.attention import Attention, Placement, attend, attend_in_parts, visible
from model.cache import Cache
from model.config import (
    PAPER_VOCAB_SIZE,
    VOCAB_SIZE,
    Gemma2Config,
    gemma2_2b,
    gemma2_9b,
    gemma2_27b,
    gemma2_tiny,
)
from model.flops import forward_flops_per_token, parameter_count, train_flops_per_token
from model.gemma2 import Block, Gemma2, LayerInputs, RunLayers, loop_layers
from model.google_weights import load_gemma_pytorch
from model.head import TableModel
from model.hf_weights import hf_files, load_hf, save_hf
from model.sampling import choose, generate

__all__ = [
    "PAPER_VOCAB_SIZE",
    "VOCAB_SIZE",
    "Attention",
    "Block",
    "Cache",
    "Gemma2",
    "Gemma2Config",
    "LayerInputs",
    "Placement",
    "RunLayers",
    "TableModel",
    "attend",
    "attend_in_parts",
    "choose",
    "forward_flops_per_token",
    "gemma2_2b",
    "gemma2_9b",
    "gemma2_27b",
    "gemma2_tiny",
    "generate",
    "hf_files",
    "load_gemma_pytorch",
    "load_hf",
    "loop_layers",
    "parameter_count",
    "save_hf",
    "train_flops_per_token",
    "visible",
]
