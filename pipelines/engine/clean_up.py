"""What is left to do after a run's manifest is published, also by the next driver if the first one was killed there.

Nothing that a manifest does not list is ever needed again, and a manifest never changes. So any driver may remove it at
any time. `_staging` is removed last: its folder is the sign that something may be left, and without it (or another
folder or file of a running driver) one listing of the run's directory is all that a finished run costs.
"""

from contextlib import suppress

from data import storage
from data.changes import STAGING, Changes
from data.manifest import RUN_NAME, Manifest
from pipelines.engine.lease import lease_names

TEMPORARY = ".tmp"
"""ending of a file that a killed process was writing (data/storage/local.py)"""


def staged_log(changes: Changes) -> str:
    """URI of the run's log before the manifest is published."""
    return storage.join(changes.folder, RUN_NAME)


def publish_log(directory: str, staged: str) -> None:
    """Moves a staged log to its name, unless the run has a log."""
    with suppress(FileExistsError, FileNotFoundError):
        storage.move(staged, storage.join(directory, RUN_NAME), exclusive=True)


def clean_up(directory: str, manifest: Manifest) -> None:
    """Removes what the published manifest does not list: files of killed writes, staging, receipts and leases.

    Files of the datasets' folders, and files and folders of ours (with "_") in the directory itself, are looked at.
    Restores the log of a driver that was killed just after it published the manifest.
    """
    try:
        _clean_up(directory, manifest)
    except Exception as error:  # what stays is listed nowhere, and the next run of this line tries again
        if not (isinstance(error, OSError) or storage.what_failed(error)):
            raise


def _clean_up(directory: str, manifest: Manifest) -> None:
    names = [name for name, _ in storage.list_level(directory)]
    folders = [name for name in storage.list_folders(directory) if name.startswith("_")]
    files = [*lease_names(names), *(name for name in names if name.startswith("_") and name.endswith(TEMPORARY))]
    if not folders and not files:
        return
    if RUN_NAME not in names and STAGING in folders:
        for attempt in storage.list_folders(storage.join(directory, STAGING)):
            publish_log(directory, storage.join(directory, STAGING, attempt, RUN_NAME))
    listed = {shard.name for dataset in manifest.datasets.values() for shard in dataset.shards}
    for folder in sorted({name.partition("/")[0] for name in listed if "/" in name}):
        for name, _ in storage.list_files(storage.join(directory, folder)):
            if f"{folder}/{name}" not in listed:
                storage.remove(storage.join(directory, folder, name))
    for name in files:
        storage.remove(storage.join(directory, name))
    for folder in sorted(folders, key=lambda name: name == STAGING):
        # Another driver may still write here; it then fails, finds the manifest and uses it.
        with suppress(OSError):
            storage.remove_tree(storage.join(directory, folder))
