"""Which checkpoints stay: the last k and every n-th. What goes loses its tensors, never the record of its rows.

Retiring one is three steps, each of which a kill may follow: `TABLES` lists what stays, `COMMIT` goes, then the tensors
go. A directory with both is still a whole checkpoint; one with `TABLES` alone still counts for metrics and lineage.
Cost: one listing, and a read for each checkpoint that is kept.
"""

from typing import Any

from data import storage
from training.checkpoints.records import (
    COMMIT_NAME,
    STATE_NAME,
    TABLES_NAME,
    encode_record,
    list_commits,
    list_directories,
)


def apply_retention(root: str, keep_last: int | None, keep_every_steps: int) -> None:
    """Retires all but the last `keep_last` checkpoints and those of a multiple of `keep_every_steps` steps.

    `keep_last` None keeps all. Interim checkpoints go as soon as a later regular one is there, with all they hold.
    """
    commits = list_commits(root)
    regular = [(uri, commit) for uri, commit in commits if not commit.get("interim")]
    for uri, commit in commits:
        if commit.get("interim") and regular and commit["step"] < regular[-1][1]["step"]:
            storage.remove(storage.join(uri, COMMIT_NAME))
            storage.remove_tree(uri)
    if keep_last is not None:
        for uri, commit in regular[:-keep_last]:
            if not keep_every_steps or commit["step"] % keep_every_steps:
                retire(uri, commit)
        _remove_tensors_of_retired(root)


def retire(uri: str, commit: dict[str, Any]) -> None:
    """Makes a committed checkpoint one whose tables and state alone count."""
    kept = {
        name: file for name, file in commit["files"].items() if name == STATE_NAME or not name.endswith(".safetensors")
    }
    storage.write_bytes(storage.join(uri, TABLES_NAME), encode_record(commit | {"files": kept}))
    storage.remove(storage.join(uri, COMMIT_NAME))


def _remove_tensors_of_retired(root: str) -> None:
    """Those of a retirement that was cut short too."""
    for uri, sizes in list_directories(root):
        if TABLES_NAME in sizes and COMMIT_NAME not in sizes:
            for name in sizes:
                if name.endswith(".safetensors"):
                    storage.remove(storage.join(uri, name))
