"""The small recipes. A recipe is a function that returns typed steps; `python -m pipelines show demo` prints them.

`demo` and `smoke` run the same steps at two sizes. The text is the standard library of the running Python. A teacher is
trained on it, and its logits are cached once. Two students differ only in whether they learn from that cache. The
recipes of the paper at full size are in `pipelines/recipes/gemma2.py`.
"""

import sysconfig
from dataclasses import dataclass, replace
from typing import Literal

from model import Gemma2Config, parameter_count
from pipelines.recipes.recipe import Output, Recipe, Step
from pipelines.recipes.sizes import TeacherAndStudents, shape
from pipelines.stages import (
    cache_logits,
    collect_text,
    deduplicate_text,
    evaluate_model,
    filter_text,
    generate_text,
    pack_sequences,
    tokenize_text,
    train_model,
    train_tokenizer,
)
from training.backends.devices import TPU_DEVICE
from training.config import OptimizerConfig

STDLIB_EXCLUDE = (
    "test/*", "*/test/*", "*/tests/*", "*/idle_test/*", "site-packages/*", "dist-packages/*",
    "__pycache__/*", "*/__pycache__/*", "encodings/*", "pydoc_data/*", "_sysconfigdata*", "config-*", "lib2to3/*",
    "ensurepip/_bundled/*", "*_tables.py",
)  # fmt: skip
"""tests, installed packages, and tables that a program wrote, which are no text of a person"""

PROMPTS = ("def __init__(self, ", "import os\n", "class Error(Exception):\n")


def demo() -> Recipe:
    """Raw text to a distilled student: less than four minutes on two cores."""
    sizes = _Sizes(
        vocab_size=4096,
        sequence_length=128,
        global_batch=16,
        max_heldout_rows=512,
        teacher=shape(4096, d_model=192, layers=4, heads=4, ffw_dim=576, window=64),
        teacher_steps=240,
        student=shape(4096, d_model=96, layers=2, heads=4, ffw_dim=288, window=64),
        student_steps=192,
        checkpoint_every_steps=80,
        max_new_tokens=48,
        on_tpu_path=("evaluate_teacher",),
    )
    return Recipe(
        name="demo",
        summary="Raw text to a distilled student: less than four minutes on two cores.",
        steps=_path(sizes, STDLIB_EXCLUDE),
    )


def smoke() -> Recipe:
    """The steps of demo at the smallest sizes."""
    sizes = _Sizes(
        vocab_size=1024,
        sequence_length=64,
        global_batch=8,
        max_heldout_rows=16,
        teacher=shape(1024, d_model=64, layers=2, heads=2, ffw_dim=128, window=32),
        teacher_steps=20,
        student=shape(1024, d_model=32, layers=2, heads=2, ffw_dim=64, window=32),
        student_steps=20,
        checkpoint_every_steps=10,
        max_new_tokens=8,
        on_tpu_path=("teacher",),
    )
    steps = _path(sizes, (*STDLIB_EXCLUDE, "[!a-f]*"))
    return Recipe(name="smoke", summary="The steps of demo at the smallest sizes.", steps=steps)


@dataclass(frozen=True, kw_only=True)
class _Sizes(TeacherAndStudents):
    global_batch: int
    max_heldout_rows: int
    checkpoint_every_steps: int
    max_new_tokens: int
    on_tpu_path: tuple[str, ...]
    """steps that compute on XLA on a machine without an accelerator too, so that the code for TPUs runs everywhere"""


