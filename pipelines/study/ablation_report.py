"""The part of docs/distillation.md that `--full` adds: the ablations of the Gemma 2 paper beside the study's figures.

The paper's figures (arXiv 2408.00118, tables 7 to 10) come from models of 200M to 9B parameters, and are benchmarks or
a perplexity that the paper does not define. Ours are held-out nats per token, so only directions can be compared.
"""

import json
from collections.abc import Sequence

from data import storage
from pipelines.study.ablations import LEARNERS, TEMPERATURES, WINDOWS, shapes
from pipelines.study.arms import at_temperatures
from pipelines.study.claims import less
from pipelines.study.figures import ArmFigures, read_arms
from pipelines.study.sizes import Sizes
from pipelines.study.tables import difference, table

LEARNER_NAMES = tuple(arm.name for arm in LEARNERS)


def ablation_part(sizes: Sizes, root: str) -> list[str]:
    """The paragraphs on the ablations that are finished for every seed; none if no ablation is finished."""
    directory = sizes.directory(root)
    names = [f"{learner} {shape}" for shape in shapes(sizes.student) for learner in LEARNER_NAMES]
    warm = [arm.name for arm in at_temperatures(TEMPERATURES)]
    known = read_arms(directory, [*LEARNER_NAMES, "full", *names, *warm], sizes.seeds)
    parts = [
        *_sizes(known),
        *_heads(known),
        *_depth(sizes, known),
        *_windows(sizes, directory),
        *_temperatures(known, warm),
    ]
    if not parts:
        return []
    return [
        "## The paper's ablations, at this size\n",
        f"From `make study STUDY=--full`: students of {sizes.student_steps} steps, {len(sizes.seeds)} seeds. The "
        "models of the Gemma 2 paper have 200M to 9B parameters, and it has other measures. So only directions can be "
        "compared.\n",
        *parts,
    ]


def _sizes(known: dict[str, ArmFigures]) -> list[str]:
    """T7: perplexities 23, 19, 17 from scratch and 21, 17, 15 distilled at 200M, 400M, 1B, one teacher of 7B."""
    order = (" half width", "", " twice the width")
    if not _have(known, order):
        return []
    scratch, distilled = ([known[f"{learner}{name}"] for name in order] for learner in LEARNER_NAMES)
    rows = [
        [
            f"{_parameters(plain):,}",
            f"{plain.mean('loss'):.4f}",
            f"{taught.mean('loss'):.4f}",
            difference(taught, plain),
        ]
        for plain, taught in zip(scratch, distilled, strict=True)
    ]
    return [
        "### Students of other sizes (table 7)\n",
        "In the paper, distillation from one teacher gains at each size. Perplexity goes from 23 to 21, from 19 to 17, "
        "and from 17 to 15.\n",
        table(("parameters", *LEARNER_NAMES, "distilled minus scratch"), rows),
        "\n".join(
            less(f"distillation helps at {_parameters(plain):,} parameters", taught, plain)
            for plain, taught in zip(scratch, distilled, strict=True)
        )
        + "\n",
    ]


def _heads(known: dict[str, ArmFigures]) -> list[str]:
    """T8: 50.3 with a key head a query, 50.8 with shared ones, 9B, four benchmarks."""
    shared, own = "", " a key head a query"
    if not _have(known, (shared, own)):
        return []
    return [
        "### Grouped queries against a key head a query (table 8)\n",
        "In the paper, at 9B, grouped queries score 50.8 and a key head a query 50.3 (benchmarks, higher is better). "
        "The two are too near to tell apart, and grouped queries have the smaller cache.\n",
        _pairs(known, (("grouped", shared), ("a key head a query", own))),
        _verdicts("grouped queries are better than a key head a query", known, shared, own),
    ]


def _depth(sizes: Sizes, known: dict[str, ArmFigures]) -> list[str]:
    """T9: 50.8 wide, 52.0 deep, 9B, four benchmarks."""
    wide, deep = " wide", " deep"
    if not _have(known, (wide, deep)):
        return []
    layers = [shapes(sizes.student)[name.strip()].layers for name in (wide, deep)]
    return [
        "### Deep against wide (table 9)\n",
        f"In the paper, at 9B, the deep model scores 52.0 and the wide one 50.8. Here {layers[1]} layers are compared "
        f"with {layers[0]}, at about the same number of parameters.\n",
        _pairs(known, (("wide", wide), ("deep", deep))),
        _verdicts("deep is better than wide", known, deep, wide),
    ]


def _windows(sizes: Sizes, directory: str) -> list[str]:
    """T10: perplexity 1.63, 1.63, 1.64 read with windows of 4096, 2048, 1024."""
    uri = storage.join(directory, WINDOWS)
    if not storage.exists(uri):
        return []
    losses: dict[str, list[float]] = json.loads(storage.read_bytes(uri))
    of_whole = losses[str(sizes.student.window)]
    rows = []
    for window, of_seeds in losses.items():
        mean = sum(of_seeds) / len(of_seeds)
        rows.append([window, f"{mean:.4f}", f"{mean - sum(of_whole) / len(of_whole):+.4f}"])
    return [
        "### The window at inference (table 10)\n",
        "In the paper, at 9B, perplexity is 1.63, 1.63 and 1.64 with windows of 4096, 2048 and 1024. Here the finished "
        f"`sample50` students have smaller windows too. They were trained with a window of {sizes.student.window} in "
        f"rows of {sizes.sequence_length}. Losses are means over {len(of_whole)} seeds.\n",
        table(("window", "loss", "minus the whole window"), rows),
    ]


def _temperatures(known: dict[str, ArmFigures], warm: Sequence[str]) -> list[str]:
    if not all(name in known for name in ("full", *warm)):
        return []
    by_temperature = dict(sorted({1.0: "full", **dict(zip(TEMPERATURES, warm, strict=True))}.items()))
    rows = [
        [
            f"{temperature:g}",
            f"{known[name].mean('loss'):.4f}",
            "" if name == "full" else difference(known[name], known["full"]),
            f"{known[name].mean('calibration_error'):.2%}",
        ]
        for temperature, name in by_temperature.items()
    ]
    return [
        "### The temperature of full distillation\n",
        "Teacher and student are softened alike, and the loss is multiplied by T². Losses here are at T = 1. The paper "
        "gives no temperature.\n",
        table(("T", "loss", "minus T = 1", "calibration error"), rows),
    ]


def _pairs(known: dict[str, ArmFigures], shapes_of: Sequence[tuple[str, str]]) -> str:
    """The table with a row for each shape and a column for each learner."""
    rows = []
    for title, suffix in shapes_of:
        arms = [known[f"{learner}{suffix}"] for learner in LEARNER_NAMES]
        rows.append([title, f"{_parameters(arms[0]):,}", *(f"{arm.mean('loss'):.4f}" for arm in arms)])
    return table(("shape", "parameters", *LEARNER_NAMES), rows)


def _verdicts(what: str, known: dict[str, ArmFigures], better: str, worse: str) -> str:
    lines = [
        less(f"{what} ({learner})", known[f"{learner}{better}"], known[f"{learner}{worse}"])
        for learner in LEARNER_NAMES
    ]
    return "\n".join(lines) + "\n"


def _have(known: dict[str, ArmFigures], suffixes: Sequence[str]) -> bool:
    return all(f"{learner}{suffix}" in known for learner in LEARNER_NAMES for suffix in suffixes)


def _parameters(arm: ArmFigures) -> int:
    return int(arm.finals[0]["parameters"])
