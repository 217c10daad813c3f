"""One cell of the fit check: a program of a stage, traced and compiled for a slice, and the cached answer.

    FitRequest -> the program's tracer -> HLO -> infra/aot.py -> Cell          (pipelines/fit/programs.py)

Each half runs in a process of its own: the trace in this environment, the compile in `.venv-fit`, where libtpu and the
jax that drives it are pinned as a pair (`make fit-env`). A cell's key covers the request, the traced code and the
compiler's pins, so a cached answer always belongs to the present code. Cost: minutes and a few GB for billions of
parameters.
"""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.documents import parse_object
from infra.ray_session import REPOSITORY
from infra.slices import Topology, check_mesh, parse_topology
from model import Gemma2Config
from model.sharding import MeshShape
from model.sharding import check_mesh as check_model_mesh
from pipelines.engine.config import from_dict
from pipelines.engine.declaration import Program
from pipelines.engine.errors import UserError
from pipelines.fit.programs import TRAINING_STEP
from training.config import Objective, Remat

CACHE = Path(".cache/fit")
FIT_PYTHON = REPOSITORY / ".venv-fit" / "bin" / "python"
LANES = 128
"""number of which splash attention requires a multiple, for tokens in a row and for the head dimension"""
DEFAULT_MINUTES = 60.0


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """A training step or a forward pass, and the chips that it should run on."""

    name: str
    """name of the model, for printing"""
    model: Gemma2Config
    """sizes of the model"""
    topology: str
    """chips of one slice, such as v5p:4x4x4"""
    slices: int = 1
    """number of slices, joined by the data-centre network"""
    mesh: MeshShape
    """division of parameters and rows over all chips"""
    seq: int
    """number of tokens in a row"""
    batch: int
    """number of rows in a step or a forward pass, over all chips"""
    keeps: Literal["gradients", "draws", "losses"] = "gradients"
    """results of the program: `gradients` of a training step, `draws` or `losses` of a forward pass"""
    remat: Remat = "full"
    """part of a layer that the backward pass computes again"""
    objective: Objective = "next_token"
    """objective of the step's loss"""
    parameter_dtype: Literal["float32", "bfloat16"] = "float32"
    """type of parameters and activations; the optimizer's moments are float32"""

    def __post_init__(self) -> None:
        """Raises UserError, naming what is allowed, for a request that no compiler could satisfy."""
        config = self.model
        for name in ("seq", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"got {name}={getattr(self, name)}; it must be at least 1")
        if self.seq % LANES:
            raise UserError(
                f"got seq={self.seq}, but splash attention takes rows of a multiple of {LANES} tokens; "
                f"try --seq {max(LANES, round(self.seq / LANES) * LANES)}"
            )
        if config.head_dim % LANES:
            raise UserError(
                f"got head_dim={config.head_dim}, but splash attention takes heads of a multiple of {LANES}; give such "
                "a head_dim (the published sizes have 128 and 256)"
            )
        check_mesh(self.mesh.sizes, self.place, heads=config.heads, kv_heads=config.kv_heads, batch=self.batch)
        check_model_mesh(config, self.mesh)

    @property
    def place(self) -> Topology:
        return parse_topology(self.topology, self.slices)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def trace_request(self) -> dict[str, Any]:
        """The request in the form that the program's tracer takes: a `TraceRequest` of traced_step.py, or a
        `PassRequest` of traced_pass.py."""
        return {
            "model": dataclasses.asdict(self.model),
            "mesh": dataclasses.asdict(self.mesh),
            "sequence_length": self.seq,
            "rows": self.batch,
            "remat": self.remat,
            "objective": self.objective,
            "parameter_dtype": self.parameter_dtype,
            **({"keeps": self.keeps} if self.keeps != "gradients" else {}),
        }


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A request and its answer."""

    request: FitRequest
    code: str
    """digest of the traced code and of the compiler's pins"""
    trace: dict[str, Any] = dataclasses.field(default_factory=dict)
    """fields of `training.backends.xla.traced_step.Traced`, without the program"""
    compiled: dict[str, Any] = dataclasses.field(default_factory=dict)
    """fields of `infra.aot.Answer`"""
    error: str = ""
    """reason why there is no answer: out of time, or a failed process; never cached"""

    @property
    def fits(self) -> bool:
        return bool(self.compiled.get("fits")) and not self.problem

    @property
    def problem(self) -> str:
        """The reason why the step could not be judged; empty if it was judged."""
        return self.error or str(self.compiled.get("error", ""))

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> "Cell":
        """The cell of a JSON text. Raises UserError for a text that `to_json` did not write."""
        return from_dict(cls, parse_object(text, where, "remove it: the cell is computed again"), where)


