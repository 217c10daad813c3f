"""Writes docs/distillation.md and its plots from the files of a run; the same files give the same page."""

import json
from pathlib import Path

from data import storage
from pipelines.engine.errors import UserError
from pipelines.report.paragraphs import paragraph
from pipelines.study import plots
from pipelines.study.ablation_report import ablation_part
from pipelines.study.arms import arms, with_tails
from pipelines.study.claims import claims
from pipelines.study.figures import ArmFigures, by_documents, by_seeds, read_arms
from pipelines.study.gradients import read_gradients
from pipelines.study.lockstep import is_done
from pipelines.study.sizes import Sizes, for_ablations
from pipelines.study.storage_cost import Cost, read_costs
from pipelines.study.tables import difference, table

PLOTS = "distillation"
TEACHER_SCORES = "teacher.json"
RUN = "run.json"
"""file with the machine and the seconds so far for the teacher, the arms and the ablations"""
GOAL_MINUTES = 90
GOAL_COSINE = 0.99


def write_report(sizes: Sizes, root: str, docs: str, command: str) -> list[str]:
    """Writes the page and its plots under `docs`; returns their paths. `command` is the command that made the figures.

    The figures cover the seeds whose seven arms are finished. Raises UserError if there is no such seed.
    """
    directory = sizes.directory(root)
    seven = [arm.name for arm in arms(sizes.alpha)]
    seeds = [seed for seed in sizes.seeds if all(is_done(directory, f"{name}-{seed}") for name in seven)]
    if not seeds:
        raise UserError(f"no seed has finished metrics of {', '.join(seven)} in {directory}; `make study` makes them")
    by_arm = read_arms(directory, [*seven, *(arm.name for arm in with_tails())], seeds)
    folder = Path(docs) / PLOTS
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, picture in _pictures(by_arm, directory).items():
        path = folder / f"{name}.svg"
        path.write_text(picture)
        written.append(str(path))
    page = Path(docs) / "distillation.md"
    page.write_text(_page(sizes, root, by_arm, command))
    return [str(page), *written]


def _pictures(by_arm: dict[str, ArmFigures], directory: str) -> dict[str, str]:
    full = by_arm["full"]
    steps, of_full = full.curve()
    compared = {name: arm for name, arm in by_arm.items() if arm is not full}
    first = [name for name in compared if not name.startswith("topk12 ")]
    pictures = {
        "curves": plots.curves(
            "Held-out loss during training",
            "step",
            "nats a token more than full distillation, mean over seeds",
            {name: (steps, compared[name].curve()[1] - of_full) for name in first},
            (("full", 0.0),),
        ),
        "differences": plots.differences(
            "Held-out loss minus full distillation's, with 95 % intervals",
            "nats a token; left of 0 is better than full distillation",
            ("paired over seeds", "paired over held-out documents"),
            [
                plots.Line(name=name, differences=(by_seeds(arm, full), by_documents(arm, full)))
                for name, arm in compared.items()
            ],
        ),
        "calibration": plots.curves(
            "Calibration of the likeliest token",
            "probability that the student gives it, percent",
            "percent that were right, minus that probability",
            {
                name: (100 * sure, 100 * (right - sure))
                for name, (sure, right) in {
                    name: by_arm[name].reliability() for name in ("scratch", "full", "sample50", "topk12", "topk50")
                }.items()
            },
            (("calibrated", 0.0),),
        ),
    }
    if costs := read_costs(directory):
        points = {name: (costs[name].bytes, by_arm[name].mean("loss")) for name in costs if name in by_arm}
        pictures["bytes"] = plots.scatter(
            "Held-out loss and bytes a token", "bytes a token in the cache", "held-out loss, nats a token", points
        )
    return pictures


