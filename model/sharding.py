"""How the parameters lie on a mesh of chips: one table, name pattern -> mesh axes, and what follows from it.

The mesh has three axes. Along `data` rows of the batch are divided, and each parameter (with its moments and its
gradient) is divided too and gathered where it is used: ZeRO stage 3 (arXiv 1910.02054). Along `model` the heads, the
MLP's width and the vocabulary are divided: Megatron's tensor parallelism (arXiv 1909.08053). Along `replica` rows are
divided and parameters repeated, which is for slices without a fast network between them, and for more chips than
`data` can divide.

Pure data: no torch, no device; a backend hands the specs to its compiler.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from model.config import Gemma2Config
from model.errors import UserError

Axes = str | tuple[str, ...] | None
Spec = tuple[Axes, ...]
"""for each dimension of a tensor the mesh axes that divide it, None for none"""

TABLE: dict[str, Spec] = {
    "model.embed_tokens.weight": ("model", "data"),
    "model.layers.*.self_attn.q_proj.weight": ("model", "data"),
    "model.layers.*.self_attn.k_proj.weight": ("model", "data"),
    "model.layers.*.self_attn.v_proj.weight": ("model", "data"),
    "model.layers.*.self_attn.o_proj.weight": ("data", "model"),
    "model.layers.*.mlp.gate_proj.weight": ("model", "data"),
    "model.layers.*.mlp.up_proj.weight": ("model", "data"),
    "model.layers.*.mlp.down_proj.weight": ("data", "model"),
    # Kilobytes; every chip needs them whole.
    "model.layers.*.input_layernorm.weight": (None,),
    "model.layers.*.post_attention_layernorm.weight": (None,),
    "model.layers.*.pre_feedforward_layernorm.weight": (None,),
    "model.layers.*.post_feedforward_layernorm.weight": (None,),
    "model.norm.weight": (None,),
}

AXES = ("replica", "data", "model")
"""of the mesh, outermost first"""
ROWS: Axes = ("replica", "data")
"""what divides the rows of a batch"""


@dataclass(frozen=True, kw_only=True)
class MeshShape:
    """Chips along each axis."""

    replica: int = 1
    """copies of the parameters; rows are divided"""
    data: int = 1
    """parts of each parameter along d_model; rows are divided"""
    model: int = 1
    """parts of the heads, the MLP's width and the vocabulary"""

    def __post_init__(self) -> None:
        for axis, size in self.sizes.items():
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise UserError(f"mesh axis {axis} is {size!r}; it has to be a whole number of at least 1")

    @classmethod
    def parse(cls, text: str) -> "MeshShape":
        """`data=16,model=4`; an axis that is not named has one place. Raises UserError for anything else."""
        sizes: dict[str, int] = {}
        for part in text.split(","):
            axis, _, size = (word.strip() for word in part.partition("="))
            if axis not in AXES or axis in sizes or not re.fullmatch("[0-9]{1,9}", size) or int(size) < 1:
                raise UserError(
                    f"mesh {text!r}: {part.strip()!r} is not one of {', '.join(AXES)}, once each, with a size of at "
                    "least 1, as in data=16,model=4"
                )
            sizes[axis] = int(size)
        return cls(**sizes)

    @property
    def text(self) -> str:
        """As `parse` takes it, axes of one place left out."""
        return ",".join(f"{axis}={size}" for axis, size in self.sizes.items() if size > 1) or "data=1"

    @property
    def sizes(self) -> dict[str, int]:
        """Chips by axis, outermost first."""
        return {"replica": self.replica, "data": self.data, "model": self.model}

    @property
    def chips(self) -> int:
        return self.replica * self.data * self.model

    @property
    def row_shards(self) -> int:
        """parts that the rows of a batch are divided into"""
        return self.replica * self.data

    def divisor(self, axes: Axes) -> int:
        """Parts that a dimension with these axes is divided into."""
        names = (axes,) if isinstance(axes, str) else axes or ()
        return math.prod(self.sizes[name] for name in names)


def parameter_specs(names: Iterable[str]) -> dict[str, Spec]:
    """The spec of each parameter, by Hugging Face's names.

    Asserts that each name matches one pattern, and each pattern a name: a table that has drifted from the model is
    found before anything is placed by it.
    """
    specs: dict[str, Spec] = {}
    unused = set(TABLE)
    for name in names:
        matching = [pattern for pattern in TABLE if fnmatchcase(name, pattern)]
        matches = f"matches the patterns {matching}" if matching else "matches no pattern"
        assert len(matching) == 1, f"parameter {name!r} {matches} of model/sharding.py's TABLE; give it exactly one"
        specs[name] = TABLE[matching[0]]
        unused.discard(matching[0])
    assert not unused, (
        f"no parameter matches the patterns {sorted(unused)} of model/sharding.py's TABLE; remove them there, or pass "
        "the names of a whole model"
    )
    return specs


def check_mesh(config: Gemma2Config, mesh: MeshShape) -> None:
    """Raises UserError, with the sizes that are allowed, where the mesh cannot divide the model evenly."""
    widths = {name: getattr(config, name) for name in ("heads", "kv_heads", "ffw_dim", "vocab_size")}
    _check_axis("model", mesh.model, widths)
    _check_axis("data", mesh.data, {"d_model": config.d_model})


def check_rows(rows: int, mesh: MeshShape) -> None:
    """Raises UserError where the rows of a step cannot be divided over replica and data."""
    if rows % mesh.row_shards:
        raise UserError(
            f"{rows} rows in a step, and replica={mesh.replica} x data={mesh.data} divide them into {mesh.row_shards} "
            f"parts; use a multiple of {mesh.row_shards} rows"
        )


def row_groups(processes: int, mesh: MeshShape) -> int:
    """How many parts of a step's rows so many processes read, who have equal numbers of the mesh's chips in order.

    Where a model axis spans several processes, they read the same rows. Raises UserError where a process would hold
    a part of one group's chips and a part of another's.
    """
    parts = mesh.row_shards
    if parts % processes and processes % parts:
        raise UserError(
            f"mesh {mesh.text} on {processes} hosts of {mesh.chips / processes:g} chips: model={mesh.model} has to "
            "divide the chips of a host, or be a multiple of them, so that hosts read whole rows"
        )
    return min(parts, processes)


def shard_shape(shape: Iterable[int], spec: Spec, mesh: MeshShape) -> tuple[int, ...]:
    """Shape of the part on one chip."""
    return tuple(size // mesh.divisor(axes) for size, axes in zip(shape, spec, strict=True))


def _check_axis(axis: str, size: int, widths: Mapping[str, int]) -> None:
    wrong = [f"{name} {width}" for name, width in widths.items() if width % size]
    if not wrong:
        return
    common = math.gcd(*widths.values())
    allowed = [str(divisor) for divisor in range(1, common + 1) if common % divisor == 0]
    shown = ", ".join(allowed)
    rest = "; put the rest of the chips on data" if axis == "model" else "; put the rest of the chips on replica"
    raise UserError(f"mesh axis {axis}={size} does not divide {' and '.join(wrong)}; {axis} may be {shown}{rest}")
