"""Flags -> a dataclass, by tyro. A wrong flag or value is one line: what was got, what is allowed, what to do next.

This is the only file that uses what is private to tyro (pinned in requirements.txt): the hook of `tyro._errors` passes
what is wrong with a line before tyro prints a box about it, and `tyro._docstrings` reads the docstrings of fields.
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import tyro
from tyro import _docstrings, _errors

from pipelines.engine import config as configs
from pipelines.engine.errors import UserError

CommandT = TypeVar("CommandT")
KINDS = {"INT": "a whole number", "FLOAT": "a number", "STR": "text", "{None}": "None"}
"""tyro's word for a type -> ours"""


def parse(
    command: type[CommandT],
    words: Sequence[str],
    *,
    program: str,
    description: str | None,
    config: Sequence[Any] = (),
    instead: Mapping[str, str] | None = None,
) -> CommandT:
    """The dataclass `command` with the values of `words`; `--help` prints the flags and ends the process.

    `instead`: beginning of flags -> what is named in their place if several of them are missing. Raises UserError for
    an unknown or missing flag, and for a value of a wrong type or outside of the allowed ones.
    """

    def refuse(event: _errors.ParseErrorEvent) -> NoReturn:
        where = getattr(sys.exception(), "arg", "")  # the field whose dataclass refused the values
        raise UserError(_sentence(event, list(words), instead or {}, f"{program} --help", where)) from None

    with _errors.on_parse_error(refuse), _docstrings_without_breaks():
        return tyro.cli(command, args=list(words), prog=program, description=description, config=config)


@contextmanager
def _docstrings_without_breaks() -> Iterator[None]:
    """Inside, `--help` fills its lines: tyro would keep the breaks of an indented docstring."""
    read = _docstrings.get_field_docstring

    def filled(cls: type[Any], field_name: str, markers: tuple[Any, ...]) -> str | None:
        text = read(cls, field_name, markers)
        return None if text is None else " ".join(text.split())

    _docstrings.get_field_docstring = filled
    try:
        yield
    finally:
        _docstrings.get_field_docstring = read


def refuse_unknown(words: Sequence[str], flags: Sequence[str]) -> None:
    """Raises UserError, naming the most similar flag, for a word that is no flag. `flags` have underscores."""
    for word in words:
        if word.startswith("--"):
            name = word[2:].partition("=")[0].replace("-", "_")
            if name not in flags and name != "help":
                raise UserError(f"{configs.no_such('field', name, flags)} (a flag is -- and the name of the field)")


def _sentence(
    event: _errors.ParseErrorEvent, words: list[str], instead: Mapping[str, str], helped: str, where: object
) -> str:
    match event:
        case _errors.InvalidChoice(argument=argument, value=value, choices=choices):
            return f"got {value!r} for {_flag(argument)}; give one of {', '.join(choices)}{_or_leave_out(argument)}"
        case _errors.InstantiationFailure(argument=None, message=message):
            place = str(where).removeprefix("config").lstrip(".")  # a stage's config has flags without a prefix
            return f"{f'--{place}: ' if place else ''}{message}"
        case _errors.InstantiationFailure(argument=argument):
            given = _given(words, _flag(argument))
            return f"got {given} for {_flag(argument)}; give {_kind(argument)}{_or_leave_out(argument)}"
        case _errors.BadValue(argument=argument):
            return f"got {_flag(argument)} without a value; give {_kind(argument)} after it{_or_leave_out(argument)}"
        case _errors.MissingArgs(missing_arguments=missing):
            flags = [_flag(entry.arg) for entry in missing]
            for beginning, name in instead.items():
                if sum(flag.startswith(beginning) for flag in flags) > 1:
                    flags = [*(flag for flag in flags if not flag.startswith(beginning)), name]
            which = "it" if len(flags) == 1 else "all of them"
            return f"got no {', no '.join(flags)}; give {which}, as `{helped}` describes"
        case _errors.UnrecognizedArgs(tokens=tokens):
            return f"got {' '.join(tokens)!r}, which belongs to no flag; `{helped}` prints what each flag takes"
    return f"got {' '.join(words)!r}, which does not fit the flags; `{helped}` prints them"


def _flag(argument: Any) -> str:
    if argument.is_positional():
        return str(argument.field.intern_name).upper()
    return str(argument.lowered.name_or_flags[-1])


def _kind(argument: Any) -> str:
    """What the flag takes, in words: "a whole number", "None or text"."""
    text = str(argument.lowered.metavar or "a value").replace("|", " or ")
    for theirs, ours in KINDS.items():
        text = re.sub(rf"(?<!\w){re.escape(theirs)}(?!\w)", ours, text)
    return text


def _or_leave_out(argument: Any) -> str:
    default = argument.field.default
    if default is tyro.MISSING or default is tyro.MISSING_NONPROP:
        return ""
    return f", or leave it out (default: {default})"


def _given(words: list[str], flag: str) -> str:
    """The values that follow the flag on the line."""
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == flag.replace("_", "-"):
            rest = [value] if equals else []
            for further in () if equals else words[place + 1 :]:
                if further.startswith("--"):
                    break
                rest.append(further)
            return repr(" ".join(rest))
    return "a wrong value"
