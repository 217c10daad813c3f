"""Fields that can be added to a dataclass later: at its declared absent value, a field is neither hashed nor stored.

    @dataclass(frozen=True, kw_only=True)
    class Config:
        languages: tuple[str, ...] = absent(())

A fingerprint, a checkpoint's identity and a cache's digest leave out the fields that are at their absent value. So none
of them changes when a field is added, and a document that lacks the field means the absent value.

The declaration is an entry of the field's metadata under `ABSENT`. A package that may not import this module writes
`field(default=None, metadata={"absent": None})`. Absent values are plain: None, numbers, strings, booleans, tuples. A
nested dataclass declares its own fields, and is left out as a whole if all of its fields are left out.
"""

import dataclasses
import functools
import json
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar, cast

ABSENT = "absent"
"""key of a field's metadata, whose value is the field's absent value"""

T = TypeVar("T")
_NOT_DECLARED = object()


def absent(value: T) -> T:
    """A dataclass field: `value` is its default and its absent value."""
    return dataclasses.field(default=value, metadata={ABSENT: value})


def present(config: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not at their absent value, as JSON values (tuples become lists)."""
    return without_absent(type(config), json.loads(json.dumps(dataclasses.asdict(config))))


def without_absent(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object of a `kind` without the fields at their absent value. Names that are not fields are kept."""
    fields = _fields(kind)
    kept = {}
    for name, value in values.items():
        field = fields.get(name)
        if field is not None:
            value = _each(value, field.groups, without_absent)
            if value == field.absent or (field.is_group and value == {}):
                continue
        kept[name] = value
    return kept


def with_absent(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object of a `kind` with the absent value of every field that it lacks: the inverse of `without_absent`.

    A field that declares no absent value stays missing.
    """
    fields = _fields(kind)
    whole = {
        name: _each(value, fields[name].groups, with_absent) if name in fields else value
        for name, value in values.items()
    }
    for name, field in fields.items():
        if name in values:
            continue
        if field.absent is not _NOT_DECLARED:
            whole[name] = field.absent
        elif field.is_group:
            group = with_absent(field.groups[0], {})
            if len(group) == len(_fields(field.groups[0])):
                whole[name] = group
    return whole


class _Field(NamedTuple):
    absent: Any
    """absent value as JSON, or _NOT_DECLARED"""
    groups: tuple[type, ...]
    """dataclasses that the field's values may hold"""
    is_group: bool
    """whether the field's value is always a nested dataclass"""


@functools.cache
def _fields(kind: type) -> dict[str, _Field]:
    hints = typing.get_type_hints(kind)
    fields = {}
    for field in dataclasses.fields(kind):
        value = json.loads(json.dumps(field.metadata[ABSENT])) if ABSENT in field.metadata else _NOT_DECLARED
        hint = hints[field.name]
        fields[field.name] = _Field(value, _groups(hint), dataclasses.is_dataclass(hint))
    return fields


def _groups(hint: Any) -> tuple[type, ...]:
    """The dataclasses in a type such as `Group`, `Group | None` or `tuple[Group, ...]`."""
    if dataclasses.is_dataclass(hint):
        return (cast(type, hint),)
    return tuple(group for argument in typing.get_args(hint) for group in _groups(argument))


def _each(value: Any, groups: tuple[type, ...], change: Callable[[type, Mapping[str, Any]], dict[str, Any]]) -> Any:
    """The value with every nested dataclass changed, each as the first of `groups` that has all of its names."""
    if not groups:
        return value
    if isinstance(value, Mapping):
        fitting = (group for group in groups if value.keys() <= _fields(group).keys())
        return change(next(fitting, groups[0]), value)
    if isinstance(value, list | tuple):
        return [_each(entry, groups, change) for entry in value]
    return value
