"""The published quality heuristics of Gopher, C4 and FineWeb.

A check is a function of a text, its words and thresholds. It keeps the text, or returns a reason and what it found. The
default thresholds are the published ones. Given the same words and sentences, datatrove 0.10 decides the same
(tests/data/test_datatrove.py).
"""

import functools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data.repetition import Ngrams, repeated
from data.words import TERMINAL, split_lines, split_paragraphs, split_sentences, split_words

Objection = tuple[str, str]
"""(reason, what was found in the text)"""

# A word of these alone does not count: punctuation (of ASCII, and common others) and control characters.
_SYMBOLS = frozenset(
    "!\"#%&'()*+,-./:;<=>?@[\\]^_`{|}~"
    "\u2014\u201d\uff1a\uff05\uff11\u3008\u3001\u2501\u3010\u300c\u300d\uff0c\u3011\uff1b\u201c\u201e\u300a\u2019"
    "\u2236\u00b4\uff0e\u2013\uff08\uff1f\uff01\uff1a\uff04\uff5e\u00ab\u3009\u300b\uff09\u3002\u2026\u25ba\u00bb$"
) | frozenset(map(chr, [*range(32), *range(127, 160)]))


@dataclass(frozen=True, kw_only=True)
class GopherQuality:
    """Thresholds of the Gopher paper's quality filters (arXiv 2112.11446, A1.1)."""

    min_words: int = 50
    """smallest number of words; a word of punctuation alone does not count"""
    max_words: int = 100_000
    """largest number of words; a word of punctuation alone does not count"""
    min_mean_word_length: float = 3.0
    """smallest mean length of a word, in characters"""
    max_mean_word_length: float = 10.0
    """largest mean length of a word, in characters"""
    max_symbol_share: float = 0.1
    """largest number of hash signs for each word, and of ellipses for each word"""
    max_bullet_lines: float = 0.9
    """largest share of lines that begin with a bullet"""
    max_ellipsis_lines: float = 0.3
    """largest share of lines that end with an ellipsis"""
    min_alphabetic_words: float = 0.8
    """smallest share of words with a letter"""
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")
    """words of which a text needs at least `min_stop_words` different ones"""
    min_stop_words: int = 2
    """smallest number of different stop words"""


@dataclass(frozen=True, kw_only=True)
class GopherRepetition:
    """Thresholds of the Gopher paper's repetition filters (arXiv 2112.11446, table A1)."""

    lines: float = 0.3
    """largest share of lines that are repeated"""
    paragraphs: float = 0.3
    """largest share of paragraphs that are repeated"""
    line_characters: float = 0.2
    """largest share of characters in repeated lines"""
    paragraph_characters: float = 0.2
    """largest share of characters in repeated paragraphs"""
    top_2_gram: float = 0.20
    """largest share of characters in the most common 2-gram"""
    top_3_gram: float = 0.18
    """largest share of characters in the most common 3-gram"""
    top_4_gram: float = 0.16
    """largest share of characters in the most common 4-gram"""
    repeated_5_grams: float = 0.15
    """largest share of characters in repeated 5-grams; the share falls by 0.01 for each word more, up to 10-grams"""


@dataclass(frozen=True, kw_only=True)
class FineWebQuality:
    """Thresholds of FineWeb's own filters (arXiv 2406.17557, 3.6)."""

    min_terminal_lines: float = 0.12
    """smallest share of lines that end a sentence"""
    max_short_lines: float = 0.67
    """largest share of short lines"""
    short_line: int = 30
    """largest length of a short line, in characters"""
    max_repeated_line_characters: float = 0.01
    """largest share of characters in repeated lines"""
    max_lines_a_word: float = 0.3
    """largest number of line ends for each word"""


@dataclass(frozen=True, kw_only=True)
class C4Quality:
    """Rules of the C4 corpus (Raffel et al. 2020, section 2.2), which remove lines or reject the whole text."""

    min_sentences: int = 5
    """smallest number of sentences in the lines that are kept"""
    min_words_a_line: int = 3
    """smallest number of words of a line that is kept; words are cut at white space"""
    max_word_length: int = 1000
    """largest length of a word of a line that is kept, in characters"""
    terminal_lines_only: bool = True
    """whether to remove lines that do not end in . ? ! or a quotation mark"""


def gopher_quality(text: str, words: Sequence[str], limits: GopherQuality) -> Objection | None:
    telling = [word for word in words if not _SYMBOLS.issuperset(word)]
    count = len(telling)
    if count < limits.min_words:
        return "gopher_short", f"{count} words; at least {limits.min_words}"
    if count > limits.max_words:
        return "gopher_long", f"{count} words; at most {limits.max_words}"
    mean = sum(map(len, telling)) / count if count else 0.0
    if not limits.min_mean_word_length <= mean <= limits.max_mean_word_length:
        allowed = f"{limits.min_mean_word_length:g} to {limits.max_mean_word_length:g}"
        return "gopher_word_length", f"mean word length {mean:.2f}; {allowed}"
    for reason, symbols in (
        ("gopher_hashes", text.count("#")),
        ("gopher_ellipses", text.count("...") + text.count("\u2026")),
    ):
        if symbols / len(words) > limits.max_symbol_share:
            return reason, f"{symbols} in {len(words)} words; at most {limits.max_symbol_share:g} for each"
    lines = text.splitlines()
    bullets = sum(line.lstrip().startswith(("\u2022", "-")) for line in lines) / len(lines)
    if bullets > limits.max_bullet_lines:
        return "gopher_bullets", f"{bullets:.0%} of lines; at most {limits.max_bullet_lines:.0%}"
    ellipses = sum(line.rstrip().endswith(("...", "\u2026")) for line in lines) / len(lines)
    if ellipses > limits.max_ellipsis_lines:
        return "gopher_ellipsis_lines", f"{ellipses:.0%} of lines; at most {limits.max_ellipsis_lines:.0%}"
    alphabetic = sum(word.isalpha() or any(map(str.isalpha, word)) for word in words) / len(words)
    if alphabetic < limits.min_alphabetic_words:
        return "gopher_alphabetic", f"{alphabetic:.0%} of words; at least {limits.min_alphabetic_words:.0%}"
    stop_words = len(_composed(limits.stop_words).intersection(words))
    if stop_words < limits.min_stop_words:
        return "gopher_stop_words", f"{stop_words} different ones; at least {limits.min_stop_words}"
    return None


