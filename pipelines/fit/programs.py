"""The programs that `fit` can give to the TPU's compiler, as stages declare them."""

from pipelines.engine.config import no_such
from pipelines.engine.declaration import Program
from pipelines.engine.errors import UserError
from pipelines.engine.stage import load_stages

COMPILED = (
    *(f"infra/{name}.py" for name in ("aot", "hlo", "hlo_account", "hlo_trips", "slices")),
    "requirements-fit.txt",
)
"""files that compile a program and read the answer, the same for every program"""
TRAINING_STEP = Program(
    name="training_step",
    tracer="training.backends.xla.traced_step",
    sources=(
        *(f"model/{name}.py" for name in ("attention", "config", "gemma2", "head", "sharding")),
        *(f"training/{name}.py" for name in ("config", "loss", "loss_head", "optim", "step")),
        *(f"training/distill/{name}.py" for name in ("blocks", "kind", "kinds/sample")),
        *(f"training/backends/{name}.py" for name in ("base", "checksum", "gradients")),
        *(
            f"training/backends/xla/{name}.py"
            for name in ("attention", "checksum", "head", "layers", "mesh", "remat", "traced_step")
        ),
        *COMPILED,
    ),
)
"""training step: forward and backward pass, clipping, AdamW, with donated buffers"""


def program_of(name: str) -> Program:
    """The declared program of that name. Raises UserError if no stage declares it."""
    programs = {program.name: program for stage in load_stages() for program in stage.declares.programs}
    if name not in programs:
        raise UserError(no_such("program", name, programs))
    return programs[name]
