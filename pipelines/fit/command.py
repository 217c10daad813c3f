"""Does a training step fit on TPU slices, and how fast could it be? The TPU's own compiler is asked.

    python -m pipelines fit --model gemma2_27b --topology v5p:4x4x4 --mesh data=16,model=4 --seq 8192 --batch 64

No TPU is needed and nothing runs: our step is traced with placeholders and compiled by libtpu (pipelines/fit/cells.py).
Exit codes: 0 it fits, 1 it does not (or could not be judged), 2 the question is wrong.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import tyro

from data.documents import parse_object
from infra.slices import divisors, parse_topology
from model import Gemma2Config
from model.hf_weights import config_from_hf
from model.sharding import MeshShape
from pipelines.cli.arguments import MODEL_PRESETS, refuse_unknown
from pipelines.engine.config import from_dict, no_such
from pipelines.engine.errors import UserError, exit_code
from pipelines.fit.cells import CACHE, DEFAULT_MINUTES, Cell, FitRequest, run_cell
from pipelines.fit.figures import as_json, describe, headline
from pipelines.fit.programs import TRAINING_STEP, program_of
from training.config import Objective, Remat

REMATS: tuple[Remat, ...] = ("none", "projections", "full")
"""from most memory to least"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """The words after `fit`."""

    model: str
    """gemma2_2b, gemma2_9b, gemma2_27b, or a config.json (Hugging Face's, or fields of Gemma2Config)"""
    topology: str
    """chips of one slice: v4:4x4x4, v5e:4x4, v5p:2x2x4, v6e:4x4, ..."""
    slices: int = 1
    """slices of that shape, joined by the data-centre network"""
    mesh: str = ""
    """places along replica, data and model, as in data=16,model=4; empty: a slice on data, slices on replica"""
    seq: int = 8192
    """tokens in a row"""
    batch: int
    """rows of a step, over all chips"""
    remat: Remat = "full"
    """what the backward pass computes again"""
    objective: Objective = "next_token"
    """loss of the step; distill: 50 cached draws at each target"""
    program: str = TRAINING_STEP.name
    """compiled program that a stage declares"""
    search: bool = False
    """where it does not fit, look for the nearest setting that does: over remat, batch and mesh"""
    json: bool = False
    """print one JSON object instead of words"""
    minutes: float = DEFAULT_MINUTES
    """most that one setting may take here"""
    cache: str = str(CACHE)
    """directory of answers that were found before"""


def fit(words: list[str]) -> int:
    """Answers one question; returns the exit code. Raises UserError, before any compile, where it makes no sense."""
    refuse_unknown(words, sorted([field.name for field in dataclasses.fields(Command)] + ["no_search", "no_json"]))
    command = tyro.cli(Command, args=words, prog="python -m pipelines fit", description=__doc__)
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
            lines.append(f"None of the {len(tried) - 1} settings near it fits; take more chips or a shorter --seq.")
    elif not cell.fits and command.search:
        lines.append("There is no smaller setting to try; take more chips or a shorter --seq.")
    elif not cell.fits and not cell.problem:
        lines.append("`--search` looks for the nearest setting that fits.")
    return lines


def request_of(command: Command) -> FitRequest:
    """Raises UserError for an unknown model or chip, and for a mesh or batch that does not divide."""
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
        batch=command.batch,
        remat=command.remat,
        objective=command.objective,
    )


def _model(name: str) -> Gemma2Config:
    if name in MODEL_PRESETS:
        return MODEL_PRESETS[name]()
    path = Path(name)
    if not name.endswith(".json"):
        raise UserError(f"{no_such('model', name, MODEL_PRESETS)} Or give the path of a config.json.")
    if not path.is_file():
        raise UserError(f"no file {name!r}; give a config.json, or one of {', '.join(MODEL_PRESETS)}")
    stored = parse_object(path.read_bytes(), name, "give a Hugging Face config.json")
    if "hidden_size" in stored:
        return config_from_hf(stored)
    return from_dict(Gemma2Config, stored, name)


def nearest(request: FitRequest) -> Iterator[FitRequest]:
    """Settings that need less memory or divide it otherwise, nearest first.

    The distance is the number of steps: to the next policy of remat, to half the batch, to twice or half as many places
    along `model` or `replica`. Of equals, the one with the greatest batch comes first.
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
    program = program_of(command.program)
    return run_cell(request, program=program, cache=Path(command.cache), minutes=command.minutes, say=_say)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
