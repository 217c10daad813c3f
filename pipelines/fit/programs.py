"""The programs that `fit` can give to the TPU's compiler, as stages declare them."""

from typing import Literal

from pipelines.engine.config import no_such
from pipelines.engine.declaration import Program
from pipelines.engine.errors import UserError
from pipelines.engine.stage import load_stages

COMPILED = (
    *(f"infra/{name}.py" for name in ("aot", "hlo", "hlo_account", "hlo_trips", "slices")),
    "requirements-fit.txt",
)
"""files that compile a program and read the answer, the same for every program"""
TRACED = (
    *(f"model/{name}.py" for name in ("attention", "config", "gemma2", "head", "sharding")),
    *(f"training/{name}.py" for name in ("config", "logit_slices", "loss", "loss_head", "optim", "step")),
    *(f"training/distill/{name}.py" for name in ("blocks", "kind", "kinds/sample")),
    *(f"training/backends/{name}.py" for name in ("base", "checksum", "gradients")),
    *(
        f"training/backends/xla/{name}.py"
        for name in ("attention", "checksum", "head", "layers", "mesh", "remat", "traced_step")
    ),
)
"""files that every traced program depends on"""
TRAINING_STEP = Program(name="training_step", tracer="training.backends.xla.traced_step", sources=(*TRACED, *COMPILED))
"""training step: forward and backward pass, clipping, AdamW, with donated buffers"""


def forward_pass(name: str, keeps: Literal["draws", "losses"]) -> Program:
    """The program of a stage that runs a model over whole rows without training it."""
    return Program(
        name=name,
        tracer="training.backends.xla.traced_pass",
        sources=(*TRACED, "training/backends/xla/traced_pass.py", *COMPILED),
        keeps=keeps,
        rows_field="forward_rows",
    )


def program_of(stage: str) -> Program:
    """The program that a stage declares; "": the training step. Raises UserError for a stage that declares none."""
    if not stage:
        return TRAINING_STEP
    programs = {stage.name: program for stage in load_stages() for program in stage.declares.programs}
    if stage not in programs:
        raise UserError(no_such("stage with a compiled program", stage, programs))
    return programs[stage]