def code_digest(program: Program = TRAINING_STEP) -> str:
    """The digest of every file that the numbers of a program's cells depend on."""
    digest = hashlib.sha256()
    for name in program.sources:
        digest.update(f"{name}\0".encode() + (REPOSITORY / name).read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def run_cell(
    request: FitRequest,
    *,
    program: Program = TRAINING_STEP,
    cache: Path = CACHE,
    minutes: float = DEFAULT_MINUTES,
    say: Callable[[str], None] = lambda text: None,
) -> Cell:
    """The cached cell, or a new one. Raises UserError if the compiler's environment is missing."""
    code = code_digest(program)
    key = hashlib.sha256(json.dumps([request.to_dict(), program.name, code], sort_keys=True).encode()).hexdigest()[:16]
    kept = cache / f"{key}.json"
    if kept.exists():
        return Cell.from_json(kept.read_text(), str(kept))
    if not FIT_PYTHON.exists():
        raise UserError(f"no {FIT_PYTHON}, so the TPU compiler is not installed; run `make fit-env` once")
    cell = _answer(request, program, code, minutes * 60, say)
    if not cell.error:
        cache.mkdir(parents=True, exist_ok=True)
        new = kept.with_suffix(f".{os.getpid()}")
        new.write_text(cell.to_json())
        new.replace(kept)
    return cell


def _answer(request: FitRequest, program: Program, code: str, seconds: float, say: Callable[[str], None]) -> Cell:
    with tempfile.TemporaryDirectory(prefix="fit-") as scratch:
        folder = Path(scratch)
        (folder / "trace_request.json").write_text(json.dumps(request.trace_request()))
        say(f"tracing the {program.name.replace('_', ' ')}")
        words = ["-m", program.tracer, str(folder / "trace_request.json"), str(folder)]
        problem, took = _run([sys.executable, *words], seconds)
        if problem:
            return Cell(request=request, code=code, error=f"the trace {problem}")
        trace = json.loads((folder / "trace.json").read_text())
        trace["process_seconds"] = round(took, 1)
        compile_request = {
            "hlo": str(folder / "hlo.pb"),
            "topology": request.topology,
            "slices": request.slices,
            "num_partitions": trace["num_partitions"],
            "donated": trace["donated"],
        }
        (folder / "compile_request.json").write_text(json.dumps(compile_request))
        say(f"compiling for {request.topology}" + (f" x {request.slices}" if request.slices > 1 else ""))
        words = ["-m", "infra.aot", str(folder / "compile_request.json"), str(folder / "answer.json")]
        problem, _ = _run([str(FIT_PYTHON), *words], seconds - took)
        # the cell itself has the names of the program and of its request
        trace = {name: value for name, value in trace.items() if name not in ("request", "model", "donated")}
        if problem:
            return Cell(request=request, code=code, trace=trace, error=f"the compiler {problem}")
        return Cell(request=request, code=code, trace=trace, compiled=json.loads((folder / "answer.json").read_text()))


def _run(words: list[str], seconds: float) -> tuple[str, float]:
    """Runs a process; returns (error or "", seconds that it took)."""
    began = time.monotonic()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PJRT_", "XLA_", "TPU_"))}
    try:
        done = subprocess.run(
            words,
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
            timeout=max(1.0, seconds),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"was stopped after {seconds:.0f} s (--minutes gives it more time)", seconds
    took = time.monotonic() - began
    if done.returncode:
        last = [line.strip() for line in done.stderr.splitlines() if line.strip()][-1:]
        killed = " (killed, most likely for lack of memory)" if done.returncode == -9 else ""
        return f"ended with {done.returncode}{killed}: {' '.join(last)}", took
    return "", took
