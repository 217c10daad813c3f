"""The kinds of cached distribution, by name. A new kind is a module here, and its name and class below."""

from typing import Literal

from training.distill.kind import Kind
from training.distill.kinds.full import Full
from training.distill.kinds.sample import Sample
from training.distill.kinds.topk import TopK
from training.errors import UserError

KindName = Literal["sample", "topk", "full"]
"""choices on the command line"""
KINDS: dict[str, type[Kind]] = {kind.name: kind for kind in (Sample, TopK, Full)}


def kind_of(name: str) -> type[Kind]:
    """The kind of this name. Raises UserError where there is none."""
    if name not in KINDS:
        raise UserError(f"estimator is {name!r}; allowed are {', '.join(KINDS)}")
    return KINDS[name]