@functools.lru_cache(maxsize=8)
def _composed(words: tuple[str, ...]) -> frozenset[str]:
    """The words as split_words gives them."""
    return frozenset(part for word in words for part in split_words(word))


def gopher_repetition(text: str, words: Sequence[str], limits: GopherRepetition) -> Objection | None:
    if not text:
        return "gopher_repetition", "an empty text"
    paragraphs = split_paragraphs(text)
    lines = split_lines(text)
    for name, parts, most, most_characters in (
        ("paragraphs", paragraphs, limits.paragraphs, limits.paragraph_characters),
        ("lines", lines, limits.lines, limits.line_characters),
    ):
        count, characters = repeated(parts)
        if count / len(parts) > most:
            return f"gopher_repeated_{name}", f"{count / len(parts):.0%} of {name}; at most {most:.0%}"
        if characters / len(text) > most_characters:
            share = f"{characters / len(text):.0%} of characters; at most {most_characters:.0%}"
            return f"gopher_repeated_{name}", share
    spaced, joined = Ngrams(words, " "), Ngrams(words, "")
    for n, most in ((2, limits.top_2_gram), (3, limits.top_3_gram), (4, limits.top_4_gram)):
        share_ = spaced.most_common_characters(n) / len(text)
        if share_ > most:
            return f"gopher_top_{n}_gram", f"{share_:.0%} of characters; at most {most:.0%}"
    for n in range(5, 11):
        most = round(limits.repeated_5_grams - 0.01 * (n - 5), 6)
        share_ = joined.repeated_characters(n) / len(text)
        if share_ > most:
            return f"gopher_repeated_{n}_grams", f"{share_:.0%} of characters; at most {most:.0%}"
    return None


def fineweb_quality(text: str, words: Sequence[str], limits: FineWebQuality) -> Objection | None:
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return "fineweb_empty", "no line with a character that shows"
    terminal = sum(line.endswith(TERMINAL) for line in lines) / len(lines)
    if terminal < limits.min_terminal_lines:
        return "fineweb_terminal_lines", f"{terminal:.0%} of lines; at least {limits.min_terminal_lines:.0%}"
    short = sum(len(line) <= limits.short_line for line in lines) / len(lines)
    if short > limits.max_short_lines:
        return "fineweb_short_lines", f"{short:.0%} of lines; at most {limits.max_short_lines:.0%}"
    again = repeated(lines)[1] / len(text.replace("\n", ""))
    if again > limits.max_repeated_line_characters:
        allowed = f"at most {limits.max_repeated_line_characters:.0%}"
        return "fineweb_repeated_lines", f"{again:.1%} of characters; {allowed}"
    line_ends = text.count("\n") / max(len(words), 1)
    if line_ends > limits.max_lines_a_word:
        return "fineweb_list", f"{line_ends:.2f} line ends for each word; at most {limits.max_lines_a_word:g}"
    return None


_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_LINE_ENDINGS = (".", "?", "!", '"', "'", *(end for end in TERMINAL if not end.isascii()))
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


def c4_quality(
    text: str, limits: C4Quality, sentences: Callable[[str], Sequence[str]] = split_sentences
) -> tuple[Objection | None, str, Counter[str]]:
    """(objection, text that is left, number of removed lines by reason)."""
    kept: list[str] = []
    removed: Counter[str] = Counter()
    count = 0
    for whole in text.splitlines():
        line = whole.strip()
        words = line.split()
        if any(len(word) > limits.max_word_length for word in words):
            removed["c4_line_long_word"] += 1
            continue
        line = _CITATION.sub("", line)
        if limits.terminal_lines_only and (not line.endswith(_LINE_ENDINGS) or line.endswith("...")):
            removed["c4_line_not_terminal"] += 1
            continue
        if len(words) < limits.min_words_a_line:
            removed["c4_line_short"] += 1
            continue
        lowered = line.lower()
        if "lorem ipsum" in lowered:
            return ("c4_lorem_ipsum", "the words stand in it"), text, removed
        if "javascript" in lowered:
            removed["c4_line_javascript"] += 1
            continue
        if "{" in line:
            return ("c4_curly_bracket", "there is one in it"), text, removed
        if any(policy in lowered for policy in _POLICIES):
            removed["c4_line_policy"] += 1
            continue
        count += len(sentences(line))
        kept.append(line)
    if count < limits.min_sentences:
        return ("c4_few_sentences", f"{count} sentences; at least {limits.min_sentences}"), text, removed
    return None, "\n".join(kept).strip(), removed
