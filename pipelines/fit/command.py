"""Asks the TPU's own compiler whether a stage's program fits on TPU slices, and how fast it could be.

    python -m pipelines fit --model gemma2_27b --topology v5p:4x4x4 --mesh data=16,model=4 --seq 8192 --batch 64
    python -m pipelines fit --stage cache_logits --model gemma2_27b --topology v6e:2x4 --mesh model=8 --forward-rows 4

It needs no TPU and runs nothing: the program is traced with placeholders and compiled by libtpu
(pipelines/fit/cells.py). Exit codes: 0 the program fits, 1 it does not fit or could not be judged, 2 wrong usage.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

from data.documents import parse_object
from infra.slices import divisors, parse_topology
from model import Gemma2Config
from model.hf_config import config_from_hf
from model.sharding import MeshShape
from pipelines.cli.arguments import MODEL_PRESETS
from pipelines.engine.config import from_dict
from pipelines.engine.declaration import Program
from pipelines.engine.errors import UserError, exit_code
from pipelines.engine.flags import parse, refuse_unknown
from pipelines.engine.printed import one_line
from pipelines.engine.stage import load_stage
from pipelines.fit.cells import CACHE, DEFAULT_MINUTES, Cell, FitRequest, run_cell
from pipelines.fit.figures import as_json, describe, headline
from pipelines.fit.programs import program_of
from training.config import ComputeType, Objective, Remat

REMATS: tuple[Remat, ...] = ("none", "projections", "full")
"""policies from most memory to least"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """The words after `fit`."""

    model: str
    """model: gemma2_2b, gemma2_9b, gemma2_27b, or a config.json (of Hugging Face, or with fields of Gemma2Config)"""
    topology: str
    """chips of one slice, such as v4:4x4x4, v5e:4x4, v5p:2x2x4, v6e:4x4"""
    slices: int = 1
    """number of slices of that topology, joined by the data-centre network"""
    mesh: str = ""
    """sizes of the mesh axes replica, data and model, such as data=16,model=4; empty: data=chips of a slice,
    replica=slices"""
    seq: int = 8192
    """number of tokens in a row"""
    stage: str = ""
    """name of the stage whose program is compiled; empty: a training step"""
    batch: int | None = None
    """number of rows in a training step, over all chips"""
    forward_rows: int | None = None
    """number of rows in a forward pass, over all chips, for stages that do not train (default: the stage's)"""
    dtype: ComputeType = "float32"
    """type of weights and activations, for stages that do not train"""
    remat: Remat = "full"
    """part of a layer that the backward pass computes again"""
    objective: Objective = "next_token"
    """objective of the step's loss; distill: 50 cached draws at each target"""
    search: bool = False
    """whether to look for the nearest setting of remat, batch and mesh that fits, if the given setting does not fit"""
    json: bool = False
    """whether to print one JSON object instead of text"""
    minutes: float = DEFAULT_MINUTES
    """longest time for one setting, in minutes"""
    cache: str = str(CACHE)
    """directory of cached answers"""


def fit(words: list[str]) -> int:
    """Answers one question; returns the exit code. Raises UserError, before any compile, for a wrong question."""
    refuse_unknown(words, sorted([field.name for field in dataclasses.fields(Command)] + ["no_search", "no_json"]))
    command = parse(Command, words, program="python -m pipelines fit", description=__doc__)
    request = request_of(command)
    cell = _run(request, command)
    tried = [cell]
    if command.search and not cell.fits:
        for candidate in nearest(request):
            _say(f"trying {headline(candidate)}")
            tried.append(_run(candidate, command))
            if tried[-1].fits:
                break
    if command.json:
        document = as_json(cell)
        if command.search:
            document["search"] = [as_json(attempt) for attempt in tried[1:]]
        print(json.dumps(document, indent=1))
    else:
        print("\n".join(_answer(tried, command)))
    return 0 if cell.fits else 1


def _answer(tried: list[Cell], command: Command) -> list[str]:
    cell = tried[0]
    lines = describe(cell)
    if len(tried) > 1:
        lines.append("")
        if tried[-1].fits:
            lines += [f"The nearest setting that fits, of {len(tried) - 1} tried:", *describe(tried[-1])]
        else:
            lines.append(f"None of the {len(tried) - 1} nearest settings fits; use more chips or a shorter --seq.")
    elif not cell.fits and command.search:
        lines.append("There is no smaller setting to try; use more chips or a shorter --seq.")
    elif not cell.fits and not cell.problem:
        lines.append("`--search` looks for the nearest setting that fits.")
    return lines


def request_of(command: Command) -> FitRequest:
    """The request of a command. Raises UserError for an unknown model or chip, and if mesh or batch do not divide."""
    program = program_of(command.stage)
    rows = _rows(command, program)
    config = _model(command.model)
    place = parse_topology(command.topology, command.slices)
    whole_mesh = MeshShape(replica=place.slices, data=place.chips_per_slice)
    return FitRequest(
        name=Path(command.model).parent.name or command.model if "/" in command.model else command.model,
        model=config,
        topology=command.topology,
        slices=command.slices,
        mesh=MeshShape.parse(command.mesh) if command.mesh else whole_mesh,
        seq=command.seq,
        batch=rows,
        remat=command.remat,
        objective=command.objective,
        parameter_dtype=command.dtype,
        keeps=program.keeps,
    )


def _words(program: Program) -> str:
    return program.name.replace("_", " ")


def _rows(command: Command, program: Program) -> int:
    """The number of rows. Raises UserError for fields that the stage's program does not have."""
    trains = program.keeps == "gradients"
    given = {
        "batch": command.batch is not None,
        "remat": command.remat != Command.remat,
        "objective": command.objective != Command.objective,
    }
    if trains:
        given = {"forward_rows": command.forward_rows is not None, "dtype": command.dtype != Command.dtype}
    if wrong := [name for name, is_given in given.items() if is_given]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in wrong)
        own = "--batch, --remat and --objective" if trains else "--forward-rows and --dtype"
        raise UserError(f"got {flags} for a {_words(program)}, which does not have it; it takes {own}")
    rows = command.batch if trains else command.forward_rows
    if rows is None and trains:
        raise UserError("got no --batch; give the number of rows in a training step, over all chips")
    return load_stage(command.stage).config().forward_rows if rows is None else rows


