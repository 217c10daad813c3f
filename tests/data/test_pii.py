"""Personal data is found where it is, and what only looks like it stays."""

import hashlib
import time

import pyarrow as pa
import pytest

from data import pii
from tests.benchmarks import personal_data

LOCKED_SHA256 = "62c7ed1402701f9e03560c06ad48275c49e152a5f6d70ada1d5909140bf1f8c3"
FOUND = {
    "email": ["ann.lee+news@mail.firma.de", "A@b.co", "jane@counterexample.com"],
    "phone": ["+49 30 1234567", "+1 (415) 555-2671", "+442071838750", "(415) 555-2671", "415-555-2671", "415.555.2671"],
    "ip": ["8.8.8.8", "93.184.216.34", "2001:4860:4860::8888", "2001:4860:4860:0:0:0:0:8844"],
    "card": ["4111111111111111", "4111 1111 1111 1111", "5500-0000-0000-0004", "378282246310005", "6011111111111117"],
    "iban": ["DE89370400440532013000", "DE89 3704 0044 0532 0130 00", "GB29NWBK60161331926819"],
    "national_id": ["536-90-4399", "12345678Z", "390.533.447-05", "RCCMNL83S18D969H"],
}
NOT_FOUND = [
    "3f786850e387550fdab836ed7e6dc881de23001b",  # git
    "2024-11-24T13:15:34.123456", "2024-11-24 13:15", "1700000000123",  # times
    "550e8400-e29b-41d4-a716-446655440000",  # UUID
    "978-3-16-148410-0", "ISBN 9783161484100",
    "3.14159265358979", "1e-10", "0x7fffffffffff", "127.0.0.1", "10.0.0.7", "192.168.1.1", "0.0.0.0",
    "version 1.2.3.4", "v8.8.8.8", "8.8.8.8.8", "pkg-8.8.4.4", "999.8.8.8",
    "4111111111111112", "1234567812345678", "4111 1111-1111 1111", "41111111111111110000",
    "DE89370400440532013001", "000-12-3456", "666-12-3456", "912-12-3456", "536-00-4399", "12345678A",
    "user@localhost", "@decorator.name", "a@example.com", "a@mail.example.org", "git@",
    "std::vector<int>", "a::b::c", "12:34:56",
    "115-555-2671", "1234-555-26711", "+0 123 456 789", "(123) 45-6789", "dead:beef:cafe",
]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, many in FOUND.items() for text in many])
def test_what_is_personal_is_found_whole_in_a_sentence(name: str, text: str) -> None:
    for before, after in (("", ""), ("Stra\u00dfe \U0001f600 ", ", and so on."), ("(", ")"), ("=", "\n")):
        sentence = before + text + after
        assert pii.find(sentence, pii.CLASSES) == [(name, len(before), len(before) + len(text))]
        assert pii.candidates(pa.chunked_array([["nothing", sentence]]), pii.CLASSES) == [1]


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_only_looks_like_it_is_let_be(text: str) -> None:
    assert pii.find(f"see {text} there", pii.CLASSES) == []


@pytest.mark.parametrize(
    ("name", "before", "text", "after"),
    [
        ("card", "order 12 ", "4111 1111 1111 1111", ""),
        ("card", "12345 ", "4111111111111111", " 20"),
        ("card", "", "4111 1111 1111 1111", " 2027 123"),
        ("card", "no 7 ", "3782 822463 10005", " 12"),
        ("card", "4111 ", "4111 1111 1111 1111", " 1112"),
        ("iban", "", "AT61 1904 3002 3457 3201", " COBA DEFF"),
        ("iban", "AB12 ", "DE89 3704 0044 0532 0130 00", ""),
        ("iban", "", "FR14 2004 1010 0505 0001 3M02 606", " XX"),
    ],
)
def test_a_number_beside_other_numbers_is_found(name: str, before: str, text: str, after: str) -> None:
    matches = pii.find(before + text + after, [name])
    assert (name, len(before), len(before) + len(text)) in matches


def test_only_the_classes_asked_for_are_looked_for() -> None:
    assert pii.find("a@firma.de 8.8.8.8", ["ip"]) == [("ip", 11, 18)]
    assert pii.find("a@firma.de", []) == []


def test_redaction_replaces_each_by_its_class() -> None:
    text = "a@firma.de, 8.8.8.8 und +49 30 1234567."
    assert pii.redact(text, pii.find(text, pii.CLASSES)) == "[email], [ip] und [phone]."


def test_a_span_that_a_placeholder_falls_into_grows_to_hold_it() -> None:
    text = "to a@firma.de now"
    matches = pii.find(text, ["email"])
    (moved,) = pii.shifted([{"start": 5, "end": 15}], matches)
    assert pii.redact(text, matches)[moved["start"] : moved["end"]] == "[email] n"


