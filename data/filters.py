"""Filters: a document is kept, or rejected for one named reason. Pure: TEXT in, (TEXT, REJECTS) out.

A filter is a function (text) -> None to keep, or what it saw, for a person to read. The first that objects gives the
reason.
"""

import json
from collections.abc import Callable, Mapping

import pyarrow as pa

from data import schema

Filter = Callable[[str], str | None]


def not_empty(text: str) -> str | None:
    """Objects to a text without a character that shows."""
    return None if text.strip() else f"{len(text)} characters, all of them white space"


def at_most(characters: int) -> Filter:
    """Objects to a text of more characters than that."""

    def filter_(text: str) -> str | None:
        return f"{len(text)} characters; at most {characters}" if len(text) > characters else None

    return filter_


def filter_table(table: pa.Table, filters: Mapping[str, Filter]) -> tuple[pa.Table, pa.Table]:
    """(kept TEXT, REJECTS) of a TEXT table; `filters` maps the reason to its filter, in the order they are asked."""
    keep: list[bool] = []
    rejects = []
    for row in table.select(["id", "source", "metadata", "text"]).to_pylist():
        objection = next(
            ((reason, seen) for reason, ask in filters.items() if (seen := ask(row["text"])) is not None), None
        )
        keep.append(objection is None)
        if objection is not None:
            rejects.append(
                {
                    "id": row["id"],
                    "source": row["source"],
                    "name": str(json.loads(row["metadata"]).get("name", "")),
                    "reason": objection[0],
                    "detail": objection[1],
                    "content": row["text"].encode(),
                }
            )
    return table.filter(pa.array(keep, pa.bool_())), pa.Table.from_pylist(rejects, schema.REJECTS)
