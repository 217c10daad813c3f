"""The kinds of cached distribution, by name. A new kind is a module in this folder, and its name in one import."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from training.distill.kind import Kind
from training.distill.kinds import full, sample, topk  # noqa: F401 - a module here adds its kind to KINDS
from training.errors import UserError


def _kinds(base: type[Any]) -> Iterator[type[Kind]]:
    """Every class below `base` that a module of this folder defines."""
    for kind in base.__subclasses__():
        if kind.__module__.startswith(f"{__name__}."):
            yield kind
        yield from _kinds(kind)


KINDS: dict[str, type[Kind]] = {kind.name: kind for kind in sorted(_kinds(Kind), key=lambda kind: kind.name)}
if TYPE_CHECKING:
    KindName = str
else:
    KindName = Literal[tuple(KINDS)]  # choices on the command line


def kind_of(name: str) -> type[Kind]:
    """The kind of this name. Raises UserError if there is none."""
    if name not in KINDS:
        raise UserError(f"estimator is {name!r}; allowed are {', '.join(KINDS)}")
    return KINDS[name]
