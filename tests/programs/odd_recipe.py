"""Whether a change keeps the bytes: an odd recipe is run on the code before and after it, and the contents compared.

    python -m tests.programs.odd_recipe run ROOT           26 runs, of every kind of stage with unusual options
    python -m tests.programs.odd_recipe contents ROOT      {file and column, or tensor: sha256} as JSON
    python -m tests.programs.odd_recipe compare A B        what differs between two such files

Runs are named by stage and by the order in which they finished, so a change of fingerprints does not hide equal
contents. Copy this file into the earlier checkout; it uses only code that both have.
"""

import hashlib
import json
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from model import Gemma2Config
from pipelines.__main__ import main as run_line
from pipelines.recipes import registry
from pipelines.recipes.recipe import Output, Recipe, Step
from pipelines.stages import (
    audit_logits,
    cache_logits,
    collect_text,
    deduplicate_text,
    evaluate_model,
    export_model,
    filter_text,
    generate_text,
    import_model,
    pack_sequences,
    tokenize_text,
    train_model,
    train_tokenizer,
)
from training.config import DistillConfig, OptimizerConfig

VOCAB = 1100
EXCLUDE = ("test/*", "*/test/*", "*/tests/*", "site-packages/*", "__pycache__/*", "*/__pycache__/*", "[!a-c]*")


def size(d_model: int, layers: int, heads: int, kv_heads: int, ffw_dim: int, window: int) -> Gemma2Config:
    head_dim = d_model // heads
    return Gemma2Config(
        vocab_size=VOCAB, d_model=d_model, layers=layers, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        ffw_dim=ffw_dim, window=window, query_scale=head_dim,
    )  # fmt: skip


TEACHER, STUDENT = size(48, 3, 4, 2, 96, 16), size(24, 2, 2, 1, 48, 8)


def training(model: Gemma2Config, steps: int, **fields: Any) -> train_model.Config:
    optimizer = OptimizerConfig(learning_rate=2e-3, warmup_steps=2, decay="wsd", cooldown_steps=3)
    usual: dict[str, Any] = {"global_batch": 6, "checkpoint_every_steps": 5, "seed": 3, "order_seed": 5}
    return train_model.Config(**{"model": model, "steps": steps, "optimizer": optimizer, **usual, **fields})


def student(**distill: Any) -> train_model.Config:
    return training(STUDENT, 10, objective="distill", distill=DistillConfig(**distill))


def step(name: str, stage: str, config: object, **inputs: str | Path) -> Step:
    """An input is "step:dataset", or a path from outside."""

    def source(text: str | Path) -> Output | str:
        earlier, _, dataset = str(text).partition(":")
        return Output(step=earlier, dataset=dataset) if isinstance(text, str) else str(text)

    return Step(name=name, stage=stage, config=config, inputs={key: (source(text),) for key, text in inputs.items()})


