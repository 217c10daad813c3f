"""Filters: a document is kept, perhaps rewritten, or rejected for one reason. Pure: TEXT in, (TEXT, REJECTS) out.

    word list -> length, language -> heuristics (sharing a text's words) -> personal data -> classifiers

The first rule that objects gives the reason. A rewritten document (C4's lines, redaction) has a new content_hash and
its old id. Rewrites are counted, and the counts are returned beside the tables. The detected language, its score and
its share of the text become metadata of a kept document.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import re2

from data import classifier, folding, heuristics, languages, pii, schema
from data.documents import json_text
from data.errors import UserError
from data.heuristics import Objection
from data.words import edges, split_words, unspaced, unspaced_letters

WORDS_A_PATTERN = 400
Treatment = Literal["keep", "redact", "drop"]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Which filters are on. A filter that is not named is off."""

    max_characters: int
    gopher_quality: heuristics.GopherQuality | None = None
    gopher_repetition: heuristics.GopherRepetition | None = None
    c4: heuristics.C4Quality | None = None
    fineweb: heuristics.FineWebQuality | None = None
    languages: tuple[str, ...] = ()
    min_language_score: float = 0.0
    words: tuple[str, ...] = ()
    pii: dict[str, Treatment] = field(default_factory=dict)
    """class of personal data -> what is done with it; a class that is not named is kept"""
    classifiers: tuple[tuple[str, float], ...] = ()
    """(URI of a classifier, smallest score of a text that is kept)"""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.pii if name not in pii.CLASSES]:
            raise UserError(
                f"got the classes of personal data {', '.join(unknown)}; there are {', '.join(pii.CLASSES)}: name "
                "one of them"
            )
        if wrong := {value for value in self.pii.values() if value not in get_args(Treatment)}:
            raise UserError(
                f"got {', '.join(map(repr, wrong))} for personal data; allowed are {', '.join(get_args(Treatment))}: "
                "choose one of them"
            )


def filter_table(table: pa.Table, rules: Rules) -> tuple[pa.Table, pa.Table, Counter[str]]:
    """(kept TEXT, REJECTS, number of rewrites by kind) of a TEXT table."""
    texts: list[str] = table["text"].to_pylist()
    spans = table["masked_spans"].to_pylist()
    worded = _holding(table["text"], rules.words)
    suspects = set(pii.candidates(table["text"], [name for name, how in rules.pii.items() if how != "keep"]))
    changed: dict[int, tuple[str, list[dict[str, int]]]] = {}
    detected: dict[int, languages.Language] = {}
    counts: Counter[str] = Counter()
    rejects: list[tuple[int, Objection]] = []
    for row, text in enumerate(texts):
        if worded is not None and worded[row]:
            rejects.append((row, ("word_list", "it holds a word of the list")))
            continue
        objection = _size(text, rules)
        if objection is None and rules.languages:
            detected[row] = languages.detect(text)
            objection = _language_objection(detected[row], rules)
        if objection is not None:
            rejects.append((row, objection))
            continue
        objection, left, removed = _judge(text, rules)
        if objection is None and left != text and spans[row]:
            raise UserError(
                f"document {table['id'][row].as_py()} has masked spans, whose places are lost if a rule removes lines; "
                "run filter_text before decontaminate_text, or without --c4"
            )
        kept_spans = spans[row]
        if objection is None and (row in suspects or left != text):
            objection, left, kept_spans, redacted = _personal(left, spans[row], rules)
            removed += redacted
        if objection is not None:
            rejects.append((row, objection))
            continue
        counts += removed
        if left != text:
            changed[row] = (left, kept_spans)
    keep = np.ones(len(texts), bool)
    keep[[row for row, _ in rejects]] = False
    for uri, least in rules.classifiers:
        rows = np.flatnonzero(keep).tolist()
        left_texts = [changed[row][0] if row in changed else texts[row] for row in rows]
        for row, score in zip(rows, classifier.load(uri).score(left_texts).tolist(), strict=True):
            if score < least:
                rejects.append((row, ("classifier", f"score {score:.3f}; at least {least:g}")))
                keep[row] = False
    rejects.sort()
    rewritten = _with_languages(_rewritten(table, changed), detected)
    return rewritten.filter(pa.array(keep)), _rejects(table, texts, rejects), counts


def _size(text: str, rules: Rules) -> Objection | None:
    if not text.strip():
        return "empty", f"{len(text)} characters, all of them white space"
    if len(text) > rules.max_characters:
        return "too_long", f"{len(text)} characters; at most {rules.max_characters}"
    return None


def _judge(text: str, rules: Rules) -> tuple[Objection | None, str, Counter[str]]:
    """(objection, text that is left, number of removed lines by reason), by the heuristics."""
    nothing: Counter[str] = Counter()
    removed = nothing
    if rules.gopher_quality or rules.gopher_repetition or rules.fineweb:
        words = split_words(text)
        if rules.gopher_repetition and (
            objection := heuristics.gopher_repetition(text, words, rules.gopher_repetition)
        ):
            return objection, text, nothing
        if rules.gopher_quality and (objection := heuristics.gopher_quality(text, words, rules.gopher_quality)):
            return objection, text, nothing
    left = text
    if rules.c4:
        objection, left, removed = heuristics.c4_quality(text, rules.c4)
        if objection:
            return objection, text, nothing
    if rules.fineweb and (
        objection := heuristics.fineweb_quality(left, words if left == text else split_words(left), rules.fineweb)
    ):
        return objection, text, nothing
    return None, left, removed


