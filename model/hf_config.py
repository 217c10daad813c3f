"""`config.json` of Hugging Face directories, read and written.

Reading is strict: a key that changes what the model computes is known here and has Gemma 2's value, or the file is
refused by the key's name. Keys that only describe the weights or how text is drawn are listed, and ignored.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from model.config import Gemma2Config
from model.errors import UserError

CONFIG_FILE = "config.json"

_CONFIG_KEYS = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "ffw_dim": "intermediate_size",
    "window": "sliding_window",
    "query_scale": "query_pre_attn_scalar",
    "attention_softcap": "attn_logit_softcapping",
    "final_softcap": "final_logit_softcapping",
    "norm_eps": "rms_norm_eps",
    "init_std": "initializer_range",
}
"""Our field -> Hugging Face's key. rope_theta is not here: its key differs between transformers 4 and 5."""

_IGNORED = frozenset(
    {
        "architectures", "attention_dropout", "attn_implementation", "_attn_implementation",
        "_attn_implementation_autoset", "bos_token_id", "cache_implementation", "chunk_size_feed_forward", "dtype",
        "eos_token_id", "finetuning_task", "gradient_checkpointing", "id2label", "label2id", "max_length",
        "max_position_embeddings", "model_max_length", "_name_or_path", "output_attentions", "output_hidden_states",
        "pad_token_id", "problem_type", "return_dict", "sep_token_id", "task_specific_params", "tokenizer_class",
        "torch_dtype", "torchscript", "transformers_version", "unk_token_id", "use_cache", "unsloth_fixed",
        "unsloth_version", "do_sample", "early_stopping", "diversity_penalty", "length_penalty", "min_length",
        "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences", "output_scores",
        "repetition_penalty", "temperature", "top_k", "top_p", "typical_p",
    }
)  # fmt: skip
"""Keys that do not change the logits of a text."""
_NOTHING: tuple[Any, ...] = (None, False, 0, "", [], {})
"""Values by which other models' features are switched off."""
_ROPE_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}


def config_from_hf(stored: Mapping[str, Any], where: str = CONFIG_FILE) -> Gemma2Config:
    """Our configuration from the content of `config.json`, the file `where`.

    Raises UserError, naming the key, for one that is missing, unknown, or of another model.
    """
    required = {
        "model_type": (stored.get("model_type"), ("gemma2",)),
        "hidden_activation": (stored.get("hidden_activation"), ("gelu_pytorch_tanh", None)),
        "hidden_act": (None if stored.get("hidden_activation") else stored.get("hidden_act"),
            ("gelu_pytorch_tanh", None)),
        "tie_word_embeddings": (stored.get("tie_word_embeddings", True), (True,)),
        "attention_bias": (stored.get("attention_bias"), (False, None)),
        "use_bidirectional_attention": (stored.get("use_bidirectional_attention"), (False, None)),
        "quantization_config": (stored.get("quantization_config"), (None,)),
        "partial_rotary_factor": (stored.get("partial_rotary_factor"), (1, None)),
        "is_encoder_decoder": (stored.get("is_encoder_decoder"), (False, None)),
    }  # fmt: skip
    for key, (value, allowed) in required.items():
        if value not in allowed:
            raise UserError(
                f"{where} has {key} = {value!r}, but Gemma 2 has {key} = {allowed[0]!r}; "
                "this directory holds another model: give one of Gemma 2"
            )
    values: dict[str, Any] = {"rope_theta": _rope_theta(stored, where)}
    known = {
        *required,
        *_CONFIG_KEYS.values(),
        *_IGNORED,
        "layer_types",
        "rope_theta",
        "rope_parameters",
        "rope_scaling",
    }
    if unknown := [key for key in stored if key not in known and stored[key] not in _NOTHING]:
        raise UserError(
            f"{where} has {unknown[0]} = {str(stored[unknown[0]])[:60]!r}, a key that Gemma 2 does not have; "
            "give a directory of Gemma 2, or remove the key if it does not change what the model computes"
        )
    defaults = {field.name for field in fields(Gemma2Config) if field.name.endswith(("softcap", "eps", "std"))}
    for name, key in _CONFIG_KEYS.items():
        if key in stored:
            values[name] = stored[key]
        elif name not in defaults:
            raise UserError(f"{where} has no {key!r}; add the key (the files of published models have it)")
    if isinstance(values["query_scale"], float) and values["query_scale"].is_integer():
        values["query_scale"] = int(values["query_scale"])
    try:
        config = Gemma2Config(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    given = stored.get("layer_types")
    # by their number first: a list of a billion layers would fill the memory
    if given is not None and (not isinstance(given, list) or len(given) != config.layers):
        raise UserError(f"{where} has layer_types that are no list of {config.layers} types; fetch the directory again")
    if given is not None and given != (pattern := _layer_types(config)):
        raise UserError(
            f"{where} has layer_types = {given}, but Gemma 2 alternates {pattern[:2]}, "
            "beginning with the sliding one; this directory holds another model: give one of Gemma 2"
        )
    return config


def config_to_hf(config: Gemma2Config, dtype: torch.dtype) -> dict[str, Any]:
    """The content of a `config.json` that transformers 4 and 5 both read."""
    return {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        # transformers 4 otherwise takes PyTorch's fused attention, which leaves out the cap on attention logits
        "_attn_implementation": "eager",
        **{key: getattr(config, name) for name, key in _CONFIG_KEYS.items()},
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "layer_types": _layer_types(config),
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "dtype": str(dtype).removeprefix("torch."),
    }


def _layer_types(config: Gemma2Config) -> list[str]:
    windows = [config.layer_window(layer) for layer in range(config.layers)]
    return ["full_attention" if window is None else "sliding_attention" for window in windows]


def _rope_theta(stored: Mapping[str, Any], where: str) -> float:
    """rope_theta from `rope_parameters` (transformers 5) or the top level (4). Raises UserError for scaled variants."""
    given = [stored["rope_theta"]] if stored.get("rope_theta") is not None else []
    for key in ("rope_parameters", "rope_scaling"):
        nested = stored.get(key) or {}
        if not isinstance(nested, dict):
            raise UserError(f"{where} has {key} {nested!r}, but they must be an object; fetch it again")
        kinds = [nested[name] for name in ("rope_type", "type") if name in nested]
        if wrong := [kind for kind in kinds if kind != "default"]:
            raise UserError(
                f"{where} has rope_type = {wrong[0]!r}, but Gemma 2 has 'default'; this directory holds a "
                "variant: give one of Gemma 2"
            )
        if other := sorted(nested.keys() - _ROPE_KEYS):
            raise UserError(
                f"{where} has {key}.{other[0]}, but Gemma 2 has one rope for all layers, without scaling; this "
                "directory holds a variant: give one of Gemma 2"
            )
        if nested.get("partial_rotary_factor") not in (1, None):
            raise UserError(
                f"{where} has {key}.partial_rotary_factor = {nested['partial_rotary_factor']!r}, but Gemma 2 "
                "rotates whole heads; this directory holds a variant: give one of Gemma 2"
            )
        given += [nested["rope_theta"]] if nested.get("rope_theta") is not None else []
    if wrong := [value for value in given if not isinstance(value, int | float) or not abs(value) < 1e30]:
        raise UserError(f"{where} has rope_theta = {wrong[0]!r}, but it must be a number; fetch it again")
    values = set(map(float, given))
    if len(values) > 1:
        raise UserError(f"{where} has two values of rope_theta, {sorted(values)}; keep the value of its training")
    return values.pop() if values else 10_000.0
