"""`make fit-table`: docs/tpu-fit.md, the published sizes on the paper's slices and on slices that a small team rents.

    python -m pipelines.fit.table [--minutes 6] [--only TEXT] [--again]

Each cell is a file of docs/tpu-fit/, so the table can grow over days. An existing cell is compiled again if it ran out
of time, and with --again if its code has changed since. Cost: minutes for each cell on two cores.
"""

import dataclasses
import sys
from pathlib import Path
from typing import get_args

from infra.chips import GIB
from infra.slices import parse_topology
from model.sharding import MeshShape
from pipelines.cli.arguments import MODEL_PRESETS
from pipelines.engine.errors import run_command
from pipelines.engine.flags import parse
from pipelines.fit.cells import REPOSITORY, Cell, FitRequest, code_digest, run_cell
from pipelines.fit.figures import figures, gib, headline
from pipelines.fit.programs import TRAINING_STEP, forward_pass
from pipelines.report.paragraphs import wrapped
from training.config import Objective

CELLS = REPOSITORY / "docs" / "tpu-fit"
TABLE = REPOSITORY / "docs" / "tpu-fit.md"
SEQ = 8192
PUBLISHED: tuple[tuple[str, str, int, MeshShape], ...] = (
    # arXiv 2408.00118, Table 3. data x model is 512 x 1, 1024 x 4, 768 x 8; 512 and 1024 do not divide d_model (2304
    # and 3584), so two copies of the parameters stand there.
    ("gemma2_2b", "v5e:16x16", 2, MeshShape(replica=2, data=256)),
    ("gemma2_9b", "v4:8x16x32", 1, MeshShape(replica=2, data=512, model=4)),
    ("gemma2_27b", "v5p:8x24x32", 1, MeshShape(data=768, model=8)),
)
RENTED = ("v5e:4x4", "v6e:4x4", "v5p:2x2x4")
HOSTS: tuple[tuple[str, int], ...] = (("v5e:2x4", 4), ("v6e:2x4", 4), ("v5p:2x2x1", 4), ("v4:2x2x1", 4), ("v5e:2x2", 1))
"""hosts that may hold a teacher, with the rows of its forward pass"""
TEACHERS = ("gemma2_27b", "gemma2_9b")
PASSES = """
## The teacher's pass

A cell is one forward pass of `cache_logits` on one host, from tokens to 50 drawn ids at each position. Weights and
activations are bfloat16, rows have 8192 tokens, and the model axis divides the model over all chips of the host. The
command of the first cell:

    python -m pipelines fit --stage cache_logits --model gemma2_27b --topology v5e:2x4 --mesh model=8 \\
        --forward-rows 4 --seq 8192 --dtype bfloat16

"""
HEADER = """# What fits on which TPUs

This page shows which of the published models train on which slices, and how fast they could be at most. Every figure is
an answer of the TPU compiler, or follows from its program. **Nothing here has run on a TPU.**

`make fit-table` writes the page from the cells in [tpu-fit/](tpu-fit/). The formulas are in `pipelines/fit/figures.py`
and `infra/slices.py`. Figures of the chips, with their sources, are in `infra/chips.py`.

A cell is one training step of ours:

- It has splash attention, the loss in chunks, the backward pass, clipping, AdamW, and donated buffers.
- Parameters and activations are float32, with `--remat full`.
- Rows have 8192 tokens. Each place of replica x data has one row.

The columns:

- **HBM** is the memory of a chip at its fullest, of what the compiler lets a program use. Where the compiler refused,
  it is the program's temporaries plus parameters, moments and batch.
- **at most** is tokens a second of one chip if compute, HBM and network overlap completely. The figure in brackets is
  without any overlap.
- **MFU** is the share of the chip's peak, for both cases.
- **dots** is matrix operations in the compiled program over what the formula expects.
- **compile** is seconds on two cores, with other work beside it.
- **code** is a digest of the sources that made the cell.

The network's share is that of a chip at the corner of the slice: a side has a ring of links only where the slice is
large enough.

Both speeds are arithmetic on bytes and operations, without latency and with every kernel at its peak. A real step is
slower than the first speed, and may be slower than the second.

"""
COLUMNS = (
    "model", "objective", "slice", "mesh", "fits", "HBM GiB", "at most tokens/s/chip", "MFU", "bound by", "dots",
    "compile s", "code",
)  # fmt: skip
PASS_COLUMNS = ("model", "rows", *COLUMNS[2:])
PROGRAMS = {program.keeps: program for program in (TRAINING_STEP, forward_pass("teacher_pass", "draws"))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """The cells to compile."""

    minutes: float = 6.0
    """longest time for one cell, in minutes"""
    only: str = ""
    """text that the name of a cell must contain; empty: all cells"""
    again: bool = False
    """whether to compile cells again that were made with other code"""


def requests() -> dict[str, FitRequest]:
    """File name -> request, for every cell of the table."""
    by_name = {}
    places = [(name, topology, slices, mesh) for name, topology, slices, mesh in PUBLISHED]
    places += [(name, topology, 1, MeshShape(data=16)) for name, *_ in PUBLISHED for topology in RENTED]
    for name, topology, slices, mesh in sorted(places, key=lambda place: [row[0] for row in PUBLISHED].index(place[0])):
        for objective in get_args(Objective):
            request = FitRequest(
                name=name, model=MODEL_PRESETS[name](), topology=topology, slices=slices, mesh=mesh, seq=SEQ,
                batch=mesh.row_shards, objective=objective,
            )  # fmt: skip
            by_name[f"{name}-{objective}-{topology.replace(':', '-')}"] = request
    return by_name


def passes() -> dict[str, FitRequest]:
    """File name -> request, for every teacher's pass of the table."""
    by_name = {}
    for name in TEACHERS:
        for topology, rows in HOSTS:
            by_name[f"{name}-pass-{topology.replace(':', '-')}"] = FitRequest(
                name=name, model=MODEL_PRESETS[name](), topology=topology, seq=SEQ, batch=rows, keeps="draws",
                mesh=MeshShape(model=parse_topology(topology).chips), parameter_dtype="bfloat16",
            )  # fmt: skip
    return by_name


def main(words: list[str]) -> int:
    """Compiles the missing cells and writes the table."""
    command = parse(Command, words, program="python -m pipelines.fit.table", description=__doc__)
    CELLS.mkdir(exist_ok=True)
    for name, request in (requests() | passes()).items():
        program = PROGRAMS[request.keeps]
        code = code_digest(program)
        path = CELLS / f"{name}.json"
        kept = _read(path)
        done = kept is not None and not kept.error and kept.request == request
        if command.only in name and not (done and (kept.code == code or not command.again)):  # type: ignore[union-attr]
            print(headline(request), file=sys.stderr, flush=True)
            cell = run_cell(request, program=program, minutes=command.minutes)
            path.write_text(cell.to_json())
            print(f"  {_verdict(cell)}", file=sys.stderr, flush=True)
            TABLE.write_text(table())
    TABLE.write_text(table())
    return 0


def table() -> str:
    """The text of the page, from the cells that exist."""
    lines, notes = [HEADER + _head(COLUMNS)], []
    for section, of_section in ((None, requests()), (PASSES, passes())):
        if section is not None:
            lines.append(section + _head(PASS_COLUMNS))
        for name, request in of_section.items():
            cell = _read(CELLS / f"{name}.json")
            chips = f"{request.slices} x {request.topology}" if request.slices > 1 else request.topology
            what = request.objective if section is None else f"{request.batch}"
            start = [request.name, what, chips, request.mesh.text]
            lines.append("| " + " | ".join([*start, *_figures(cell)]) + " |")
            if cell is not None and cell.problem:
                notes += wrapped(f"- {request.name}, {what}, {chips}: {cell.problem}")
    if notes:
        lines += ["", "Could not be judged:", "", *notes]
    cells = [cell for name in requests() | passes() if (cell := _read(CELLS / f"{name}.json")) is not None]
    versions = sorted({f"libtpu {cell.compiled['versions']['libtpu']}" for cell in cells if cell.compiled})
    lines += ["", f"Compiled by {', '.join(versions) or 'nothing yet'}."]
    return "\n".join(lines) + "\n"


def _head(columns: tuple[str, ...]) -> str:
    return "| " + " | ".join(columns) + " |\n|" + "---|" * len(columns)


def _figures(cell: Cell | None) -> list[str]:
    if cell is None:
        return ["not compiled yet", *[""] * 7]
    if cell.problem:
        return ["not judged (below)", *[""] * 6, cell.code]
    result = figures(cell)
    memory = f"{result.peak_bytes / GIB:.2f} of {result.hbm_bytes / GIB:.2f}"
    seconds = f"{cell.compiled['compile_seconds']:.0f}"
    if result.bounds is None:
        return ["no", memory, "", "", "", "", seconds, cell.code]
    speed = f"{result.best_tokens_per_second:,.0f} ({result.worst_tokens_per_second:,.0f})"
    mfu = f"{result.best_mfu:.0%} ({result.worst_mfu:.0%})"
    fits = "yes" if cell.fits else "no"
    return [fits, memory, speed, mfu, result.bounds.bound_by, f"{result.matrix_ratio:.3f}", seconds, cell.code]


def _verdict(cell: Cell) -> str:
    if cell.problem:
        return cell.problem
    result = figures(cell)
    return f"{'fits' if cell.fits else 'does not fit'}: {gib(result.peak_bytes)} of {gib(result.hbm_bytes)}"


def _read(path: Path) -> Cell | None:
    return Cell.from_json(path.read_text(), str(path)) if path.exists() else None


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
