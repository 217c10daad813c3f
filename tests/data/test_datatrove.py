"""The heuristics decide as datatrove's do, given the same words and sentences, on thousands of real texts.

Reasons are ours, each with the ones of datatrove that it stands for. The one difference: where datatrove divides by
zero (a text without a word or a line) we have a reason.
"""

import json
import random
import subprocess
import sysconfig
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from data import heuristics
from data.words import split_words
from tests.programs.places import REPOSITORY, RIVAL_PYTHON

pytestmark = pytest.mark.slow

THEIRS = {
    "gopher_quality": {
        "gopher_short": ["gopher_short_doc"],
        "gopher_long": ["gopher_long_doc"],
        "gopher_word_length": ["gopher_below_avg_threshold", "gopher_above_avg_threshold"],
        "gopher_hashes": ["gopher_too_many_hashes"],
        "gopher_ellipses": ["gopher_too_many_ellipsis"],
        "gopher_bullets": ["gopher_too_many_bullets"],
        "gopher_ellipsis_lines": ["gopher_too_many_end_ellipsis"],
        "gopher_alphabetic": ["gopher_below_alpha_threshold"],
        "gopher_stop_words": ["gopher_enough_stop_words"],
    },
    "gopher_repetition": {
        "gopher_repetition": ["empty"],
        "gopher_repeated_paragraphs": ["dup_para_frac", "dup_para_char_frac"],
        "gopher_repeated_lines": ["dup_line_frac", "dup_line_char_frac"],
        **{f"gopher_top_{n}_gram": [f"top_{n}_gram"] for n in (2, 3, 4)},
        **{f"gopher_repeated_{n}_grams": [f"duplicated_{n}_n_grams"] for n in range(5, 11)},
    },
    "fineweb_quality": {
        "fineweb_empty": ["empty"],
        "fineweb_terminal_lines": ["line_punct_ratio"],
        "fineweb_short_lines": ["short_line_ratio"],
        "fineweb_repeated_lines": ["char_dup_ratio"],
        "fineweb_list": ["list_ratio"],
    },
    "c4_quality": {
        "c4_lorem_ipsum": ["lorem_ipsum"],
        "c4_curly_bracket": ["curly_bracket"],
        "c4_few_sentences": ["too_few_sentences"],
    },
}
RARE = {"gopher_long", "gopher_repetition", "fineweb_empty"}
"""reasons that may not fire on the texts of this machine"""


@cache
def texts() -> list[str]:
    """Real texts (docstrings and sources of the standard library, documents of packages) and what mutations make."""
    draw = random.Random(9)
    paths = sysconfig.get_paths()
    files = sorted(Path(paths["purelib"]).glob("*/METADATA")) + sorted(Path(paths["stdlib"]).glob("[a-m]*.py"))
    passages = []
    for file in files:
        text = file.read_text(encoding="utf-8", errors="ignore")
        blocks = text.split("\n\n")
        passages += ["\n\n".join(blocks[k : k + 12]) for k in range(0, min(len(blocks), 120), 12)]
    passages = draw.sample(passages, min(len(passages), 700))
    words = ["the", "of", "and", "to", "that", "with", "have", "value", "return", "...", "#", "-", "\u2022", "line"]
    mutations = [
        lambda text: "\n".join(draw.choices(text.splitlines() or ["x"], k=12)),
        lambda text: "\n\n".join(draw.choices(text.split("\n\n"), k=6)),
        lambda text: "\n".join("- " + line for line in text.splitlines()),
        lambda text: "\n".join(line + draw.choice(["...", "\u2026", "."]) for line in text.splitlines()),
        lambda text: " ".join(draw.choices(words, k=80)),
        lambda text: "# " * 30 + text,
        lambda text: text + " ..." * 40,
        lambda text: text.replace(" ", "") + text[:200],
        lambda text: " ".join(word[:2] for word in text.split()),
        lambda text: ". ".join(text.split(".")[:9]) + ". lorem ipsum dolor sit.",
        lambda text: "\n".join(f"{line.strip()} and so it is said." for line in text.splitlines()),
        lambda text: (
            "\n".join(f"{line.strip()} [12] we use cookies." for line in text.splitlines()) + "\nJavaScript is on."
        ),
        lambda text: (" ".join(text.split()[:60]) + " ") * 3,
        lambda text: " ".join(text.split()[: draw.randint(4, 12)] * 4) + " " + text,
        lambda text: " ".join(str(number) for number in range(200)) + text[:300],
        lambda text: "word \n" * 20 + text,
        lambda text: "Ein Satz ohne die Worte, die man hier erwartet, geht so weiter. " * 2 + text.upper(),
    ]
    sentence = "A plain sentence that ends as it should, number {} of them all, with the words of and to that have."
    made = [sentence.format(k) * 1 for k in range(3)] + [
        "\n".join(sentence.format(j * k) for j in range(9)) for k in range(9)
    ]
    made += ["\n".join(f"{'x' * 40}{k * j}." for k in range(20)) for j in range(1, 9)]
    german = ["Haus", "Baum", "gehen", "schnell", "Wasser", "lesen", "Stra\u00dfe", "heute"]
    made += [" ".join(draw.choices(german, k=60 + k)) for k in range(9)]
    odd = ["", " ", "\n\n\n", "\x00", "a", "\u2581", "\U0001f600" * 99, "x" * 5000, "word " * 100_500, "\u2026\n" * 50]
    return passages + [draw.choice(mutations)(text) for text in passages for _ in range(2)] + made + odd


@cache
def rival() -> dict[str, list[list[str | None]]]:
    if not RIVAL_PYTHON.exists():
        pytest.skip("datatrove is not here: make rival-env")
    given = {"texts": texts(), "words": [split_words(text) for text in texts()]}
    done = subprocess.run(
        [RIVAL_PYTHON, "-m", "tests.programs.datatrove_run"],
        cwd=REPOSITORY, input=json.dumps(given), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def ours(name: str, text: str) -> tuple[str | None, str]:
    if name == "c4_quality":
        objection, left, _ = heuristics.c4_quality(text, heuristics.C4Quality())
        return (objection[0] if objection else None), left
    ask = getattr(heuristics, name)
    limits = {
        "gopher_quality": "GopherQuality",
        "gopher_repetition": "GopherRepetition",
        "fineweb_quality": "FineWebQuality",
    }
    objection = ask(text, split_words(text), getattr(heuristics, limits[name])())
    return (objection[0] if objection else None), ""


@pytest.mark.parametrize("name", THEIRS)
def test_a_heuristic_decides_as_datatrove_does(name: str) -> None:
    verdicts = rival()[name]
    assert len(verdicts) >= 1000
    fired: Counter[str] = Counter()
    for text, (reason, error, left) in zip(texts(), verdicts, strict=True):
        mine, mine_left = ours(name, text)
        if reason == "error":
            assert error in ("ZeroDivisionError", "IndexError", "ValueError")
            continue
        assert (mine is None) == (reason is None), (mine, reason, text[:300])
        if mine is not None:
            assert reason in THEIRS[name][mine], text[:300]
            fired[mine] += 1
        elif name == "c4_quality":
            assert mine_left == left
    assert verdicts.count([None, "", ""]) >= 5 or name == "c4_quality"
    never = {reason for reason in THEIRS[name] if not fired[reason]}
    assert never <= RARE, fired