@pytest.mark.parametrize(
    "unit",
    [
        "a@",
        "1-",
        "1.",
        "(",
        "4111 ",
        "AB12 ",
        "a.",
        "+1 ",
        "1:",
        "a@b.",
        "a@b.de ",
        "a at b dot c ",
        "%40",
        "a%40b.de",
        "8.8.8.8 ",
    ],
)
def test_time_is_linear_whatever_the_text(unit: str) -> None:
    def seconds(size: int) -> float:
        text = unit * (size // len(unit))
        began = time.process_time()
        pii.find(text, pii.CLASSES)
        return time.process_time() - began

    seconds(1000)
    small, large = min(seconds(20_000) for _ in range(3)), seconds(200_000)
    assert large < 60 * small + 0.5  # ten times the text; a quadratic pattern takes a hundred times


SEEN = [
    ("phone", "tel:+14155552671", "+14155552671"),
    ("national_id", "SSN:536-90-4399", "536-90-4399"),
    ("card", "card:4111111111111111", "4111111111111111"),
    ("ip", "93.184.216.34:51234", "93.184.216.34"),
    ("ip", "http://93.184.216.34/", "93.184.216.34"),
    ("email", "_jane@corp.io_", "jane@corp.io"),
    ("email", "jos\u00e9@correo.es", "jos\u00e9@correo.es"),
    ("email", "andr\u00e9.x@y.z.fr", "andr\u00e9.x@y.z.fr"),
    ("email", "andre\u0301.x@y.fr", "andre\u0301.x@y.fr"),
    ("email", "\u8054\u7cfbjane@corp.io\u6216\u8005", "jane@corp.io"),
    ("email", "?to=jane%40corp.io&x", "jane%40corp.io"),
    ("email", "jane [at] corp (dot) io", "jane [at] corp (dot) io"),
    ("email", "jane@corp.io:secret", "jane@corp.io"),
    ("iban", "de89 3704 0044 0532 0130 00", "de89 3704 0044 0532 0130 00"),
    ("iban", "GB29-NWBK-6016-1331-9268-19", "GB29-NWBK-6016-1331-9268-19"),
    ("card", "5500\u00a00000\u00a00000\u00a00004", "5500\u00a00000\u00a00000\u00a00004"),
    ("phone", "Tel. 030 / 23125 041", "030 / 23125 041"),
    ("phone", "\u624b\u673a\uff1a13800138000", "13800138000"),
]


@pytest.mark.parametrize(("name", "text", "value"), SEEN)
def test_usual_notation_is_found(name: str, text: str, value: str) -> None:
    start = text.index(value)
    assert pii.find(text, pii.CLASSES) == [(name, start, start + len(value))]
    assert pii.candidates(pa.chunked_array([[text]]), [name]) == [0]


@pytest.mark.parametrize(
    "text",
    [
        "git@github.com:org/x", "ssh://git@host.org/x", "https://user:pw@host.org/", "logo@2x.png", "pkg@18.3.0.dev",
        "getty@tty1.service", "root@server.local", "A@B.conj()", "section 12.1.1.2", "OID 2.5.29.17",
        'AssemblyVersion("1.0.0.0")', "Chrome/120.0.0.0", "foo.c,v 1.10.2.3", "Bump to 1.0.99.1", "EAN 4006381333931",
        "20240115T101500", "20240115T", "+20240115", "1.0~+20191229111838+69", "+6073641856.9", "252.227-7013",
    ],
)  # fmt: skip
def test_versions_paths_dates_and_article_numbers_are_let_be(text: str) -> None:
    assert pii.find(text, pii.CLASSES) == []


@pytest.mark.parametrize(
    ("name", "least"),
    [("email", 0.95), ("card", 0.95), ("iban", 0.95), ("national_id", 0.95), ("phone", 0.95), ("ip", 0.85)],
)
def test_precision_and_recall_on_the_locked_lines(name: str, least: float) -> None:
    score = personal_data.scores(personal_data.lines("locked"), personal_data.ours)[name]
    assert score.precision >= least
    assert score.recall >= least


@pytest.mark.parametrize("half", personal_data.HALVES)
def test_a_line_with_personal_data_is_a_candidate(half: str) -> None:
    texts = [line.text for line in personal_data.lines(half)]
    rows = {row for row, text in enumerate(texts) if pii.find(text, pii.CLASSES)}
    assert rows <= set(pii.candidates(pa.chunked_array([texts]), pii.CLASSES))


def test_the_locked_lines_are_those_that_were_written_before_the_rules() -> None:
    assert hashlib.sha256((personal_data.FOLDER / "locked.jsonl").read_bytes()).hexdigest() == LOCKED_SHA256
