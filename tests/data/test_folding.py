"""Texts that look alike are one in every comparison, and words are those of their script."""

# ruff: noqa: RUF001 (letters of many scripts)
import random
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import characters, dedup, filters, folding, minhash
from tests.data.test_decontaminate import hits
from tests.data.test_dedup import BANDS, deduplicated

ALIKE = {
    "NFD": ("Café à la crème", unicodedata.normalize("NFD", "Café à la crème")),
    "full width": ("ABC 123, x", "ＡＢＣ\u3000１２３，\u3000ｘ"),
    "ligatures": ("find the flow of the office", "\ufb01nd the \ufb02ow of the o\ufb03ce"),
    "soft hyphens": ("an example of hyphens", "an ex\u00adam\u00adple of hy\u00adphens"),
    "zero width": ("some hidden characters", "so\u200bme hid\u200cden\u2060 cha\ufeffracters\u200e"),
    "variation selectors": ("\u2764 hearts and 葛", "\u2764\ufe0f hearts and 葛\U000e0100"),
    "letter case": ("İSTANBUL", "istanbul"),
    "a lower case of Turkish dotted I": ("İstanbul", "i\u0307stanbul"),
    "final sigma": ("ΟΔΥΣΣΕΥΣ", "Οδυσσευς"),
    "sharp s": ("STRASSE", "Straße"),
    "tatweel": ("كتاب جميل", "كـــتاب جمـيل"),
    "harakat": ("كتاب جميل", "كِتَابٌ جَمِيلٌ"),
    "Hebrew points": ("שלום עולם", "שָׁלוֹם עוֹלָם"),
    "Vietnamese": ("tiếng Việt", unicodedata.normalize("NFD", "Tiếng Việt")),
    "jamo": ("한국어 문장", unicodedata.normalize("NFD", "한국어 문장")),
    "half-width katakana": ("パソコンとガイド", "ﾊﾟｿｺﾝとｶﾞｲﾄﾞ"),
    "nukta": ("क़लम की ज़रूरत", "\u0958लम की \u095bरूरत"),
    "Bengali": ("কো", "ক\u09c7\u09be"),
    "Tamil": ("கொடி", "க\u0bc6\u0bbeடி"),
    "emoji": ("👩\u200d👩\u200d👧 family", "👩👩👧 family"),
}


@pytest.mark.parametrize("name", ALIKE)
def test_texts_that_look_alike_are_equal_in_every_comparison(name: str) -> None:
    plain, other = ALIKE[name]
    assert plain != other
    assert folding.fold_text(plain) == folding.fold_text(other)
    kept, clusters = deduplicated([[plain], [other]])
    assert (kept, [row["reason"] for row in clusters]) == ([plain], [dedup.EXACT])
    around = " ".join(f"w{number}" for number in range(20))
    kept, clusters = deduplicated([[f"{around} {plain} {around}", f"x {around} {other} {around}"]], BANDS)
    assert [row["reason"] for row in clusters] == [dedup.NEAR]
    assert kept == [f"{around} {plain} {around}"]  # never the folded form
    words = " ".join(f"w{number}" for number in range(12))
    (hit,) = hits([f"before {words} {other} {words} after"], [f"{words} {plain} {words}"])
    assert (hit["start"], hit["end"]) == (7, 7 + len(f"{words} {other} {words}"))
    listed = plain.split()[0].strip(",")
    if listed.isalpha():
        assert holds(f"before {other}, after", listed)


def holds(text: str, word: str) -> bool:
    held = filters._holding(pa.chunked_array([[text]]), (word,))
    assert held is not None
    return bool(held[0])