def _language_objection(detected: languages.Language, rules: Rules) -> Objection | None:
    if detected.code in rules.languages and detected.score >= rules.min_language_score:
        return None
    wanted = f"{', '.join(rules.languages)} from {rules.min_language_score:g}"
    if not detected.code:
        return "language", f"no letters; {wanted}"
    return "language", f"{detected.code} with score {detected.score:.2f} in {detected.share:.0%} of the text; {wanted}"


def _with_languages(table: pa.Table, detected: dict[int, languages.Language]) -> pa.Table:
    """The table with the languages of its documents (row -> language) in their metadata, under `language`."""
    if not detected:
        return table
    metadata = table["metadata"].to_pylist()
    for row, language in detected.items():
        metadata[row] = json_text(json.loads(metadata[row]) | {"language": asdict(language)})
    kind = schema.TEXT.field("metadata")
    return table.set_column(table.schema.get_field_index("metadata"), kind, pa.array(metadata, kind.type))


def _personal(
    text: str, spans: list[dict[str, int]], rules: Rules
) -> tuple[Objection | None, str, list[dict[str, int]], Counter[str]]:
    ranges = pii.find(text, [name for name, how in rules.pii.items() if how != "keep"])
    dropped = [name for name, _, _ in ranges if rules.pii[name] == "drop"]
    if dropped:
        return (f"pii_{dropped[0]}", f"{len(dropped)} found"), text, spans, Counter()
    counts = Counter(f"pii_{name}_redacted" for name, _, _ in ranges)
    return None, pii.redact(text, ranges), pii.shifted(spans, ranges), counts


def _holding(texts: pa.ChunkedArray, words: Sequence[str]) -> np.ndarray | None:
    """bool [texts]: whether a text holds one of the words, as a whole word in any folding. None for no words."""
    if not words:
        return None
    listed = sorted({folded for word in words if (folded := folding.fold_text(word).strip())})
    folded = pa.chunked_array([folding.fold(block) for block in folding.blocks(texts)], pa.large_string())
    held = np.zeros(len(texts), bool)
    for pattern in _patterns([word for word in listed if not unspaced(word)]):
        # beside a character of a script without spaces a word begins or ends too
        edge = rf"[^\pL\pM\pN_]|[{unspaced_letters()}]"
        flags = pc.match_substring_regex(folded, rf"(?:^|{edge})(?:{pattern})(?:$|{edge})")
        held |= flags.to_numpy()
    # no spaces say where these words begin and end: ICU does, where they may be
    without_spaces = [word for word in listed if unspaced(word)]
    for pattern in _patterns(without_spaces):
        for row in np.flatnonzero(pc.match_substring_regex(folded, pattern).to_numpy() & ~held).tolist():
            held[row] = _cut_out(folded[row].as_py(), without_spaces)
    return held


def _patterns(words: Sequence[str]) -> Iterator[str]:
    for start in range(0, len(words), WORDS_A_PATTERN):
        yield "|".join(map(_pattern, words[start : start + WORDS_A_PATTERN]))


def _pattern(word: str) -> str:
    """Matches the word with either apostrophe and with any white space between the words of a phrase."""
    apart = ["['\u2019]".join(map(re2.escape, re.split("['\u2019]", part))) for part in word.split()]
    return r"\s+".join(apart)


def _cut_out(text: str, words: Sequence[str]) -> bool:
    """Whether one of the words begins and ends where words of the text do."""
    places = edges(text)
    for word in words:
        start = text.find(word)
        while start >= 0:
            if start in places and start + len(word) in places:
                return True
            start = text.find(word, start + 1)
    return False


def _rewritten(table: pa.Table, changed: dict[int, tuple[str, list[dict[str, int]]]]) -> pa.Table:
    if not changed:
        return table
    columns: dict[str, list[Any]] = {name: table[name].to_pylist() for name in ("text", "content_hash", "masked_spans")}
    for row, (text, spans) in changed.items():
        columns["text"][row], columns["masked_spans"][row] = text, spans
        columns["content_hash"][row] = schema.content_hash(text)
    for name, values in columns.items():
        kind = schema.TEXT.field(name)
        table = table.set_column(table.schema.get_field_index(name), kind, pa.array(values, kind.type))
    return table


def _rejects(table: pa.Table, texts: list[str], rejects: list[tuple[int, Objection]]) -> pa.Table:
    rows = (
        table.select(["id", "source", "metadata"]).take(pa.array([row for row, _ in rejects], pa.int64())).to_pylist()
    )
    return pa.Table.from_pylist(
        [
            {
                "id": document["id"],
                "source": document["source"],
                "name": str(json.loads(document["metadata"]).get("name", "")),
                "reason": reason,
                "detail": detail,
                "content": texts[row].encode(),
            }
            for document, (row, (reason, detail)) in zip(rows, rejects, strict=True)
        ],
        schema.REJECTS,
    )
