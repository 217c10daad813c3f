"""Bytes at a URI, by the same functions for every store: read, write, create exclusively, list, remove.

    storage.read_bytes(uri) -> by_uri.py -> the `Store` that keeps the URI: local.py, gcs.py, memory.py

Everything that the project stores passes through here. Readers see a write as a whole or not at all. On a local disk a
temporary file is renamed (or, for an exclusive create, hard-linked) into place; an object store publishes whole objects
by itself. A full disk raises FullError.
"""

from data.storage.by_uri import (
    absolute,
    check_bucket,
    check_pinned,
    content,
    create_exclusive,
    download,
    exists,
    filesystem,
    find_files,
    is_directory,
    is_relative,
    is_remote,
    is_shared,
    list_files,
    list_folders,
    list_level,
    local_path,
    move,
    open_input,
    open_pinned,
    read_bytes,
    read_range,
    read_threads,
    remove,
    remove_tree,
    take_away,
    what_failed,
    write_bytes,
)
from data.storage.pinned import Pinned
from data.storage.store import Found, FullError, is_glob, join

__all__ = [
    "Found",
    "FullError",
    "Pinned",
    "absolute",
    "check_bucket",
    "check_pinned",
    "content",
    "create_exclusive",
    "download",
    "exists",
    "filesystem",
    "find_files",
    "is_directory",
    "is_glob",
    "is_relative",
    "is_remote",
    "is_shared",
    "join",
    "list_files",
    "list_folders",
    "list_level",
    "local_path",
    "move",
    "open_input",
    "open_pinned",
    "read_bytes",
    "read_range",
    "read_threads",
    "remove",
    "remove_tree",
    "take_away",
    "what_failed",
    "write_bytes",
]
