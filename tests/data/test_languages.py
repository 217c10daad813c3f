"""The language of the text itself decides, whatever its first lines are."""

import json
import unicodedata

import pyarrow as pa
import pytest

from data import filters, languages, schema
from data.filters import Rules

ENGLISH = "This page tells people how the program is used, and what they should do when it does not work. "
GERMAN = "Diese Seite beschreibt, wie man das Programm benutzt und was man tut, wenn es nicht funktioniert. "
RUSSIAN = "Эта страница рассказывает, как пользоваться программой и что делать, если она не работает. "
JAPANESE = "このページでは、プログラムの使い方と、うまく動かないときに何をすべきかを説明します。"
HINDI = "यह पृष्ठ बताता है कि इस कार्यक्रम का उपयोग कैसे किया जाता है और इसके काम न करने पर क्या करना चाहिए। "
PERSIAN = "این صفحه می‌گوید که برنامه چگونه استفاده می‌شود و وقتی کار نمی‌کند چه باید کرد. "
VIETNAMESE = "Trang này cho biết cách sử dụng chương trình và những việc cần làm khi chương trình không hoạt động. "
LICENCE = "Copyright (c) 1993 by the authors. Permission is granted to copy and distribute this manual page. "
MENU = "ホーム 製品情報 会社概要 お問い合わせ 採用情報 サイトマップ ニュース\n"
CODE = 'for (i = 0; i < 10; i++) { printf("%d\\n", a[i] << 2); } /* 0x7f */ https://example.org/a/b?c=1\n'


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (LICENCE + JAPANESE * 30, "ja"),
        (LICENCE * 3 + JAPANESE * 300, "ja"),
        (MENU + ENGLISH * 10, "en"),
        (MENU * 2 + ENGLISH * 300 + MENU, "en"),
        (ENGLISH * 30 + GERMAN * 300, "de"),
        (GERMAN * 300 + ENGLISH * 30, "de"),
        ((RUSSIAN + CODE) * 50, "ru"),
        (CODE * 3 + HINDI * 20, "hi"),
        ("=" * 3000 + "\n" + PERSIAN * 5, "fa"),
        (ENGLISH.upper() * 20, "en"),
        ("A </s> b </s> " + GERMAN * 20, "de"),
        ("\0\n12 " * 500 + ENGLISH * 20, "en"),
        ("12.5\t0.7\n" * 999 + GERMAN + "12.5\t0.7\n" * 1500, "de"),
        (unicodedata.normalize("NFD", VIETNAMESE) * 3, "vi"),
        ("".join(chr(ord(letter) + 0xFEE0) if letter > " " else "\u3000" for letter in ENGLISH) * 3, "en"),
        ("\u00ad".join(GERMAN) * 3, "de"),
    ],
)  # fmt: skip
def test_the_text_decides_and_not_its_first_characters(text: str, code: str) -> None:
    language = languages.detect(text)
    assert language.code == code
    assert language.score >= 0.65
    assert language.share >= 0.5


def test_half_a_text_is_half_a_share() -> None:
    assert languages.detect(ENGLISH * 40 + RUSSIAN * 40).share == pytest.approx(0.5, abs=0.15)
    assert languages.detect(ENGLISH * 80).share == 1


@pytest.mark.parametrize("text", ["", " \n", "12 34", "\0\0", "\U0001f600 \u2764\ufe0f", "--- *** ---", "。、「」"])
def test_a_text_without_letters_has_no_language(text: str) -> None:
    assert languages.detect(text) == languages.Language(code="", score=0.0, share=0.0)


def test_score_and_share_are_recorded_for_documents_and_rejects() -> None:
    rows = [
        {
            "id": f"{number:032x}",
            "content_hash": schema.content_hash(text),
            "text": text,
            "source": "s",
            "metadata": json.dumps({"name": "a.txt", "record": {"n": number}}),
            "masked_spans": [],
        }
        for number, text in enumerate([LICENCE + JAPANESE * 30, ENGLISH * 20])
    ]
    rules = Rules(max_characters=10**6, languages=("ja",), min_language_score=0.65)
    kept, rejects, counts = filters.filter_table(pa.Table.from_pylist(rows, schema.TEXT), rules)
    (metadata,) = map(json.loads, kept["metadata"].to_pylist())
    assert metadata["record"] == {"n": 0}
    assert metadata["language"]["code"] == "ja"
    assert metadata["language"]["score"] >= 0.65
    assert 0.5 < metadata["language"]["share"] <= 1
    assert rejects["detail"].to_pylist()[0].startswith("en with score ")
    assert "in 100% of the text; ja from 0.65" in rejects["detail"].to_pylist()[0]
    assert not counts