def _model(name: str) -> Gemma2Config:
    if name in MODEL_PRESETS:
        return MODEL_PRESETS[name]()
    path = Path(name)
    if not name.endswith(".json"):
        raise UserError(f"no model {name!r}; give one of {', '.join(MODEL_PRESETS)}, or the path of a config.json")
    if not path.is_file():
        raise UserError(f"no file {name!r}; give a config.json, or one of {', '.join(MODEL_PRESETS)}")
    stored = parse_object(path.read_bytes(), name, "give a Hugging Face config.json")
    if "hidden_size" in stored:
        return config_from_hf(stored, name)
    return from_dict(Gemma2Config, stored, name)


def nearest(request: FitRequest) -> Iterator[FitRequest]:
    """Settings that need less memory or divide it otherwise, nearest first.

    The distance is a number of changes: to the next policy of remat, to half the batch, to twice or half the size of
    `model` or `replica`. Among settings of equal distance, the one with the largest batch comes first.
    """
    place = request.place
    candidates: list[tuple[float, int, int, FitRequest]] = []
    own = REMATS.index(request.remat)
    for model_axis in divisors(math.gcd(request.model.heads, request.model.kv_heads)):
        for replica in {1, place.slices, request.mesh.replica}:
            if place.chips % (model_axis * replica):
                continue
            mesh = MeshShape(replica=replica, data=place.chips // (model_axis * replica), model=model_axis)
            for halvings in range(request.batch.bit_length()):
                for weaker, remat in enumerate(REMATS[own:]):
                    try:
                        candidate = dataclasses.replace(
                            request, mesh=mesh, batch=request.batch >> halvings, remat=remat
                        )
                    except ValueError as error:
                        if exit_code(error) is None:
                            raise
                        continue  # this mesh or batch does not divide
                    turned = abs(math.log2(model_axis / request.mesh.model)) + abs(
                        math.log2(replica / request.mesh.replica)
                    )
                    if candidate != request:
                        candidates.append((weaker + halvings + turned, halvings, len(candidates), candidate))
    yield from (candidate for *_, candidate in sorted(candidates, key=lambda entry: entry[:3]))


def _run(request: FitRequest, command: Command) -> Cell:
    program = program_of(command.stage)
    return run_cell(request, program=program, cache=Path(command.cache), minutes=command.minutes, say=_say)


def _say(text: str) -> None:
    print(one_line(text), file=sys.stderr, flush=True)
