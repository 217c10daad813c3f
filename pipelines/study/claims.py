"""Sentences that compare three claims of papers with the study's figures."""

from pipelines.study.figures import ArmFigures, by_documents, by_seeds
from pipelines.study.intervals import Difference
from pipelines.study.storage_cost import Cost

CLOSE_NATS = 0.01
"""largest distance of a sample to full distillation by the claim, in nats (arXiv 2503.16870)"""


def claims(by_arm: dict[str, ArmFigures], costs: dict[str, Cost]) -> str:
    """The claims as a list in Markdown."""
    full = by_arm["full"]
    lines = [less("distillation beats learning from the next token alone", full, by_arm["scratch"])]
    lines += [_close(by_arm[name], full) for name in ("sample50", "sample12")]
    lines.append(_noise(by_arm))
    for theirs, ours in (("topk12", "sample50"), ("topk12", "sample12"), ("topk50", "sample50")):
        sizes = (
            f", {costs[theirs].bytes:.1f} and {costs[ours].bytes:.1f} bytes a token"
            if {ours, theirs} <= costs.keys()
            else ""
        )
        lines.append(less(f"{theirs} (renormalized{sizes}) is worse than {ours}", by_arm[ours], by_arm[theirs]))
    for name in by_arm:
        if name.startswith("topk12 "):
            what = f"{by_arm[name].learns_from} is better than renormalized"
            lines.append(less(what, by_arm[name], by_arm["topk12"]))
    return "\n".join(lines) + "\n"


def less(what: str, ours: ArmFigures, theirs: ArmFigures) -> str:
    """The sentence on whether `ours` has the lower loss, by both intervals."""
    seeds, documents = by_seeds(ours, theirs), by_documents(ours, theirs)
    if not (seeds.clear and documents.clear):
        verdict = "**not decided**, an interval holds 0"
    else:
        verdict = "**seen**" if seeds.mean < 0.0 else "**the opposite was seen**"
    return f"- {what}: {verdict}. {ours.name} minus {theirs.name}: {_told(seeds, documents)}."


def _close(ours: ArmFigures, full: ArmFigures) -> str:
    """The sentence on whether the difference to full distillation is small, by both intervals."""
    seeds, documents = by_seeds(ours, full), by_documents(ours, full)
    if abs(seeds.mean) - max(seeds.half_width, documents.half_width) > CLOSE_NATS:
        verdict = "**not seen**"
    elif abs(seeds.mean) > CLOSE_NATS:
        verdict = "**not seen in the mean**, an interval reaches into it"
    elif abs(seeds.mean) + max(seeds.half_width, documents.half_width) <= CLOSE_NATS:
        verdict = "**seen**"
    else:
        verdict = "**seen in the mean**, an interval reaches further"
    return f"- {ours.name} is within {CLOSE_NATS} nats of full distillation: {verdict}. {_told(seeds, documents)}."


def _noise(by_arm: dict[str, ArmFigures]) -> str:
    """The sentence on the distance of samples to full distillation: the variance of N draws is 1 / N of the variance of
    one draw (arXiv 2503.16870)."""
    far, near = (by_seeds(by_arm[name], by_arm["full"]).mean for name in ("sample12", "sample50"))
    steps, of_full = by_arm["full"].curve()
    gaps = by_arm["sample50"].curve()[1] - of_full
    widest = int(gaps.argmax())
    return (
        "- Why not nearer? The likely reason is the noise of the draws, which a short run does not average out. The "
        "variance of N draws falls as 1 / N, so 12 draws have 4.2 times that of 50. They are "
        f"{far / near:.1f} times as far from full distillation. Draws have no bias: the mean over redraws has the "
        f"gradient of full distillation (below). In the run, 50 draws were furthest away at step {steps[widest]:.0f}, "
        f"by {gaps[widest]:.3f} nats. At step {steps[-1]:.0f}, the last, it was {gaps[-1]:.3f} nats."
    )


def _told(seeds: Difference, documents: Difference) -> str:
    return f"{seeds.mean:+.4f} nats, ± {seeds.half_width:.4f} over seeds, ± {documents.half_width:.4f} over documents"
