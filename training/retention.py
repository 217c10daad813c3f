"""Which checkpoints stay: the last k and every n-th. What goes loses its tensors, never the record of its rows.

Retiring one is three steps, each of which a kill may follow: `TABLES` lists what stays, `COMMIT` goes, then the tensors
go. A directory with both is still a whole checkpoint; one with `TABLES` alone still counts for metrics and lineage.
"""

from data import storage
from training.records import (
    COMMIT_NAME,
    STATE_NAME,
    TABLES_NAME,
    encode_record,
    list_checkpoints,
    list_tables,
    read_commit,
)


def apply_retention(root: str, keep_last: int | None, keep_every_steps: int | None) -> None:
    """Retires all but the last `keep_last` checkpoints and those of a multiple of `keep_every_steps` steps.

    `keep_last` None keeps all. Interim checkpoints go as soon as a later regular one is there, with all they hold.
    """
    committed = [(uri, read_commit(uri)) for uri in list_checkpoints(root)]
    regular = [(uri, commit) for uri, commit in committed if commit is not None and not commit.get("interim")]
    for uri, commit in committed:
        if commit is not None and commit.get("interim") and regular and commit["step"] < regular[-1][1]["step"]:
            storage.remove(storage.join(uri, COMMIT_NAME))
            storage.remove_tree(uri)
    if keep_last is not None:
        for uri, commit in regular[:-keep_last]:
            if not keep_every_steps or commit["step"] % keep_every_steps:
                retire(uri)
    _finish(root)


def retire(uri: str) -> None:
    """Removes the tensors of a committed checkpoint; its tables and state stay."""
    commit = read_commit(uri)
    assert commit is not None, f"{uri} is no committed checkpoint"
    kept = {
        name: file for name, file in commit["files"].items() if name == STATE_NAME or not name.endswith(".safetensors")
    }
    storage.write_bytes(storage.join(uri, TABLES_NAME), encode_record(commit | {"files": kept}))
    storage.remove(storage.join(uri, COMMIT_NAME))


def _finish(root: str) -> None:
    """Removes tensors of retired checkpoints, also of those whose retiring was cut short."""
    for uri, _ in list_tables(root):
        names = [name for name, _ in storage.list_files(uri)]
        if TABLES_NAME in names and COMMIT_NAME not in names:
            for name in names:
                if name.endswith(".safetensors"):
                    storage.remove(storage.join(uri, name))
