"""What PyTorch/XLA can do. Nothing here imports torch_xla."""

from model.sharding import AXES
from training.backends.abilities import Abilities

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
)