@pytest.mark.parametrize(
    ("text", "word", "held"),
    [
        ("यह कमीज़ है", "कम", False),
        ("यह कम है", "कम", True),
        ("ฉันมีแมวสองตัว", "แมว", True),
        ("ฉันดื่มกาแฟ", "กา", False),
        ("我有一只猫。", "猫", True),
        ("我看到了熊猫。", "猫", False),
        ("私は日本語を話します", "日本語", True),
        ("ខ្ញុំស្រលាញ់ភាសាខ្មែរ", "ស្រលាញ់", True),
        ("bad\u0301 luck", "bad", False),
        ("BAD luck", "bad", True),
        ("這是BAD網站", "bad", True),
        ("แบดbadแมว", "bad", True),
        ("badですね", "bad", True),
        ("badly", "bad", False),
        ("the bad\n  luck", "bad luck", True),
        ("bad\u00a0luck", "bad luck", True),
        ("I don\u2019t", "don't", True),
        ("I don't", "don\u2019t", True),
        ("ᨠᩣᩁᨣᩢᩁ", "ᨣᩢ", True),
        ("ᨠᩣᩁᨣᩢᩁ", "ᨣ", False),
    ],
)
def test_a_listed_word_is_a_whole_word_of_its_script(text: str, word: str, held: bool) -> None:
    assert holds(text, word) is held


SENTENCES = {
    "Thai": "ประเทศไทยเป็นประเทศที่ตั้งอยู่ในเอเชียตะวันออกเฉียงใต้และมีประชากรมากกว่าหกสิบล้านคนน้ำในแม่น้ำเจ้าพระยาไหลลงสู่อ่าวไทย",
    "Lao": "ປະເທດລາວເປັນປະເທດທີ່ຕັ້ງຢູ່ໃນອາຊີຕາເວັນອອກສຽງໃຕ້ແລະມີປະຊາກອນຫຼາຍກວ່າເຈັດລ້ານຄົນນະຄອນຫຼວງຂອງປະເທດລາວແມ່ນວຽງຈັນ",
    "Khmer": "ប្រទេសកម្ពុជាជាប្រទេសមួយនៅក្នុងតំបន់អាស៊ីអាគ្នេយ៍ហើយមានប្រជាជនជាងដប់ប្រាំលាននាក់រាជធានីរបស់ប្រទេសកម្ពុជាគឺភ្នំពេញ",
    "Burmese": "မြန်မာနိုင်ငံသည်အရှေ့တောင်အာရှတွင်တည်ရှိသောနိုင်ငံဖြစ်ပြီးလူဦးရေငါးဆယ်သန်းကျော်ရှိသည်နေပြည်တော်သည်မြို့တော်ဖြစ်သည်",
    "Chinese": "中国位于亚洲东部,人口超过十四亿,首都是北京,长江是中国最长的河流",
    "Javanese": "ꦧꦱꦗꦮꦲꦤꦏꦧꦱꦏꦁꦢꦶꦲꦁꦒꦺꦴ",
}


@pytest.mark.parametrize("script", SENTENCES)
def test_a_sentence_without_spaces_is_found_inside_a_longer_one(script: str) -> None:
    sentence = SENTENCES[script]
    assert minhash.word_counts(pa.array([sentence]))[0] >= 13
    text = f"{sentence[:9]} {sentence}{sentence[:9]}"
    (hit,) = hits(["other text", text], [sentence])
    assert text[hit["start"] : hit["end"]].startswith(sentence[:20])
    paragraph = (sentence + " ") * 3
    _, clusters = deduplicated([[paragraph * 2, paragraph * 2 + "x"]], BANDS)
    assert [row["reason"] for row in clusters] == [dedup.NEAR]


@pytest.mark.parametrize("script", SENTENCES)
def test_words_and_their_places_are_the_same_in_one_text_and_in_many(script: str) -> None:
    text = f"x{SENTENCES[script]}, {ALIKE['jamo'][1]} {ALIKE['harakat'][1]} y"
    hashes, offsets = minhash.shingle_hashes(pa.array(["a", text, ALIKE["NFD"][1]]), 3)
    again, places = minhash.shingle_places(text, 3)
    assert hashes[offsets[1] : offsets[2]].tolist() == again.tolist()
    for value, (start, end) in zip(again.tolist()[:2], places.tolist()[:2], strict=True):
        assert value in minhash.shingle_places(text[start:end], 3)[0].tolist()


