"""Bytes at a URI, the same way in every store: read, write, create exclusively, list, remove.

    storage.read_bytes(uri) -> by_uri.py -> the `Store` that keeps the URI: local.py, gcs.py, memory.py

Everything the project stores passes through here. A write is all or nothing for its readers: locally a temporary file
is renamed (or, for an exclusive create, hard-linked) into place; an object store publishes an object whole by itself.
A full disk is a FullError.
"""

from data.storage.by_uri import (
    absolute,
    check_bucket,
    content,
    create_exclusive,
    download,
    exists,
    files_of,
    filesystem,
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
    read_bytes,
    read_range,
    read_threads,
    remove,
    remove_tree,
    what_failed,
    write_bytes,
)
from data.storage.store import FullError, join

__all__ = [
    "FullError",
    "absolute",
    "check_bucket",
    "content",
    "create_exclusive",
    "download",
    "exists",
    "files_of",
    "filesystem",
    "is_directory",
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
    "read_bytes",
    "read_range",
    "read_threads",
    "remove",
    "remove_tree",
    "what_failed",
    "write_bytes",
]
