"""What 2T, 8T and 13T tokens cost, from docs/data-costs.json, which `python -m tests.benchmarks memory` and
`... manifests` wrote: python -m tests.benchmarks.cost [> docs/data-costs.md]

There are three kinds of figures. Measured are core seconds, bytes and memory of runs on this corpus. Assumed are the
values in ASSUMED. Extrapolated are products of both, as if costs grew with the number of tokens: "flat" shows this up
to 1 GB, and no measurement goes beyond.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.engine.shuffle import MOST_READS
from tests.benchmarks.step_speed import Row
from tests.programs.markdown import rewrapped
from tests.programs.places import REPOSITORY

FIGURES = REPOSITORY / "docs" / "data-costs.json"
TRILLIONS = (2, 8, 13)
SHARD_BYTES = {"64 MiB": 64 << 20, "1 GiB": 1 << 30}
STAGES = ("filter_text", "deduplicate_text", "tokenize_text", "pack_sequences")
ASSUMED = (
    "`filter_text` redacts emails and addresses. With all heuristics of Gopher, C4 and FineWeb it is slower "
    "([benchmarks.md](benchmarks.md#data-plane)).",
    "Every document passes every stage. What a filter drops costs the later stages nothing, so this is an upper bound.",
    "A byte of text costs as much as a byte of this corpus. It is source code and manuals, {bytes_per_token:.2f} bytes "
    "a token with Gemma's tokenizer. English prose has more bytes a token, and so costs more a token.",
    "Cores of other machines are as fast as these two, and storage keeps up with them.",
    "Shards hold {shards} of text. `collect_text --shard-bytes` sets it, at most 1 GiB.",
    "Collecting, training the tokenizer, and moving data between regions cost nothing.",
)


def save(name: str, value: Any) -> None:
    """Keeps measured figures under `name` in docs/data-costs.json."""
    figures = load() if FIGURES.exists() else {}
    FIGURES.write_text(json.dumps({**figures, name: value}, indent=1, sort_keys=True) + "\n")


def load() -> dict[str, Any]:
    if not FIGURES.exists():
        raise ValueError(f"{FIGURES} is not there: run `python -m tests.benchmarks memory manifests` first")
    figures: dict[str, Any] = json.loads(FIGURES.read_text())
    return figures


def largest(figures: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The largest measured run of each stage."""
    runs: dict[str, dict[str, Any]] = {}
    for run in sorted(figures.get("runs", ()), key=lambda run: run["shards"]):
        runs[run["stage"]] = run
    if missing := [name for name in (*STAGES, "manifests", "tasks") if name not in {*runs, *figures}]:
        raise ValueError(f"{FIGURES} lacks {', '.join(missing)}: run `python -m tests.benchmarks memory manifests`")
    return runs


def measured_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    runs = largest(figures)
    size, shards = (runs["tokenize_text"][name] for name in ("text_bytes", "shards"))
    corpus, _, left_out = figures["corpus"].partition("; left out: ")
    yield f"Machine: {figures['machine']}. The runs took {size / 1e9:.2f} GB of the corpus in {shards} shards."
    yield ""
    yield f"- The corpus: {corpus}."
    yield f"- Left out: {left_out}."
    yield ""
    yield "| stage | core seconds a GB of text | output bytes a byte of text | driver MB | a worker's peak MB |"
    yield "|---|--:|--:|--:|--:|"
    for name in STAGES:
        run = runs[name]
        yield (
            f"| `{name}` | {run['cpu_seconds'] / run['text_bytes'] * 1e9:,.1f} "
            f"| {run['output_bytes'] / run['text_bytes']:.3f} | {run['driver_bytes'] / 1e6:,.0f} "
            f"| {run['worker_bytes'] / 1e6:,.0f} |"
        )
    yield ""
    yield "| shards in a manifest | file MB | written in s | memory to write MB | read in s | memory to read MB |"
    yield "|--:|--:|--:|--:|--:|--:|"
    for entry in figures["manifests"]:
        yield (
            f"| {entry['shards']:,} | {entry['file_bytes'] / 1e6:,.1f} | {entry['write_seconds']:.1f} "
            f"| {entry['write_bytes'] / 1e6:,.0f} | {entry['read_seconds']:.1f} | {entry['read_bytes'] / 1e6:,.0f} |"
        )
    tasks = figures["tasks"]
    memory = round(tasks["driver_bytes_a_task"] / 1e3, 1)
    yield ""
    yield (
        f"{tasks['tasks']:,} tasks that do nothing take {tasks['seconds_a_task'] * 1e3:.1f} ms each on two cores. Each "
        f"needs {f'{memory} kB of' if memory else 'no'} driver memory above what 200 of them need."
    )


