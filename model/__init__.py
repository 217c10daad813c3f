"""What is computed: Gemma 2 in plain PyTorch, its weights' formats, its cache and sampling, its costs."""

from model.attention import Attention, Placement, attend, visible
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
from model.gemma2 import Block, Gemma2, LayerInputs, RunLayers, loop_layers

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
    "attend",
    "gemma2_2b",
    "gemma2_9b",
    "gemma2_27b",
    "gemma2_tiny",
    "loop_layers",
    "visible",
]
