"""What PyTorch/XLA can do. Nothing here imports torch_xla."""

from model.sharding import AXES
from training.backends.abilities import Abilities
from training.backends.devices import compiles_here, has_tpu


def _not_installed() -> str:
    return "" if compiles_here() else "torch_xla is not installed here"


def _cpu_for_tpu() -> str:
    return "" if has_tpu() else "no TPU is here, so XLA computes on the CPU"


XLA = Abilities(
    device="xla",
    accelerator="TPU",
    remats=("none", "projections", "full"),
    mesh_axes=AXES,
    mesh_of_workers=False,
    divides_by_default=False,
    processes="TPU hosts",
    process_group="gloo",
    joined_by="XlaConfig",
    compiles=True,
    lacking=_not_installed,
    stands_in=_cpu_for_tpu,
)
