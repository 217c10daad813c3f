"""Helpers of the model's tests: models in which every part has an effect, and the same weights in transformers."""

from typing import Any

import torch

from model import Gemma2, Gemma2Config, gemma2_tiny


def lively_model(config: Gemma2Config | None = None, seed: int = 0, **overrides: Any) -> Gemma2:
    """A model in which no part is idle: its weights are so large that both caps have an effect, and no norm is 0."""
    config = config or gemma2_tiny(**{"init_std": 0.15, "window": 5, "layers": 4, **overrides})
    model = Gemma2(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.normal_(0.0, 0.3, generator=generator)
    return model


def random_tokens(rows: int, length: int, config: Gemma2Config, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, config.vocab_size, (rows, length), generator=generator)


def in_transformers(model: Gemma2, dtype: torch.dtype = torch.float32) -> Any:
    """The same weights in transformers' eager implementation (imported here: it takes seconds).

    As its `from_pretrained(..., dtype=dtype)` gives it: the weights are of `dtype`, the rotary frequencies float32
    (`.to(dtype)` would round them too).
    """
    from transformers import Gemma2Config as TheirConfig
    from transformers import Gemma2ForCausalLM

    config = model.config
    theirs = Gemma2ForCausalLM(
        TheirConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.ffw_dim,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_dim,
            query_pre_attn_scalar=config.query_scale,
            sliding_window=config.window,
            attn_logit_softcapping=config.attention_softcap,
            final_logit_softcapping=config.final_softcap,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            attn_implementation="eager",
        )
    )
    missing, unexpected = theirs.load_state_dict(model.state_dict(), strict=False)
    assert missing in ([], ["lm_head.weight"])
    assert unexpected == []
    theirs.tie_weights()
    for parameter in theirs.parameters():
        parameter.data = parameter.data.to(dtype)
    return theirs.eval()
