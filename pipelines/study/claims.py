"""The papers' three claims beside what the study saw, in sentences made of its figures."""

from pipelines.study.figures import ArmFigures, by_documents, by_seeds
from pipelines.study.intervals import Difference

CLOSE_NATS = 0.01
"""how near to full distillation a sample is said to come (arXiv 2503.16870)"""


def claims(found: dict[str, ArmFigures], costs: dict[str, float]) -> str:
    """A list in Markdown."""
    scratch, full = found["scratch"], found["full"]
    lines = [
        _claim(
            "distillation beats learning from the next token alone",
            by_seeds(full, scratch),
            by_documents(full, scratch),
            by_seeds(full, scratch).mean < 0.0,
        )
    ]
    for name in ("sample50", "sample12"):
        apart = by_seeds(found[name], full)
        lines.append(
            _claim(
                f"{name} is within {CLOSE_NATS} nats of full distillation",
                apart,
                by_documents(found[name], full),
                abs(apart.mean) <= CLOSE_NATS,
            )
        )
    for ours, theirs in (("topk12", "sample50"), ("topk12", "sample12"), ("topk50", "sample50")):
        apart = by_seeds(found[ours], found[theirs])
        sizes = (
            f" ({costs[ours]:.1f} and {costs[theirs]:.1f} bytes a token)" if ours in costs and theirs in costs else ""
        )
        lines.append(
            _claim(
                f"{ours}, renormalized, is worse than {theirs}{sizes}",
                apart,
                by_documents(found[ours], found[theirs]),
                apart.mean > 0.0,
            )
        )
    lines += [
        f"- {name} (not in the claims): {by_seeds(found[name], full).mean:+.4f} nats against full distillation, "
        f"{by_seeds(found[name], found['topk12']).mean:+.4f} against the renormalized top 12."
        for name in found
        if name.startswith("topk12 ")
    ]
    return "\n".join(lines) + "\n"


def _claim(what: str, seeds: Difference, documents: Difference, holds: bool) -> str:
    told = "seen" if holds else "**not seen**"
    unsure = "" if seeds.clear and documents.clear else "; an interval holds 0"
    return (
        f"- {what}: {told}. {seeds.mean:+.4f} nats, ± {seeds.half_width:.4f} over seeds, "
        f"± {documents.half_width:.4f} over documents{unsure}."
    )