def test_korean_words_are_between_spaces_and_a_mark_belongs_to_its_letter() -> None:
    counts = minhash.word_counts(pa.array(["한국어 문장입니다", "हिंदी में", "か\u309aか\u309a", "ꜱʟᴀɴᴛ ꞌword", "𠀀𠀁"]))
    assert counts.tolist() == [2, 2, 2, 2, 2]


def test_every_character_is_folded_alike_by_itself_and_by_way_of_normal_forms() -> None:
    _, every = characters.all_characters()
    once = folding.fold(every)
    assert once.equals(folding._wholly(every))
    assert folding.fold(once).equals(once)
    assert folding.fold(pa.array(["", "aB"])).to_pylist() == ["", "ab"]


def test_text_of_plain_letters_is_folded_by_its_lower_case_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """English, French, Vietnamese, Russian, Chinese and Korean take the short way."""
    folding.fold_text("é")  # makes the tables
    monkeypatch.setattr(folding, "_wholly", lambda texts: pytest.fail(str(texts)))
    texts = [
        "It\u2019s \u201cfine\u201d\u2026\u00a0x\u2122",
        "déjà vu, Tiếng Việt",
        "Привет",
        "中文",
        "한국어",
        "Größe",
    ]
    folded = folding.fold(pa.array(texts)).to_pylist()
    assert folded == ["it\u2019s \u201cfine\u201d... xtm", "déjà vu, tiếng việt", "привет", "中文", "한국어", "grösse"]


NOTED = np.flatnonzero(folding._table()[0]).tolist()


@settings(deadline=None, max_examples=100)
@given(st.lists(st.one_of(st.sampled_from(NOTED).map(chr), st.characters(exclude_categories=["Cs"])), max_size=12))
def test_the_folded_form_is_one_whichever_way_it_is_made(parts: list[str]) -> None:
    text = "".join(parts)
    folded = folding.fold_text(text)
    assert folded == folding._wholly(pa.array([text]))[0].as_py() == folding.fold_text(folded)
    assert folding.fold(pa.array(["é", text, "ß"]))[1].as_py() == folded
    again, start, end = folding.fold_with_places(text)
    assert (again, len(start), len(end)) == (folded, len(folded), len(folded))
    assert (start < end).all()
    assert (np.diff(start) >= 0).all()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", ["\u0301", "ก", "我", "က", "\ufdfa", "\u00ad", "か\u309a", "👩\u200d", "\u0301\u0323"])
def test_a_document_that_is_made_to_be_slow_is_not(text: str) -> None:
    long = text * 50_000
    assert len(minhash.shingle_hashes(pa.array([long, "x"]), 5)[1]) == 3
    assert not holds(long, "猫")


def test_marks_without_end_on_one_letter_are_folded_in_linear_time_and_alike() -> None:
    for unit in ("\u0301\u0323", "\u0301\u200d\u0323", "\uff9e\u0301"):
        text = f"xa{unit * 100_000}b c"
        folded, start, end = folding.fold_with_places(text)
        assert folded == folding.fold_text(text)
        assert len(folded) < 40
        assert (start[-1], end[-1]) == (len(text) - 1, len(text))


def test_lower_case_of_turkish_letters_without_dots_stays() -> None:
    assert folding.fold_text("ISPARTA") == "isparta" != folding.fold_text("Isparta".replace("I", "ı"))


def test_shuffled_marks_are_one_text() -> None:
    draw = random.Random(3)
    marks = ["\u0301", "\u0323", "\u0302"]
    text = "".join("e" + "".join(marks[:2]) for _ in range(9))
    other = "".join("e" + "".join(draw.sample(marks[:2], 2)) for _ in range(9))
    assert folding.fold_text(text) == folding.fold_text(other)
