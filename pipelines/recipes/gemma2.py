"""The three recipes of the Gemma 2 paper (arXiv 2408.00118) at full size, whose cost `plan` estimates before a run.

From the paper: model sizes, tokens (13T, 8T, 2T), which models are distilled, context 8192, slices and meshes (Table
3). The paper discloses no optimizer, schedule, batch or number of teacher samples; ours are

- batch: one row of 8192 tokens at each place of replica x data, which is 3.1M to 8.4M tokens a step;
- AdamW (0.9, 0.95), 2000 steps of warm-up, cosine to a tenth, weight decay 0.1, clipping at 1, learning rate 3e-4 up to
  13B parameters and 1.5e-4 above: Llama 2 (arXiv 2307.09288, section 2.2 and Table 1), a dense model of these sizes
  whose settings are public;
- 50 draws from the teacher at each target (arXiv 2503.16870). The teacher is the 27B, which the paper names for the 9B
  and not for the 2B.

None of these recipes has run.
"""

from dataclasses import replace

from model import Gemma2Config, gemma2_2b, gemma2_9b, gemma2_27b
from pipelines.recipes.recipe import Output, Place, Recipe, Step
from pipelines.stages import (
    cache_logits,
    collect_text,
    decontaminate_text,
    deduplicate_text,
    evaluate_model,
    filter_text,
    import_model,
    pack_sequences,
    tokenize_text,
    train_model,
)
from training.config import OptimizerConfig

SEQUENCE_LENGTH = 8192
CHECKPOINTS = 100
"""approximate number of checkpoints of a run"""
HELDOUT_ROWS = 10_000
PUBLISHED_TONNES_CO2E = 1247.61
"""tonnes of CO2 equivalent for pretraining all three models (arXiv 2408.00118, section 3.4)"""
PUBLISHED = ("gemma2_27b_pretrain", "gemma2_9b_distill", "gemma2_2b_distill")


def gemma2_27b_pretrain() -> Recipe:
    """Gemma 2 27B from scratch: 13T tokens, next token, 6144 chips."""
    place = Place(topology="v5p:8x24x32", mesh="data=768,model=8")
    config = _training(gemma2_27b(), tokens=13e12, rows=768, learning_rate=1.5e-4)
    return Recipe(
        name="gemma2_27b_pretrain",
        summary="Gemma 2 27B from scratch: 13T tokens, next token, 6144 chips.",
        steps=(
            *_data(config),
            Step(
                name="train",
                stage="train_model",
                config=config,
                inputs={"sequences": (Output(step="pack", dataset="sequences"),)},
                note=_note(config, place),
                place=place,
            ),
            _evaluate("train", place),
        ),
    )


def gemma2_9b_distill() -> Recipe:
    """Gemma 2 9B distilled from the 27B: 8T tokens, 4096 chips."""
    return _distilled(
        "gemma2_9b_distill",
        "Gemma 2 9B distilled from the 27B: 8T tokens, 4096 chips.",
        _training(gemma2_9b(), tokens=8e12, rows=1024, learning_rate=3e-4),
        Place(topology="v4:8x16x32", mesh="replica=2,data=512,model=4"),
    )


def gemma2_2b_distill() -> Recipe:
    """Gemma 2 2B distilled from the 27B: 2T tokens, 512 chips."""
    return _distilled(
        "gemma2_2b_distill",
        "Gemma 2 2B distilled from the 27B: 2T tokens, 512 chips.",
        _training(gemma2_2b(), tokens=2e12, rows=512, learning_rate=3e-4),
        Place(topology="v5e:16x16", slices=2, mesh="replica=2,data=256"),
    )


