"""Words are those of their script; sentences are cut as the plain pattern says; both in linear time."""

# ruff: noqa: RUF001 (letters of many scripts)
import re
import unicodedata

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from data import characters, words
from data.heuristics import GopherQuality, gopher_quality
from data.words import split_sentences, split_words

PLAIN = re.compile(
    "\u3002[.!?\u2026\u3002]*[\"'\u2019\u201d)\\]]*\\s*|(?<![.!?\u2026\u3002])[.!?\u2026\u3002]+[\"'\u2019\u201d)\\]]*(?:\\s+|$)"
)


def by_the_plain_pattern(text: str) -> list[str]:
    ends = [match.end() for match in PLAIN.finditer(text)]
    if not ends or ends[-1] < len(text):
        ends.append(len(text))
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False) if start < end]


@given(st.text(alphabet=".!?\u2026\u3002\"')] \n\tab", max_size=60))
def test_sentences_end_where_the_plain_pattern_ends_them(text: str) -> None:
    assert split_sentences(text) == by_the_plain_pattern(text)
    assert "".join(split_sentences(text)) == text


@pytest.mark.parametrize(
    "sentences",
    [
        ["यह एक वाक्य है। ", "यह दूसरा है।"],
        ["هل هذه جملة؟ ", "نعم."],
        ["یہ ایک جملہ ہے۔ ", "دوسرا۔"],
        ["这是一句话。", "这是第二句！", "「第三句。」", "3.14"],
        ["これは文です。\n", "次の文？"],
        ["ይህ ዓረፍተ ነገር ነው። ", "ሌላ።"],
        ["នេះជាប្រយោគ។ ", "មួយទៀត"],
    ],
)
def test_sentences_end_with_the_marks_of_their_script(sentences: list[str]) -> None:
    assert split_sentences("".join(sentences)) == sentences


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    ["." * 2_000_000 + "x", "?\"'" * 700_000 + "x", "a'" * 1_000_000, "." + ")" * 2_000_000 + "x", "\u3002?" * 500_000],
)
def test_a_document_that_is_made_to_be_slow_is_not(text: str) -> None:
    """A pattern that begins again at each dot of a run takes hours over a million of them."""
    assert split_sentences(text) == [text]
    assert split_words(text)


@pytest.mark.timeout(20)
def test_flags_and_marks_without_end_are_cut_in_linear_time() -> None:
    assert split_words("\U0001f1e9" * 300_001)[-2:] == ["\U0001f1e9\U0001f1e9", "\U0001f1e9"]
    assert len(split_words("a" + "\u0301\u0323" * 300_000)) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("हिंदी में लिखा है", ["हिंदी", "में", "लिखा", "है"]),
        ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),
        ("বাংলা ভাষা", ["বাংলা", "ভাষা"]),
        ("ผมรักภาษาไทย น้ำ", ["ผม", "รัก", "ภาษา", "ไทย", "น้ำ"]),
        ("ສະບາຍດີ ຂ້ອຍ", ["ສະບາຍດີ", "ຂ້ອຍ"]),
        ("ខ្ញុំស្រលាញ់", ["ខ្ញុំ", "ស្រលាញ់"]),
        ("ကျွန်တော်မြန်မာ", ["ကျွန်တော်", "မြန်မာ"]),
        ("我喜欢自然语言。3.14", ["我", "喜欢", "自然", "语言", "。", "3", ".", "14"]),
        ("私は日本語を話します", ["私", "は", "日本語", "を", "話", "し", "ます"]),
        ("한국어 문장입니다", ["한국어", "문장입니다"]),
        ("שָׁלוֹם עולם", ["שָׁלוֹם", "עולם"]),
        ("كِتَابٌ جميل", ["كِتَابٌ", "جميل"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        ("an ex\u00adample\u200b of", ["an", "example", "of"]),
        ("Tie\u0302\u0301ng l\u2019e\u0301te\u0301 3.14", ["Tiếng", "l\u2019été", "3", ".", "14"]),
        (
            "👩\u200d👩\u200d👧 ❤\ufe0f 🇫🇷 👍🏽 1\ufe0f\u20e3",
            ["👩\u200d👩\u200d👧", "❤\ufe0f", "🇫🇷", "👍🏽", "1\ufe0f\u20e3"],
        ),
        ("ꦧꦱ ᨠᩣᩁ", ["ꦧ", "ꦱ", "ᨠᩣ", "ᩁ"]),
    ],
)
def test_words_are_those_of_their_script(text: str, expected: list[str]) -> None:
    composed = [unicodedata.normalize("NFC", word) for word in expected]
    assert [unicodedata.normalize("NFC", word) for word in split_words(text)] == composed


@given(
    st.text(st.characters(exclude_categories=["Cs", "Cn", "Co"]), max_size=60),
    st.sampled_from(["", "e\u0301", "\u00ad"]),
)
def test_marks_elsewhere_change_no_word_of_a_plain_text(text: str, special: str) -> None:
    """The general way gives what the pattern for plain text gives."""
    assume(not words._special()[characters.points_of(text)].any())
    assume(unicodedata.is_normalized("NFC", text))
    plain = re.findall(r"\w+(?:['\u2019]\w+)*|[^\w\s]", text)
    assert split_words(text) == plain
    expected = [*plain, "é"] if special == "e\u0301" else plain
    assert split_words(f"{text} {special}") == expected


def test_hindi_and_tamil_prose_is_kept_by_gopher() -> None:
    hindi = "यह एक साधारण वाक्य है जो हिंदी में लिखा गया है और इसमें कई शब्द हैं। " * 9
    tamil = "இது தமிழில் எழுதப்பட்ட ஒரு எளிய வாக்கியம் ஆகும் மற்றும் இதில் பல சொற்கள் உள்ளன. " * 9
    for text, stop_words in ((hindi, ("है", "और")), (tamil, ("ஒரு", "மற்றும்"))):
        composed = tuple(unicodedata.normalize("NFD", word) for word in stop_words)
        assert gopher_quality(text, split_words(text), GopherQuality(stop_words=composed)) is None
