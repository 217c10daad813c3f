"""Tables and paired differences in Markdown, for all parts of the study's page."""

from collections.abc import Sequence

from pipelines.study.figures import ArmFigures, by_documents, by_seeds
from pipelines.study.intervals import Difference


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table in Markdown."""
    lines = [list(header), ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def difference(ours: ArmFigures, theirs: ArmFigures) -> str:
    """The held-out loss of `ours` minus the loss of `theirs`: mean ± over seeds [± over documents]."""
    seeds, documents = by_seeds(ours, theirs), by_documents(ours, theirs)
    return f"{seeds.mean:+.4f} ± {_width(seeds)} [± {_width(documents)}]"


def _width(interval: Difference) -> str:
    return f"{interval.half_width:.4f}" if interval.half_width < 1e3 else "?"
