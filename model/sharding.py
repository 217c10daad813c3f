"""How the parameters are divided over a mesh of chips: a table from name patterns to mesh axes.

The mesh has three axes:

- `data` divides the rows of the batch. It also divides each parameter, with its moments and its gradient, which is
  gathered for use: ZeRO stage 3 (arXiv 1910.02054).
- `model` divides the heads, the MLP's width and the vocabulary: Megatron's tensor parallelism (arXiv 1909.08053).
- `replica` divides the rows and repeats the parameters. It is for slices without a fast network between them, and for
  more chips than `data` can divide.

The table is pure data, without torch and without a device. A backend passes the specs to its compiler.
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
"""for each dimension of a tensor, the mesh axes that divide it, or None"""

TABLE: dict[str, Spec] = {
    "model.embed_tokens.weight": ("model", "data"),
    "model.layers.*.self_attn.q_proj.weight": ("model", "data"),
    "model.layers.*.self_attn.k_proj.weight": ("model", "data"),
    "model.layers.*.self_attn.v_proj.weight": ("model", "data"),
    "model.layers.*.self_attn.o_proj.weight": ("data", "model"),
    "model.layers.*.mlp.gate_proj.weight": ("model", "data"),
    "model.layers.*.mlp.up_proj.weight": ("model", "data"),
    "model.layers.*.mlp.down_proj.weight": ("data", "model"),
    # A few kilobytes, which every chip needs whole.
    "model.layers.*.input_layernorm.weight": (None,),
    "model.layers.*.post_attention_layernorm.weight": (None,),
    "model.layers.*.pre_feedforward_layernorm.weight": (None,),
    "model.layers.*.post_feedforward_layernorm.weight": (None,),
    "model.norm.weight": (None,),
}

AXES = ("replica", "data", "model")
"""axes of the mesh, outermost first"""
ROWS: Axes = ("replica", "data")
"""axes that divide the rows of a batch"""


@dataclass(frozen=True, kw_only=True)
class MeshShape:
    """The number of chips along each axis."""

    replica: int = 1
    """number of copies of the parameters; it also divides the rows of a batch"""
    data: int = 1
    """number of parts of each parameter along d_model; it also divides the rows of a batch"""
    model: int = 1
    """number of parts of the heads, the MLP's width and the vocabulary"""

    def __post_init__(self) -> None:
        for axis, size in self.sizes.items():
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise UserError(
                    f"mesh axis {axis} is {size!r}, but must be a whole number of at least 1; set {axis}=1 or more"
                )

    @classmethod
    def parse(cls, text: str) -> "MeshShape":
        """The mesh of a text such as `data=16,model=4`; other axes are 1. Raises UserError for any other text."""
        sizes: dict[str, int] = {}
        for part in text.split(","):
            axis, _, size = (word.strip() for word in part.partition("="))
            if axis not in AXES or axis in sizes or not re.fullmatch("[0-9]{1,9}", size) or int(size) < 1:
                raise UserError(
                    f"got mesh {text!r} with {part.strip()!r}; allowed are {', '.join(AXES)}, once each, with a size "
                    "of at least 1: write it as in data=16,model=4"
                )
            sizes[axis] = int(size)
        return cls(**sizes)

    @property
    def text(self) -> str:
        """The mesh as a text for `parse`, without axes of size 1."""
        return ",".join(f"{axis}={size}" for axis, size in self.sizes.items() if size > 1) or "data=1"

    @property
    def sizes(self) -> dict[str, int]:
        """Number of chips by axis, outermost first."""
        return {"replica": self.replica, "data": self.data, "model": self.model}

    @property
    def chips(self) -> int:
        return self.replica * self.data * self.model

    @property
    def row_shards(self) -> int:
        """Number of parts that the rows of a batch are divided into."""
        return self.replica * self.data

    def divisor(self, axes: Axes) -> int:
        """Number of parts that a dimension with these axes is divided into."""
        names = (axes,) if isinstance(axes, str) else axes or ()
        return math.prod(self.sizes[name] for name in names)


def parameter_specs(names: Iterable[str]) -> dict[str, Spec]:
    """The spec of each parameter, by Hugging Face's names.

    Asserts that each name matches one pattern, and each pattern a name. So a table that does not fit the model is found
    before it places anything.
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
    """Raises UserError, with the allowed sizes, if the mesh cannot divide the model evenly."""
    widths = {name: getattr(config, name) for name in ("heads", "kv_heads", "ffw_dim", "vocab_size")}
    _check_axis("model", mesh.model, widths)
    _check_axis("data", mesh.data, {"d_model": config.d_model})


def check_rows(rows: int, mesh: MeshShape) -> None:
    """Raises UserError if the rows of a step cannot be divided over replica and data."""
    if rows % mesh.row_shards:
        raise UserError(
            f"got {rows} rows in a step for replica={mesh.replica} x data={mesh.data}, which divide them into "
            f"{mesh.row_shards} parts; use a multiple of {mesh.row_shards} rows"
        )


def row_groups(processes: int, mesh: MeshShape) -> int:
    """Number of parts into which the rows of a step are divided for reading by processes.

    Each process has the same number of the mesh's chips, in order. If a model axis spans several processes, they read
    the same rows. Raises UserError if a process would have some chips of one part and some of another part.
    """
    parts = mesh.row_shards
    if parts % processes and processes % parts:
        raise UserError(
            f"got mesh {mesh.text} on {processes} hosts of {mesh.chips / processes:g} chips; model={mesh.model} must "
            "divide the chips of a host, or be a multiple of them, so that hosts read whole rows: choose another model"
        )
    return min(parts, processes)


def shard_shape(shape: Iterable[int], spec: Spec, mesh: MeshShape) -> tuple[int, ...]:
    """Shape of the part of a tensor on one chip."""
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
