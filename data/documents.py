"""JSON objects: those of users and earlier runs parsed, with an error that says what is wrong, and metadata written."""

import json
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from data.errors import UserError


def parse_object(content: bytes | str, where: str, advice: str) -> dict[str, Any]:
    """The JSON object in `content`. Raises UserError, which ends with `advice`, if there is none."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:  # ValueError: also not UTF-8, and endless integers
        raise UserError(f"{where} is not JSON ({error}); {advice}") from error
    if not isinstance(document, dict):
        raise UserError(f"{where} is JSON, but not an object of names and values; {advice}")
    return document


def lines_of(content: bytes) -> list[str]:
    """The lines of a UTF-8 file without their ends. Lines end at a newline only, not at U+2028, U+0085 or a form feed.

    A byte order mark is left out. Raises UnicodeDecodeError if the file is not UTF-8.
    """
    lines = content.decode("utf-8-sig").split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def take_field(record: dict[str, Any], field: str) -> Any:
    """Removes a field from the record and returns it; None if there is none.

    The field is a name, or names with dots between them.
    """
    if field in record or "." not in field:
        return record.pop(field, None)
    *path, last = field.split(".")
    inner: Any = record
    for name in path:
        inner = inner.get(name) if isinstance(inner, dict) else None
    return inner.pop(last, None) if isinstance(inner, dict) else None


def json_text(values: dict[str, Any]) -> str:
    """The values as strict JSON with sorted names. NaN, infinity and other types than JSON's become strings."""
    try:
        text = json.dumps(values, sort_keys=True, ensure_ascii=False, default=str, allow_nan=False)
    except (ValueError, TypeError):  # NaN or infinity; names of several types, which cannot be sorted
        text = json.dumps(_strict(values), sort_keys=True, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can hold only as an escape
        return json.dumps(json.loads(text), sort_keys=True)
    return text


def _strict(value: Any) -> Any:
    """The value with strings in place of what JSON has no notation for."""
    if isinstance(value, dict):
        return {str(name): _strict(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(entry) for entry in value]
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def rows_of(batch: pa.RecordBatch, fields: Sequence[str]) -> list[dict[str, Any]]:
    """The fields of each row. A time that Python has no value for (before year 1, after 9999) is kept as text."""
    columns = []
    for field in fields:
        try:
            columns.append(batch.column(field).to_pylist())
        except (ValueError, OverflowError):
            columns.append([_value_or_text(scalar) for scalar in batch.column(field)])
    return [dict(zip(fields, values, strict=True)) for values in zip(*columns, strict=True)]


def _value_or_text(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        if isinstance(scalar, pa.StructScalar):
            return {name: _value_or_text(value) for name, value in scalar.items()}
        if isinstance(scalar, pa.ListScalar):
            return [_value_or_text(value) for value in scalar.values]
        try:
            text = str(scalar.cast(pa.string()).as_py())
        except UnicodeDecodeError:  # the writer did not check it
            return scalar.as_buffer().to_pybytes().decode(errors="backslashreplace")
        return text.removeprefix("<value out of range: ").removesuffix(">")
