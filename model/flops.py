"""Numbers of parameters and of operations a token, computed from a configuration without building a model.

A multiply-add counts as two operations. Norms, rotary embedding, softmax, caps and the embedding look-up are not
counted, as is usual (under 1 % at the published sizes).
"""

from model.config import Gemma2Config
from model.errors import UserError


def parameter_count(config: Gemma2Config, vocab_size: int | None = None) -> tuple[int, int]:
    """(embedding, non-embedding) parameters. `vocab_size`: default is that of the configuration.

    embedding = V D, once, although it is the head too. non-embedding = L (D N H + 2 D K H + N H D + 3 D F + 4 D) + D.
    With V = 256128 these are the numbers of arXiv 2408.00118, Table 2, exactly.
    """
    embedding = (config.vocab_size if vocab_size is None else vocab_size) * config.d_model
    norms = config.layers * 4 * config.d_model + config.d_model
    return embedding, config.layers * _block_matrix_parameters(config) + norms


def forward_flops_per_token(config: Gemma2Config, sequence_length: int) -> float:
    """Mean operations of the forward pass for a token in one document of `sequence_length` T tokens.

    They are 2 (block matrices + V D) + sum over blocks of 4 N H keys. The mean number of keys that a query sees is (T +
    1) / 2 in a global block and, with W = min(window, T), (W (W + 1) / 2 + (T - W) W) / T in a local block. The 4 is
    two products (scores, weighted sum) of two operations. Only visible keys count: a kernel that also computes masked
    scores does more operations.
    """
    if sequence_length < 1:
        raise UserError(f"sequence_length is {sequence_length}, but must be at least 1 token; give the length of a row")
    matrices = config.layers * _block_matrix_parameters(config) + config.vocab_size * config.d_model
    keys = sum(_mean_keys(config.layer_window(layer), sequence_length) for layer in range(config.layers))
    return 2.0 * matrices + 4.0 * config.heads * config.head_dim * keys


def train_flops_per_token(config: Gemma2Config, sequence_length: int) -> float:
    """Operations of a training step for each token: F forward, and 2 F backward (gradients of inputs and of weights).

    F is `forward_flops_per_token`. Recomputation (remat) is not counted, because it is not useful work.
    """
    return 3.0 * forward_flops_per_token(config, sequence_length)


def _block_matrix_parameters(config: Gemma2Config) -> int:
    attention = config.d_model * config.head_dim * (2 * config.heads + 2 * config.kv_heads)
    return attention + 3 * config.d_model * config.ffw_dim


def _mean_keys(window: int | None, length: int) -> float:
    span = length if window is None else min(window, length)
    return (span * (span + 1) / 2 + (length - span) * span) / length