def extrapolated_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    runs = largest(figures)
    bytes_per_token = runs["tokenize_text"]["text_bytes"] / runs["tokenize_text"]["tokens"]
    entry = figures["manifests"][-1]
    yield "| | " + " | ".join(f"{trillions}T tokens" for trillions in TRILLIONS) + " |"
    yield "|---" + "|--:" * len(TRILLIONS) + "|"
    text = [trillions * 1e12 * bytes_per_token for trillions in TRILLIONS]
    stored = runs["filter_text"]["output_bytes"] / runs["filter_text"]["text_bytes"]
    table: dict[str, list[str]] = {"text, TB": [f"{size / 1e12:,.1f}" for size in text]}
    table["text as Parquet, TB"] = [f"{size * stored / 1e12:,.1f}" for size in text]
    for name, label in (("tokenize_text", "tokens as Parquet, TB"), ("pack_sequences", "sequences as Parquet, TB")):
        share = runs[name]["output_bytes"] / runs[name]["text_bytes"]
        table[label] = [f"{size * share / 1e12:,.1f}" for size in text]
    total = [0.0] * len(text)
    for name in STAGES:
        hours = [size * runs[name]["cpu_seconds"] / runs[name]["text_bytes"] / 3600 for size in text]
        total = [before + more for before, more in zip(total, hours, strict=True)]
        table[f"`{name}`, core hours"] = [f"{hour:,.0f}" for hour in hours]
    table["all four, core hours"] = [f"{hour:,.0f}" for hour in total]
    table["all four on 1,000 cores, hours"] = [f"{hour / 1000:,.1f}" for hour in total]
    for shard_size, size in SHARD_BYTES.items():
        shards = [math.ceil(text_bytes / size) for text_bytes in text]
        table[f"shards of {shard_size}"] = [f"{count:,}" for count in shards]
        for what, key in (("a manifest, MB", "file_bytes"), ("driver memory to write it, MB", "write_bytes")):
            each = entry[key] / entry["shards"]
            table[f"{what}, {shard_size}"] = [f"{count * each / 1e6:,.0f}" for count in shards]
        each = figures["tasks"]["driver_bytes_a_task"]
        memory = [f"{n * each / 1e6:,.0f}" if each else "not seen to grow" for n in shards]
        table[f"driver memory of Ray Data for its tasks, MB, {shard_size}"] = memory
        each = figures["tasks"]["seconds_a_task"]
        table[f"reads of one shuffle of all shards to as many parts, {shard_size}"] = [f"{_reads(n):,}" for n in shards]
        table[f"Ray's part of a phase at two cores, hours, {shard_size}"] = [f"{n * each / 3600:,.2f}" for n in shards]
    for name, values in table.items():
        yield f"| {name} | " + " | ".join(values) + " |"


def _reads(shards: int) -> int:
    """Number of reads of a shuffle (pipelines/engine/shuffle.py) with as many files as parts."""
    if shards * shards <= MOST_READS:
        return shards * shards
    width = math.isqrt(shards)
    bands = -(-shards // width)
    return shards * bands + shards * -(-shards // bands)


def page() -> str:
    """The text of docs/data-costs.md."""
    return rewrapped("\n".join(lines()))


def lines() -> Iterator[str]:
    figures = load()
    run = largest(figures)["tokenize_text"]
    yield "# What a corpus costs"
    yield ""
    yield (
        "This page estimates what the data plane takes for 2T, 8T and 13T tokens. It keeps apart what was measured, "
        "what is assumed, and what was extrapolated from both."
    )
    yield ""
    yield (
        "Printed by `python -m tests.benchmarks.cost` from [data-costs.json](data-costs.json). `python -m "
        "tests.benchmarks memory manifests` writes that file."
    )
    yield ""
    yield "## Measured"
    yield ""
    yield from measured_lines(figures)
    yield ""
    yield "## Assumed"
    yield ""
    for assumption in ASSUMED:
        sentence = assumption.format(bytes_per_token=run["text_bytes"] / run["tokens"], shards=" or ".join(SHARD_BYTES))
        yield f"- {sentence}"
    yield ""
    yield "## Extrapolated"
    yield ""
    yield (
        "Costs are taken to grow with the tokens. From 64 MB to 1 GB a GB did not get more expensive. Nothing larger "
        "was measured."
    )
    yield ""
    yield from extrapolated_lines(figures)


def rows() -> Iterator[Row]:
    for line in extrapolated_lines(load()):
        name, *values = [cell.strip() for cell in line.strip("|").split("|")]
        if name and not name.startswith("-"):
            yield Row(what=name, ours=values[0], rival=values[1], ratio=values[2])


if __name__ == "__main__":
    print(page(), end="")
