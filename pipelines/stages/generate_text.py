"""Continues prompts with a checkpoint's model: greedy, or sampled with a seed.

Decoding runs one token at a time, in plain PyTorch (on a TPU: on XLA). The output is TEXT, so it can be filtered and
collected again.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import pyarrow as pa

from data import documents, schema, storage
from data.absent import absent
from data.tokenizer import BOS, Tokenizer
from model import generate
from pipelines.checkpoints.loaded import checkpoint_of, model_config_at, open_model
from pipelines.engine.declaration import Declaration, Places
from pipelines.engine.errors import UserError, exit_code
from pipelines.engine.inputs import Read
from pipelines.engine.shard_map import Part, ShardOutput, dataset_of, map_shards
from pipelines.engine.stage import Context, Outcome
from pipelines.report.kinds import GenerationReport
from training.backends.devices import has_tpu, resolve_device
from training.backends.make import abilities_of
from training.config import ComputeType, one_of
from training.setup import Setup

VERSION = 2
CONTEXT_TOKENS = 8192
"""most tokens of a prompt and its continuation together: the context of Gemma 2. Attention over a prompt takes memory
that grows with the square of its length."""
READS = {
    "checkpoint": Read(help="checkpoint to generate with", dataset="checkpoints"),
    "tokenizer": Read(help="tokenizer of the checkpoint", dataset="tokenizer", file_allowed=True),
    "prompts": Read(help="file with one prompt in each line, in addition to --prompt", optional=True),
}
WRITES = ("text",)
DECLARES = Declaration(lease=True, places=Places(mesh=False), report=GenerationReport())


@dataclass(frozen=True, kw_only=True)
class Config:
    """The prompts, and how tokens are chosen."""

    prompt: tuple[str, ...] = absent(())
    """Texts to continue."""
    max_new_tokens: int = 64
    """Largest number of tokens to add to a prompt."""
    temperature: float = 0.0
    """Temperature of the sampling: 0 takes the most likely token, 1 samples from the model's own distribution."""
    top_k: int | None = absent(None)
    """Number of most likely tokens to sample from; None: all tokens."""
    top_p: float | None = absent(None)
    """Probability of the set of most likely tokens to sample from; None: all tokens."""
    seed: int = 0
    """Seed of the sampling."""
    dtype: ComputeType = absent("float32")
    """Type of weights and activations; norms, softmax and logits are float32 in any case."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_new_tokens < CONTEXT_TOKENS:
            raise UserError(
                f"max_new_tokens is {self.max_new_tokens}; allowed are 1 to {CONTEXT_TOKENS - 1:,} (default: 64)"
            )
        if not 0.0 <= self.temperature < math.inf:
            raise UserError(f"temperature is {self.temperature}; it must be finite and at least 0 (0: greedy)")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}; it must be at least 1, or None for all tokens")
        one_of("dtype", self.dtype, get_args(ComputeType))
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise UserError(f"top_p is {self.top_p}; it must be above 0 and at most 1, or None for all tokens")


@dataclass(frozen=True)
class _Generate:
    config: Config
    checkpoint: str
    tokenizer: str
    setup: Setup
    source: str

    def __call__(self, prompts: list[str]) -> ShardOutput:
        loaded = open_model(self.checkpoint, self.setup, self.config.dtype, decodes=True)
        tokenizer = Tokenizer.load(self.tokenizer)
        began = time.monotonic()
        try:
            continued = generate(
                loaded.model,
                [[BOS, *tokenizer.encode(prompt)] for prompt in prompts],
                self.config.max_new_tokens,
                temperature=self.config.temperature,
                top_k=self.config.top_k,
                top_p=self.config.top_p,
                seed=self.config.seed,
                vocab_size=tokenizer.vocab_size,
                step_boundary=loaded.backend.step_boundary,
            )
        except ValueError as error:
            if exit_code(error) is None:
                raise
            raise UserError(f"{self.checkpoint}: {error}") from error
        seconds = time.monotonic() - began
        rows = []
        for number, (prompt, tokens) in enumerate(zip(prompts, continued, strict=True)):
            completion = tokenizer.decode(tokens)
            rows.append(
                {
                    "id": schema.document_id("generate_text", self.source, number),
                    "content_hash": schema.content_hash(prompt + completion),
                    "text": prompt + completion,
                    "source": "generate_text",
                    "metadata": json.dumps({"name": self.source, "prompt": prompt, "tokens": len(tokens)}),
                    "masked_spans": [],
                }
            )
        new_tokens = sum(map(len, continued))
        facts = {"new_tokens": new_tokens, "seconds": seconds}
        return ShardOutput(parts={"text": Part(table=pa.Table.from_pylist(rows, schema.TEXT))}, facts=facts)


def run(context: Context, config: Config) -> Outcome:
    """Raises UserError without a prompt, or with another tokenizer than the checkpoint's."""
    checkpoint, tokenizer = context.input("checkpoint"), context.input("tokenizer")
    (uri,) = tokenizer.uris()
    loaded = Tokenizer.load(uri)
    trained_with, given = checkpoint.manifest.tokenizer_sha256, loaded.sha256
    if trained_with != given:
        raise UserError(
            f"got tokenizer {given} ({uri}), but {checkpoint.reference} was trained with {trained_with}; give the "
            "tokenizer that it was trained with"
        )
    checkpoint_uri = checkpoint_of(checkpoint)
    if loaded.vocab_size > (rows := model_config_at(checkpoint_uri).vocab_size):
        raise UserError(
            f"the tokenizer has {loaded.vocab_size} ids and the model has {rows}; give the tokenizer that the model "
            "was trained with"
        )
    prompts = list(config.prompt)
    for source in context.inputs.get("prompts", []):
        for file in source.files:
            try:
                prompts += documents.lines_of(storage.read_bytes(file.pinned))
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{file.uri} is not UTF-8 ({error}); give prompts as UTF-8, one in each line"
                ) from error
    if not prompts:
        raise UserError("got no prompt; give --prompt 'some text', or --prompts FILE with one prompt in each line")
    _check_lengths(prompts, Tokenizer.load(uri), config.max_new_tokens)
    device = resolve_device(context.resources.device)
    if abilities_of(device).compiles and not has_tpu():
        device = "cpu"  # XLA would compile a program for every cache length: eager PyTorch decodes faster on a CPU
    setup = Setup(device=device)
    work = _Generate(config, checkpoint_uri, uri, setup, context.fingerprint)
    (receipt,) = map_shards(context, "generate", [prompts], work, whole_node=True, setup=setup.forward_record())
    facts = dict(receipt.facts)
    seconds = facts.pop("seconds")
    return Outcome(
        datasets={"text": dataset_of([receipt], "text", **facts)},
        tokenizer_sha256=given,
        setup=setup.forward_record(),
        log={"new_tokens_per_second": facts["new_tokens"] / seconds, "new_tokens": facts["new_tokens"]},
    )


def _check_lengths(prompts: Sequence[str], tokenizer: Tokenizer, max_new_tokens: int) -> None:
    """Raises UserError, before anything starts, for a prompt that does not fit the context with its continuation."""
    most = CONTEXT_TOKENS - max_new_tokens
    for number, prompt in enumerate(prompts, start=1):
        tokens = 1 + len(tokenizer.encode(prompt))
        if tokens > most:
            raise UserError(
                f"prompt {number} ({prompt[:40]!r}...) has {tokens:,} tokens; allowed are {most:,}, so that it and "
                f"max_new_tokens {max_new_tokens:,} fit in {CONTEXT_TOKENS:,} tokens: shorten the prompt"
            )
