"""Numbers in words: bytes, durations, contents of a dataset."""

from data.manifest import Manifest

UNITS = {
    "text": "document", "tokens": "document", "rejects": "reject", "clusters": "duplicate", "hits": "hit",
    "sequences": "row", "heldout": "held-out row", "logits": "row",
}  # fmt: skip
"""dataset -> name of one of its rows"""


def holds(manifest: Manifest) -> str:
    """The rows, tokens and bytes of each dataset."""
    parts = []
    for name, dataset in manifest.datasets.items():
        if dataset.rows:
            tokens = f", {dataset.tokens:,} tokens" if dataset.tokens else ""
            parts.append(f"{name}: {dataset.rows:,} rows{tokens}, {size(dataset.bytes)}")
        else:
            parts.append(f"{name}: {size(dataset.bytes)}")
    return "; ".join(parts)


def count(number: int, unit: str) -> str:
    """The number with its unit in singular or plural: "1 step", "2,310 documents"."""
    return f"{number:,} {unit}{'s' * (number != 1)}"


def size(count: float) -> str:
    """The bytes with a decimal unit: "1.5 MB"."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError(count)


def duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{int(seconds // 60)} min {seconds % 60:.0f} s"
