"""python -m tests.benchmarks.personal_data: precision and recall of data/pii.py by class, as a table in Markdown.

    tests/data/personal_data/open.jsonl     lines that the rules may be improved on
    tests/data/personal_data/locked.jsonl   lines that were written before the rules and are only measured on

A line says which ranges of personal data it holds ("found"), and where it is from. Lines without personal data are
taken from real corpora of six kinds, or made up of what bug reports show. All personal data is made up or reserved. A
range counts as found if its class, its beginning and its end are right. The rivals are asked the same lines, for the
classes that they know; a rival that is not installed is left out.
"""

import importlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data import pii
from tests.programs.places import REPOSITORY

FOLDER = REPOSITORY / "tests" / "data" / "personal_data"
HALVES = ("open", "locked")
Find = Callable[[str], Iterable[tuple[str, int, int]]]
"""text -> (class, start, end) in characters"""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A labelled line."""

    text: str
    ranges: frozenset[tuple[str, int, int]]
    """(class, start, end) in characters"""
    corpus: str


@dataclass(frozen=True, kw_only=True)
class Score:
    """Counts of one class."""

    right: int
    missed: int
    wrong: int

    @property
    def precision(self) -> float:
        return self.right / (self.right + self.wrong) if self.right + self.wrong else 0.0

    @property
    def recall(self) -> float:
        return self.right / (self.right + self.missed) if self.right + self.missed else 0.0


def lines(half: str) -> list[Line]:
    return [_line(json.loads(row)) for row in (FOLDER / f"{half}.jsonl").read_text(encoding="utf-8").splitlines()]


def _line(row: dict[str, Any]) -> Line:
    ranges, place = set(), 0
    for name, value in row["found"]:
        start = row["text"].index(value, place)
        place = start + len(value)
        ranges.add((name, start, place))
    return Line(text=row["text"], ranges=frozenset(ranges), corpus=row["from"])


def scores(labelled: Sequence[Line], find: Find, classes: Sequence[str] = pii.CLASSES) -> dict[str, Score]:
    """The score of each class."""
    right: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for line in labelled:
        answer = {each for each in find(line.text) if each[0] in classes}
        wanted = {each for each in line.ranges if each[0] in classes}
        for counter, ranges in ((right, answer & wanted), (missed, wanted - answer), (wrong, answer - wanted)):
            counter.update(name for name, _, _ in ranges)
    return {name: Score(right=right[name], missed=missed[name], wrong=wrong[name]) for name in classes}


def ours(text: str) -> list[tuple[str, int, int]]:
    return pii.find(text, pii.CLASSES)


def rivals() -> Iterator[tuple[str, Find, tuple[str, ...]]]:
    """(name, search, classes that it knows) of each kept library that is installed."""
    try:
        recognizers = importlib.import_module("presidio_analyzer.predefined_recognizers")
    except ImportError:
        pass
    else:
        known = {
            "email": ("EMAIL_ADDRESS", recognizers.EmailRecognizer()),
            "ip": ("IP_ADDRESS", recognizers.IpRecognizer()),
            "iban": ("IBAN_CODE", recognizers.IbanRecognizer()),
            "card": ("CREDIT_CARD", recognizers.CreditCardRecognizer()),
            "phone": ("PHONE_NUMBER", recognizers.PhoneRecognizer()),
        }

        def presidio(text: str) -> Iterator[tuple[str, int, int]]:
            for name, (entity, recognizer) in known.items():
                for result in recognizer.analyze(text, [entity], None) or []:
                    yield name, result.start, result.end

        yield "Presidio's recognizers", presidio, tuple(known)
    try:
        phonenumbers = importlib.import_module("phonenumbers")
    except ImportError:
        return

    def numbers(text: str) -> Iterator[tuple[str, int, int]]:
        for match in phonenumbers.PhoneNumberMatcher(text, "US"):
            yield "phone", match.start, match.end

    yield "`phonenumbers`, region US", numbers, ("phone",)
    try:
        formatter = importlib.import_module("datatrove.pipeline.formatters.pii").PIIFormatter()
    except ImportError:
        return

    def datatrove(text: str) -> Iterator[tuple[str, int, int]]:
        for name, replacer in (("email", formatter.email_replacer), ("ip", formatter.ip_replacer)):
            for match in replacer.regex.finditer(text):
                if replacer.validator is None or replacer.validator(match.group(0)):
                    yield name, match.start(), match.end()

    yield "datatrove's PIIFormatter", datatrove, ("email", "ip")


def table() -> Iterator[str]:
    """Lines of the table."""
    yield "| who | class | precision, open | recall, open | precision, locked | recall, locked |"
    yield "|---|---|--:|--:|--:|--:|"
    labelled = {half: lines(half) for half in HALVES}
    for name, find, classes in [("`data/pii.py`", ours, pii.CLASSES), *rivals()]:
        by_half = {half: scores(labelled[half], find, classes) for half in HALVES}
        for kind in classes:
            figures = [
                figure for half in HALVES for figure in (by_half[half][kind].precision, by_half[half][kind].recall)
            ]
            yield f"| {name} | `{kind}` | {' | '.join(f'{figure:.3f}' for figure in figures)} |"


def counts() -> str:
    """The size of the set, in a sentence."""
    every = [line for half in HALVES for line in lines(half)]
    empty = Counter(line.corpus for line in every if not line.ranges)
    corpora = ", ".join(f"{count} from {corpus}" for corpus, count in empty.most_common() if corpus != "made up")
    return (
        f"{len(every)} lines, {len(lines('locked'))} of them locked; {sum(empty.values())} hold no personal data: "
        f"{corpora}, {empty['made up']} made up"
    )


def failures(half: str) -> Iterator[str]:
    """The lines of a half with a range that was missed or found wrongly."""
    for line in lines(half):
        answer = set(ours(line.text))
        for what, ranges in (("missed", line.ranges - answer), ("wrong", answer - line.ranges)):
            for name, start, end in sorted(ranges):
                yield f"{what} {name} {line.text[start:end]!r} in {line.text!r}"


if __name__ == "__main__":
    print(counts() + ".\n")
    print("\n".join(table()))
