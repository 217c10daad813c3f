"""Configs as data: dataclass -> JSON -> dataclass, strictly, and the error for a field that does not exist.

A config is a frozen dataclass of numbers, strings, booleans, tuples and further dataclasses. Its JSON is hashed with
sorted keys and without the fields at their absent value (`data/absent.py`), so equal configs have equal fingerprints.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from data.absent import present, with_absent
from pipelines.engine.errors import UserError

ConfigT = TypeVar("ConfigT")
LARGEST = 2**63 - 1
"""largest whole number of 64 bits, which seeds and counts are computed in"""


def to_dict(config: Any) -> dict[str, Any]:
    """The whole config as JSON types: a tuple becomes a list, a whole number in a float field becomes a float."""
    return typing.cast(dict[str, Any], json.loads(canonical_json(dataclasses.asdict(_typed(config)))))


def hashed(config: Any) -> dict[str, Any]:
    """The part of the config that a fingerprint covers: `to_dict` without the fields at their absent value."""
    return present(_typed(config))


def _typed(config: Any) -> Any:
    return TypeAdapter(type(config)).validate_json(canonical_json(dataclasses.asdict(config)))


def from_dict(kind: type[ConfigT], values: Mapping[str, Any], where: str) -> ConfigT:
    """Reads `values` as a `kind`. A field that declares an absent value and is not in `values` gets that value.

    Raises UserError, naming the field, if a field is unknown, missing or of a wrong type.
    """
    check_fields(kind, values, where)
    _check_texts(values, where)
    try:
        return TypeAdapter(kind).validate_json(json.dumps(with_absent(kind, values)), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        if first["type"] == "value_error":  # a sentence of ours, which begins with what was got
            raise UserError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from error
        got = "" if first["type"] == "missing" else f"got {first['input']!r:.100} for "
        raise UserError(f"{where}: {got}field {field!r}: {first['msg']}") from error


def _check_texts(value: Any, where: str, field: str = "") -> None:
    """Raises UserError, naming the field, for text at any depth that has a lone surrogate, as "\\ud800" in JSON."""
    if isinstance(value, Mapping):
        for name, entry in value.items():
            _check_texts(entry, where, f"{field}.{name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for entry in value:
            _check_texts(entry, where, field)
    elif isinstance(value, str):
        _check_value(value, f"{where}: {field}")


def check_fields(kind: Any, values: Mapping[str, Any], where: str, prefix: str = "") -> None:
    """Raises UserError for the first name in `values`, at any depth, that is not a field of `kind`."""
    if not isinstance(values, Mapping):
        raise UserError(
            f"{where}: got {values!r} for {prefix.rstrip('.') or 'the config'}; it must be an object of fields"
        )
    hints = typing.get_type_hints(kind)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    for name, value in values.items():
        if name not in fields:
            raise UserError(f"{where}: {no_such('field', prefix + name, [prefix + known for known in fields])}")
        if dataclasses.is_dataclass(fields[name]):
            check_fields(fields[name], value, where, f"{prefix}{name}.")


def check_values(config: Any, prefix: str = "") -> None:
    """Raises UserError, naming the field, for a value at any depth that no stage can take.

    These are whole numbers beyond 64 bits, seeds below 0, numbers that are not finite, and text that is not UTF-8.
    """
    for entry in dataclasses.fields(config):
        value, name = getattr(config, entry.name), prefix + entry.name
        if dataclasses.is_dataclass(value):
            check_values(value, f"{name}.")
        for single in value if isinstance(value, tuple) else (value,):
            _check_value(single, name)


def _check_value(value: Any, name: str) -> None:
    if isinstance(value, int):
        least = 0 if name.endswith("seed") else -LARGEST - 1
        if not least <= value <= LARGEST:
            allowed = "0 to 2**63 - 1" if least == 0 else "whole numbers of 64 bits"
            raise UserError(f"{name} is {_short(value)}; allowed are {allowed}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} is {value}; allowed are finite numbers")
    if isinstance(value, str) and not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise UserError(f"{name} is {value[:60]!a}, which is not UTF-8; write the text in UTF-8")


MOST_LISTED = 40
"""names that an error lists at most"""


def no_such(what: str, got: str, allowed: Iterable[str]) -> str:
    """ "no field 'vocab_sise'; did you mean 'vocab_size'?"

    If no allowed name is similar, it lists all of them, or of very many the most similar ones.
    """
    names = sorted(allowed)
    if close := difflib.get_close_matches(got, names, n=1, cutoff=0.6):
        return f"no {what} {got!r}; did you mean {close[0]!r}?"
    if len(names) > MOST_LISTED:
        nearest = difflib.get_close_matches(got, names, n=5, cutoff=0.0)
        return f"no {what} {got!r}; {len(names)} names are allowed, the most similar are {', '.join(nearest)}"
    return f"no {what} {got!r}; allowed: {', '.join(names) or 'none'}"


def same_names(what: str, got: Iterable[str], wanted: Iterable[str], where: str) -> None:
    """Raises UserError for a name in `got` that is not wanted, or for a wanted name that is missing."""
    got, wanted = list(got), list(wanted)
    for name in got:
        if name not in wanted:
            raise UserError(f"{where}: {no_such(what, name, wanted)}")
    if missing := [name for name in wanted if name not in got]:
        raise UserError(f"{where}: {what} {missing[0]!r} is missing; give all of {', '.join(wanted)}")


def texts(value: Any, where: str) -> tuple[str, ...]:
    """A JSON list of strings. Raises UserError for anything else."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f"{where}: got {_short(value)}; it must be a list of strings")
    return tuple(value)


def canonical_json(value: Any) -> str:
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise UserError(f"got a config with a number that is not finite ({error}); give a finite number") from error
    try:
        text.encode()
    except UnicodeEncodeError as error:  # bytes of a command line that are not UTF-8, or "\ud800" in JSON
        raise UserError(
            f"got a config with text that is not UTF-8 ({error.object[max(0, error.start - 20) : error.end]!a}); "
            "write the text in UTF-8"
        ) from error
    return text


def digest(value: Any, digits: int = 16) -> str:
    """The first `digits` hex digits of the sha256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:digits]


def differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The fields that changed, each as "name old -> new", sorted by name."""
    changes = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            changes += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            changes.append(f"{prefix}{name} {_short(old)} -> {_short(new)}")
    return changes


def _short(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 200:  # Python writes no number of thousands of digits
        return f"a number of about 10**{int(value.bit_length() * 0.30103)}"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