def _page(sizes: Sizes, root: str, by_arm: dict[str, ArmFigures], command: str) -> str:
    directory = sizes.directory(root)
    run = _json(storage.join(directory, RUN))
    costs = read_costs(directory)
    final = by_arm["full"].finals[0]
    teacher_loss = _json(storage.join(directory, TEACHER_SCORES))["loss"]
    targets = int(final["targets"])
    documents = len(set(final["document_of_rows"]))
    done, wanted = len(by_arm["full"].finals), len(sizes.seeds)
    seeds = f"{done}" if done == wanted else f"{done} of {wanted}"
    student, teacher = sizes.student, sizes.teacher
    parts = [
        "# Does the cached teacher teach?\n",
        "This page compares students that learn from different targets: the next token, a teacher's whole "
        "distribution, draws from it, or its most likely ids.\n",
        f"Written by `python -m pipelines.study report` from the metrics of `{command}`. No figure is typed by hand.\n",
        f"Machine: {run['machine']}, Python {run['python']}, {run['threads']} threads. The study took "
        f"{(run['seconds'] + run.get('teacher_seconds', 0.0)) / 60:.0f} minutes (goal: at most {GOAL_MINUTES})."
        f"{_teacher(run)}{_load(run)} The students' steps took "
        f"{sum(final['step_cpu_seconds'] for arm in by_arm.values() for final in arm.finals) / 60:.0f} minutes of a "
        "core.\n"
        if run
        else "How long it took was not kept.\n",
        "## What was run\n",
        f"- **The text** is Python's standard library, with a vocabulary of {sizes.vocab_size:,} and rows of "
        f"{sizes.sequence_length} tokens. {documents} documents with {targets:,} targets are held out. Teacher and "
        "students learn from different rows.\n"
        f"- **The teacher** has {teacher.layers} layers and width {teacher.d_model}. It took {sizes.teacher_steps} "
        f"steps of {sizes.batch_rows} rows. Its held-out loss is **{teacher_loss:.3f}** nats a token.\n"
        f"- **The students** have {student.layers} layers, width {student.d_model} and "
        f"{int(by_arm['full'].finals[0]['parameters']):,} parameters. Each took {sizes.student_steps} steps of "
        f"{sizes.student_rows} rows, with {seeds} seeds. The arms of a seed share initial weights, rows, their order "
        "and learning rates. They differ in what they learn from.\n",
        "## Held-out loss\n",
        "Losses are nats a token. Differences are paired, with intervals of 95 %: ± over seeds (Student's t), and in "
        "brackets ± over held-out documents.\n",
        _loss_table(by_arm),
        "![differences](distillation/differences.svg)\n",
        "![curves](distillation/curves.svg)\n",
        "## Calibration, agreement, cost\n",
        "- **calibration error** is over 15 bins of the likeliest token's probability.\n"
        "- **agreement** is the share of targets where student and teacher find the same token most likely.\n"
        "- **KL** is nats from teacher to student.\n"
        "- **tokens/s a core** is the speed of training steps whose targets are computed before.\n"
        + (
            "- **bytes a token**, **ids** and **mass left out** are of the cache's own format: bytes, different ids, "
            "and the teacher's mass outside of a top-k.\n"
            if costs
            else ""
        ),
        _cost_table(by_arm, costs),
        "![calibration](distillation/calibration.svg)\n",
        *(["![bytes](distillation/bytes.svg)\n"] if costs else []),
        "## What the papers say, and what was seen\n",
        claims(by_arm, costs),
        *_gradient_part(directory),
        *ablation_part(for_ablations(sizes), root),
        "## Again\n",
        "`make study` goes on where it was stopped. `make study STUDY=--full` adds temperatures and the ablations of "
        "the Gemma 2 paper: student size, key heads, depth, and window at inference.\n",
    ]
    return "\n".join(map(_wrapped, parts))


def _wrapped(part: str) -> str:
    """A part of the page, whose paragraphs and list items are a line each."""
    is_prose = not part.startswith(("#", "|", "!"))
    return "".join(map(paragraph, part.splitlines())) if is_prose else part


def _loss_table(by_arm: dict[str, ArmFigures]) -> str:
    rows = []
    for name, arm in by_arm.items():
        cells = [name, arm.learns_from, f"{arm.mean('loss'):.4f}"]
        for baseline in ("full", "scratch"):
            cells.append("" if name == baseline else difference(arm, by_arm[baseline]))
        rows.append(cells)
    return table(("arm", "learns from", "loss", "minus full", "minus scratch"), rows)


def _cost_table(by_arm: dict[str, ArmFigures], costs: dict[str, Cost]) -> str:
    rows = [
        [
            name,
            f"{arm.mean('calibration_error'):.2%}",
            f"{arm.mean('agreement'):.2%}",
            f"{arm.mean('kl_to_teacher'):.4f}",
            *_stored(costs.get(name)),
            f"{arm.tokens_per_cpu_second:,.0f}",
        ]
        for name, arm in by_arm.items()
    ]
    return table(
        ("arm", "calibration error", "agreement", "KL", "bytes a token", "ids", "mass left out", "tokens/s a core"),
        rows,
    )


def _stored(cost: Cost | None) -> list[str]:
    if cost is None:
        return [""] * 3
    return [f"{cost.bytes:,.1f}", f"{cost.ids:.1f}", f"{cost.tail:.1%}" if cost.tail else ""]


def _gradient_part(directory: str) -> list[str]:
    angles = read_gradients(directory)
    if not angles:
        return []
    rows = [
        [angle.what, f"{angle.redraws}", f"{angle.cosine:.4f}", f"{angle.degrees:.1f}", f"{angle.norm_ratio:.2f}"]
        for angle in angles
    ]
    return [
        "## The gradient against full distillation's\n",
        "This compares each estimator's gradient with that of full distillation, whose teacher is in the step. All "
        "have one batch and the weights of the finished `scratch` arm. Printed by `python -m pipelines.study "
        "gradients`. The mean over redraws estimates the expected gradient. The goal for draws is a cosine of at least "
        f"{GOAL_COSINE}.\n",
        table(("estimator", "gradients averaged", "cosine", "degrees", "length"), rows),
    ]


def _teacher(run: dict[str, float]) -> str:
    """A note if an earlier study trained the teacher, which all studies of one root share."""
    is_trained_here = run.get("teacher_seconds", 0.0) >= 60.0
    return "" if is_trained_here else " The teacher is not in this time, because an earlier study had trained it."


def _load(run: dict[str, float]) -> str:
    is_disturbed = run["load"] >= 3.0
    return f" Other programs ran beside it, with a load of up to {run['load']:.0f}." if is_disturbed else ""


def _json(uri: str) -> dict[str, float]:
    document: dict[str, float] = json.loads(storage.read_bytes(uri)) if storage.exists(uri) else {}
    return document