def _training(model: Gemma2Config, *, tokens: float, rows: int, learning_rate: float) -> train_model.Config:
    steps = -(-int(tokens) // (rows * SEQUENCE_LENGTH))
    return train_model.Config(
        model=model,
        steps=steps,
        global_batch=rows,
        checkpoint_every_steps=-(-steps // CHECKPOINTS),
        optimizer=OptimizerConfig(
            learning_rate=learning_rate, warmup_steps=2000, final_learning_rate_fraction=0.1, weight_decay=0.1
        ),
    )


def _distilled(name: str, summary: str, config: train_model.Config, place: Place) -> Recipe:
    config = replace(config, objective="distill")
    sequences = (Output(step="pack", dataset="sequences"),)
    return Recipe(
        name=name,
        summary=summary,
        steps=(
            *_data(config),
            Step(
                name="teacher",
                stage="import_model",
                config=import_model.Config(),
                inputs={"weights": ()},
                note="The teacher's published weights, with its tokenizer.model beside them.",
            ),
            Step(
                name="cache",
                stage="cache_logits",
                config=cache_logits.Config(draws=50, dtype="bfloat16"),
                inputs={"sequences": sequences, "teacher": (Output(step="teacher", dataset="checkpoints"),)},
                note="The teacher sees every row once; 50 draws from its distribution at each target are kept.",
                place=place,
            ),
            Step(
                name="train",
                stage="train_model",
                config=config,
                inputs={"sequences": sequences, "logits": (Output(step="cache", dataset="logits"),)},
                note=_note(config, place),
                place=place,
            ),
            _evaluate("train", place),
        ),
    )


def _data(config: train_model.Config) -> tuple[Step, ...]:
    """The steps from text to packed rows as the paper describes them; it publishes neither thresholds nor mixture."""
    text = Output(step="decontaminate", dataset="text")
    return (
        Step(
            name="collect",
            stage="collect_text",
            config=collect_text.Config(source="text", fix_encoding=True, on_bad_file="skip"),
            inputs={"input": ()},
            note="Your files become documents.",
        ),
        Step(
            name="filter",
            stage="filter_text",
            config=filter_text.Config(
                gopher_quality=True, gopher_repetition=True, c4=True, fineweb=True, languages=("en",),
                pii_email="redact", pii_phone="redact", pii_ip="redact", pii_card="redact", pii_iban="redact",
                pii_national_id="redact",
            ),
            inputs={"text": (Output(step="collect", dataset="text"),)},
            note="Heuristics keep English text of good quality, and personal data is masked.",
        ),
        Step(
            name="deduplicate",
            stage="deduplicate_text",
            config=deduplicate_text.Config(),
            inputs={"text": (Output(step="filter", dataset="text"),)},
            note="The first of several nearly equal documents is kept.",
        ),
        Step(
            name="decontaminate",
            stage="decontaminate_text",
            config=decontaminate_text.Config(),
            inputs={"text": (Output(step="deduplicate", dataset="text"),), "evaluation": ()},
            note="Documents that hold items of evaluation sets are dropped.",
        ),
        Step(
            name="tokenize",
            stage="tokenize_text",
            config=tokenize_text.Config(),
            inputs={"text": (text,), "tokenizer": ()},
            note="Gemma's own tokenizer (make tokenizer) turns every document into token ids.",
        ),
        Step(
            name="pack",
            stage="pack_sequences",
            config=pack_sequences.Config(
                sequence_length=SEQUENCE_LENGTH,
                shard_tokens=1 << 28,
                max_rows=config.steps * config.global_batch,
                max_heldout_rows=HELDOUT_ROWS,
            ),
            inputs={"tokens": (Output(step="tokenize", dataset="tokens"),)},
            note=f"Documents become shuffled rows of {SEQUENCE_LENGTH} tokens, held-out documents separately.",
        ),
    )  # fmt: skip


def _evaluate(step: str, place: Place) -> Step:
    return Step(
        name=f"evaluate_{step}",
        stage="evaluate_model",
        config=evaluate_model.Config(dtype="bfloat16"),
        inputs={
            "checkpoint": (Output(step=step, dataset="checkpoints"),),
            "heldout": (Output(step="pack", dataset="heldout"),),
        },
        note="The held-out loss is computed.",
        place=place,
    )


def _note(config: train_model.Config, place: Place) -> str:
    several = f"{place.slices} x " if place.slices > 1 else ""
    return (
        f"{config.steps:,} steps of {config.global_batch:,} rows of {SEQUENCE_LENGTH} tokens on {several}"
        f"{place.topology}, {place.mesh}."
    )