def _path(sizes: _Sizes, exclude: tuple[str, ...]) -> tuple[Step, ...]:
    """From raw text to evaluated models. The students' steps use every packed row once."""
    text, sequences = Output(step="deduplicate", dataset="text"), Output(step="pack", dataset="sequences")
    tokenizer = Output(step="tokenizer", dataset="tokenizer")
    teacher_config = _training("next_token", sizes.teacher, sizes.teacher_steps, sizes, learning_rate=2e-3)
    student_config = _training("next_token", sizes.student, sizes.student_steps, sizes, learning_rate=3e-3)
    rows = sizes.student_steps * sizes.global_batch
    steps = (
        Step(
            name="collect",
            stage="collect_text",
            inputs={"input": (sysconfig.get_paths()["stdlib"],)},
            config=collect_text.Config(source="stdlib", exclude=exclude, shard_bytes=1 << 20),
            note="Python's standard library becomes text, one document a module.",
        ),
        _step(
            "filter",
            "filter_text",
            filter_text.Config(max_characters=400_000),
            "Empty and overlong documents are set aside, each with its reason.",
            text=Output(step="collect", dataset="text"),
        ),
        _step(
            "deduplicate",
            "deduplicate_text",
            deduplicate_text.Config(),
            "The first of several nearly equal documents is kept.",
            text=Output(step="filter", dataset="text"),
        ),
        _step(
            "tokenizer",
            "train_tokenizer",
            train_tokenizer.Config(vocab_size=sizes.vocab_size),
            f"{sizes.vocab_size:,} pieces are learned from the documents that are not held out.",
            text=text,
        ),
        _step(
            "tokenize",
            "tokenize_text",
            tokenize_text.Config(),
            "Every document becomes token ids.",
            text=text,
            tokenizer=tokenizer,
        ),
        _step(
            "pack",
            "pack_sequences",
            pack_sequences.Config(
                sequence_length=sizes.sequence_length,
                shard_tokens=1 << 18,
                max_rows=rows,
                max_heldout_rows=sizes.max_heldout_rows,
            ),
            f"{rows:,} shuffled rows of {sizes.sequence_length} tokens to train on; held-out documents apart.",
            tokens=Output(step="tokenize", dataset="tokens"),
        ),
        _step(
            "teacher",
            "train_model",
            teacher_config,
            f"A Gemma 2 of {_millions(sizes.teacher)} parameters learns next tokens.",
            sequences=sequences,
        ),
        _step(
            "cache",
            "cache_logits",
            cache_logits.Config(draws=50, forward_rows=sizes.global_batch),
            "The teacher sees every row once; 50 draws from its distribution at each target are kept.",
            sequences=sequences,
            teacher=Output(step="teacher", dataset="checkpoints"),
        ),
        _step(
            "distilled",
            "train_model",
            replace(student_config, objective="distill"),
            f"A student of {_millions(sizes.student)} parameters learns from the cache.",
            sequences=sequences,
            logits=Output(step="cache", dataset="logits"),
        ),
        _step(
            "scratch",
            "train_model",
            student_config,
            "The same student on the same rows learns without a teacher.",
            sequences=sequences,
        ),
        *(
            _step(
                f"evaluate_{name}",
                "evaluate_model",
                evaluate_model.Config(forward_rows=sizes.global_batch),
                f"The held-out loss of {name} is computed, and that of token frequencies alone.",
                checkpoint=Output(step=name, dataset="checkpoints"),
                heldout=Output(step="pack", dataset="heldout"),
                sequences=sequences,
            )
            for name in ("teacher", "distilled", "scratch")
        ),
        _step(
            "generate",
            "generate_text",
            generate_text.Config(prompt=PROMPTS, max_new_tokens=sizes.max_new_tokens, temperature=0.7, top_k=40),
            f"The distilled student continues {len(PROMPTS)} prompts.",
            checkpoint=Output(step="distilled", dataset="checkpoints"),
            tokenizer=tokenizer,
        ),
    )
    return tuple(
        replace(step, without_accelerator=TPU_DEVICE) if step.name in sizes.on_tpu_path else step for step in steps
    )


def _step(name: str, stage: str, config: object, note: str, **inputs: Output) -> Step:
    return Step(
        name=name, stage=stage, config=config, inputs={key: (source,) for key, source in inputs.items()}, note=note
    )


def _millions(config: Gemma2Config) -> str:
    return f"{sum(parameter_count(config)) / 1e6:.2f}M"


def _training(
    objective: Literal["next_token", "distill"], model: Gemma2Config, steps: int, sizes: _Sizes, *, learning_rate: float
) -> train_model.Config:
    return train_model.Config(
        model=model,
        objective=objective,
        steps=steps,
        global_batch=sizes.global_batch,
        checkpoint_every_steps=sizes.checkpoint_every_steps,
        optimizer=OptimizerConfig(learning_rate=learning_rate, warmup_steps=max(1, steps // 20)),
    )
