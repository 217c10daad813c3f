"""The checkpoints that are kept: the last k and every n-th. A retired one loses its tensors, never its record of rows.

A checkpoint is retired in three steps, and a kill may follow each of them: `TABLES` lists what stays, `COMMIT` is
removed, the tensors are removed. A directory with both records is still a whole checkpoint; a directory with `TABLES`
alone still counts for metrics and lineage. Cost: one listing, and one read for each checkpoint that is kept.
"""

from typing import Any

from data import storage
from data.changes import Changes
from training.checkpoints.records import (
    COMMIT_NAME,
    STATE_NAME,
    TABLES_NAME,
    encode_record,
    list_commits,
    list_directories,
)


def apply_retention(root: str, keep_last: int | None, keep_every_steps: int, changes: Changes | None = None) -> None:
    """Retires all but the last `keep_last` checkpoints and those of a multiple of `keep_every_steps` steps.

    `keep_last` None keeps all. An interim checkpoint is removed completely as soon as there is a later regular one.
    """
    changes = changes or Changes(directory=root)
    commits = list_commits(root)
    regular = [(uri, commit) for uri, commit in commits if not commit.get("interim")]
    for uri, commit in commits:
        if commit.get("interim") and regular and commit["step"] < regular[-1][1]["step"]:
            changes.remove(storage.join(uri, COMMIT_NAME))
            changes.remove_tree(uri)
    if keep_last is not None:
        for uri, commit in regular[:-keep_last]:
            if not keep_every_steps or commit["step"] % keep_every_steps:
                retire(uri, commit, changes)
        _remove_tensors_of_retired(root, changes)


def retire(uri: str, commit: dict[str, Any], changes: Changes) -> None:
    """Retires a committed checkpoint: only its tables and its state still count."""
    kept = {
        name: file for name, file in commit["files"].items() if name == STATE_NAME or not name.endswith(".safetensors")
    }
    changes.write(storage.join(uri, TABLES_NAME), encode_record(commit | {"files": kept}))
    changes.remove(storage.join(uri, COMMIT_NAME))


def _remove_tensors_of_retired(root: str, changes: Changes) -> None:
    """Removes the tensors of all retired checkpoints, also after a retirement that was cut short."""
    for uri, sizes in list_directories(root):
        if TABLES_NAME in sizes and COMMIT_NAME not in sizes:
            for name in sizes:
                if name.endswith(".safetensors"):
                    changes.remove(storage.join(uri, name))