def steps(exported: Path | None) -> Iterator[Step]:
    """`exported`: the directory of the export, once it is there; what follows reads it as any user's files."""
    yield step(
        "collect", "collect_text", collect_text.Config(source="odd", exclude=EXCLUDE, shard_bytes=1 << 19),
        input=Path(sysconfig.get_paths()["stdlib"]),
    )  # fmt: skip
    yield step("filter", "filter_text", filter_text.Config(max_characters=60_000), text="collect:text")
    yield step("deduplicate", "deduplicate_text", deduplicate_text.Config(), text="filter:text")
    yield step("tokenizer", "train_tokenizer", train_tokenizer.Config(vocab_size=VOCAB), text="deduplicate:text")
    source, tokenizer = {"sequences": "pack:sequences"}, {"tokenizer": "tokenizer:tokenizer"}
    yield step("tokenize", "tokenize_text", tokenize_text.Config(), text="deduplicate:text", **tokenizer)
    packing = pack_sequences.Config(
        sequence_length=48, shard_tokens=1 << 15, max_rows=90, max_heldout_rows=20, packing="best_fit",
        row_group_rows=7, seed=4,
    )  # fmt: skip
    yield step("pack", "pack_sequences", packing, tokens="tokenize:tokens")
    odd = {"z_loss": 1e-4, "spike_sigmas": 6.0, "keep_last": 1, "compute_dtype": "bfloat16"}
    yield step("teacher", "train_model", training(TEACHER, 12, **odd), **source)
    teacher = {**source, "teacher": "teacher:checkpoints"}
    caches = {
        "sample": cache_logits.Config(draws=7, temperature=1.5, proposal=0.8, seed=2, forward_rows=5),
        "topk": cache_logits.Config(estimator="topk", top=9, forward_rows=3),
        "full": cache_logits.Config(estimator="full", forward_rows=4),
    }
    for name, config in caches.items():
        yield step(f"cache_{name}", "cache_logits", config, **teacher)
    for name in caches:
        audit = audit_logits.Config(fraction=0.5, seed=1)
        yield step(f"audit_{name}", "audit_logits", audit, logits=f"cache_{name}:logits", **teacher)
    students = {
        "weighted": ("sample", student(alpha=0.2, temperature=1.5)),
        "bucket": ("topk", student()),
        "renormalized": ("topk", student(tail="renormalize", alpha=0.1)),
        "truth": ("topk", replace(student(tail="ground_truth"), keep_every_steps=5, keep_last=1)),
        "whole": ("full", student()),
    }
    for name, (cache, learner) in students.items():
        yield step(name, "train_model", learner, logits=f"cache_{cache}:logits", **source)
    rows = {"heldout": "pack:heldout"}
    evaluation = evaluate_model.Config(forward_rows=3)
    yield step("evaluate_whole", "evaluate_model", evaluation, checkpoint="whole:checkpoints", **rows)
    yield step("evaluate_truth", "evaluate_model", evaluation, checkpoint="truth:checkpoints", **rows, **source)
    drawn = generate_text.Config(
        prompt=("a", "def f(", "é\t"), max_new_tokens=9, temperature=0.9, top_p=0.8, seed=7
    )  # fmt: skip
    yield step("drawn", "generate_text", drawn, checkpoint="whole:checkpoints", **tokenizer)
    greedy = generate_text.Config(prompt=("import",), max_new_tokens=5)
    yield step("greedy", "generate_text", greedy, checkpoint="truth:checkpoints", **tokenizer)
    export = export_model.Config(name="odd", dtype="bfloat16", shard_bytes=20_000)
    evaluations = {"evaluations": "evaluate_whole:metrics"}
    yield step("export", "export_model", export, checkpoint="whole:checkpoints", **tokenizer, **evaluations)
    if exported is not None:
        yield step("imported", "import_model", import_model.Config(), weights=exported)
        yield step("tuned", "train_model", training(STUDENT, 6, z_loss=1e-3), initial="imported:checkpoints", **source)
        tuned = evaluate_model.Config()
        yield step("evaluate_tuned", "evaluate_model", tuned, checkpoint="tuned:checkpoints", **rows)


def run(root: str) -> int:
    """Runs the recipe twice, the second time with the steps that read its own export."""
    for _ in range(2):
        exported = next(Path(root).glob("export_model/*/model"), None)
        recipe = Recipe(name="odd", summary="Unusual options.", steps=tuple(steps(exported)))
        registry._RECIPES["odd"] = lambda recipe=recipe: recipe
        if code := run_line(["run", "odd", "--root", root, "--device", "cpu"]):
            return code
    return 0


def contents(root: Path) -> dict[str, str]:
    """Column, tensor or file -> sha256, without contents that have clock times."""
    hashes = {}
    by_stage: dict[str, list[Path]] = {}
    for manifest in sorted(root.glob("*/*/_MANIFEST.json"), key=lambda path: path.stat().st_mtime_ns):
        by_stage.setdefault(manifest.parent.parent.name, []).append(manifest.parent)
    for stage, directories in by_stage.items():
        for number, directory in enumerate(directories):
            for path in sorted(path for path in directory.rglob("*") if path.is_file()):
                name = path.relative_to(directory).as_posix()
                if not name.startswith(("_", "logs")):
                    parts = _parts(path)
                    hashes |= {f"{stage}#{number}/{name}{part}": _sha256(data) for part, data in parts}
    return hashes


def _parts(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        for column in table.column_names:
            yield f":{column}", json.dumps(table[column].to_pylist(), default=repr).encode()
        yield ":schema", str(table.schema.remove_metadata()).encode()
        yield ":metadata", str(table.schema.metadata).encode()
    elif path.suffix == ".safetensors":
        from safetensors.torch import load_file

        for tensor, values in load_file(path).items():
            yield f":{tensor}", f"{values.dtype} {values.tolist()}".encode()
    else:
        yield "", path.read_bytes()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def compare(before: str, after: str) -> int:
    old, new = (json.loads(Path(name).read_text()) for name in (before, after))
    differing = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    print("\n".join([*differing, f"{len(differing)} of {len(old.keys() | new.keys())} differ"]))
    return 0


def main(command: str, *words: str) -> int:
    if command == "contents":
        print(json.dumps(contents(Path(words[0])), indent=0, sort_keys=True))
        return 0
    return run(*words) if command == "run" else compare(*words)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
