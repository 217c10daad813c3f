"""The changes of one driver to a run's directory, safe from a driver that sleeps while another takes over its run.

    write(uri)    -> _staging/<attempt>/<random>/ -> lease checked -> moved to its name
    remove(uri)   -> lease checked -> moved to _staging/<attempt>/<random>/ -> deleted

A driver can be stopped between a check and the call that follows it. So each call needs something of the attempt's own
folder: the source of a move, or the folder that a removed file goes to. A successor takes that folder away before it
does anything else (`sweep`). A call of the sleeper that comes late then fails, and touches nothing of its successor's.
An object store has no rename: there a removal names the generation of the object that was seen before the check.
Cost: a read of the lease for each change; on an object store also a copy inside the bucket. A run without a lease makes
the same bytes whoever writes them, so its changes are plain ones.
"""

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field

from data import storage

STAGING = "_staging"


class LeaseLost(RuntimeError):
    """Another driver has taken over the run, so this driver must not change it any more."""

    exit_code = 1


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Changes to the files below `directory`, by one attempt. It can be sent to workers."""

    directory: str
    """URI of the run's directory"""
    name: str = field(default_factory=lambda: secrets.token_hex(8))
    """name of the attempt, which no other attempt has"""
    lease_uri: str | None = None
    """file that must contain `token`; None: the run has no lease, and nothing is checked"""
    token: str = ""
    """token of the lease"""

    @property
    def folder(self) -> str:
        """URI of the attempt's own folder."""
        return storage.join(self.directory, STAGING, self.name)

    def held(self) -> bool:
        """Whether the lease is still ours; True without a lease."""
        if self.lease_uri is None:
            return True
        try:
            return self.token.encode() in storage.read_bytes(self.lease_uri)
        except FileNotFoundError:
            return False

    def check(self) -> None:
        """Raises LeaseLost if another driver has taken over."""
        if not self.held():
            raise self.lost()

    def lost(self) -> LeaseLost:
        """The error of a driver whose run another driver has taken over."""
        return LeaseLost(
            f"lease lost: {self.lease_uri} is no longer ours, because another driver has taken over this run; this "
            "driver stops and leaves the files of that driver alone; wait until that driver ends, or end it and run "
            "the same line again"
        )

    def place(self) -> str:
        """URI of a new folder inside the attempt's own, for one change alone."""
        return storage.join(self.folder, secrets.token_hex(4))

    def write(self, uri: str, data: bytes) -> None:
        """Replaces the object at `uri`. Raises LeaseLost."""
        if self.lease_uri is None:
            storage.write_bytes(uri, data)
            return
        with self._swept_if_missing():
            staged = storage.join(self.place(), _last(uri))
            storage.write_bytes(staged, data)
            self.publish(staged, uri)

    def create(self, uri: str, data: bytes) -> None:
        """Creates the object at `uri`, or raises FileExistsError. Raises LeaseLost."""
        if self.lease_uri is None:
            storage.create_exclusive(uri, data)
            return
        with self._swept_if_missing():
            staged = storage.join(self.place(), _last(uri))
            storage.write_bytes(staged, data)
            self.check()
            storage.move(staged, uri, exclusive=True)

    def publish(self, staged: str, uri: str) -> None:
        """Moves a file of a `place` of this attempt to `uri`, and replaces what is there. Raises LeaseLost."""
        with self._swept_if_missing():
            self.check()
            storage.move(staged, uri)

    def remove(self, uri: str) -> None:
        """Removes the file at `uri`, if it is there. Raises LeaseLost."""
        if self.lease_uri is None:
            storage.remove(uri)
            return
        with self._swept_if_missing():
            storage.take_away(uri, self.place(), self.check)

    def remove_tree(self, uri: str) -> None:
        """Removes the folder at `uri` with all that is in it, if it is there. Raises LeaseLost."""
        if self.lease_uri is None:
            storage.remove_tree(uri)
            return
        with self._swept_if_missing():
            storage.take_away(uri, self.place(), self.check, is_folder=True)

    def sweep(self) -> None:
        """Takes away the folders of all other attempts, which must not change this run any more. Raises LeaseLost."""
        staging = storage.join(self.directory, STAGING)
        for name in storage.list_folders(staging):
            if name != self.name:
                self.remove_tree(storage.join(staging, name))

    @contextlib.contextmanager
    def _swept_if_missing(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            self.check()  # a successor has taken the attempt's folder away
            raise


def _last(uri: str) -> str:
    return uri.rstrip("/").rpartition("/")[2]
