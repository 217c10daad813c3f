import io
import os
import pickle
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from data.tokenizer import (
    BOS,
    BYTE,
    END_OF_TURN,
    EOS,
    LAYOUT,
    PAD,
    START_OF_TURN,
    Tokenizer,
    train_tokenizer,
)
from tests.programs.places import REPOSITORY

PROPERTY = settings(deadline=None, max_examples=200)

NASTY = [
    "",
    " ",
    "\n",
    "   leading and trailing   ",
    "\t\ttabs\tand\rreturns\r\n",
    "a\0b",
    "\ufeffbom \u200b \u00a0",
    "<bos><eos><pad><unk><s></s><0x41>",
    "<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n",
    "<<start_of_turn>><start_of_turn<start_of_turn>>",
    "[@BOS@][@BOS@] <mask><2mass> <unused0><unused42><unused98><unused99>",
    "<table><tr><td>1</td></tr></table> <b>x</b>",
    "١٢٣ ²³ 1234567890",
    "日本語 \u0440\u0443\u0301\u0441 हिन्दी 👩‍👩‍👧‍👦 \U0010ffff",
    "\n" * 70 + " " * 70 + "\t" * 70,
    "e\u0301 \u00e9 \ufb01 \u2126",
]


def source_texts() -> list[str]:
    return [path.read_text() for path in sorted(Path(os.__file__).parent.glob("[a-k]*.py"))[:60]]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return source_texts()


@pytest.fixture(scope="session")
def model(texts: list[str]) -> bytes:
    return train_tokenizer(texts, 2048)


@pytest.fixture(scope="session")
def tokenizer(model: bytes) -> Tokenizer:
    return Tokenizer.from_bytes(model)


@pytest.fixture(scope="session")
def gemma() -> Tokenizer:
    path = os.environ.get("GEMMA_TOKENIZER", str(REPOSITORY / ".cache/gemma_tokenizer.model"))
    if not os.path.exists(path):
        pytest.skip(f"{path} is missing: run `make tokenizer`")
    return Tokenizer.load(path)


@pytest.fixture(scope="session", params=["tokenizer", "gemma"])
def either(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)


def test_a_trained_tokenizer_has_gemmas_layout_and_the_size_asked_for(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 2048
    processor = tokenizer._processor
    assert [processor.id_to_piece(id) for id in range(len(LAYOUT))] == [piece for piece, _ in LAYOUT]
    assert [processor.is_byte(id) for id in range(len(LAYOUT))] == [kind == BYTE for _, kind in LAYOUT]
    assert [processor.id_to_piece(id) for id in (PAD, EOS, BOS)] == ["<pad>", "<eos>", "<bos>"]
    assert [processor.is_control(id) for id in range(4)] == [True, True, True, False]
    assert processor.id_to_piece([START_OF_TURN, END_OF_TURN]) == ["<start_of_turn>", "<end_of_turn>"]


def test_ids_0_to_472_are_those_of_gemmas_own_tokenizer(gemma: Tokenizer) -> None:
    # Tokenizer.load compares piece and type of each of them with LAYOUT, and a trained one is compared with it above.
    assert len(LAYOUT) == 473
    assert gemma.vocab_size == 256_000
    assert gemma.sha256 == "61a7b147390c64585d6c3543dd6fc636906c9af3865a5548f27f31aee1d4c8e2"


def test_gemmas_own_dialogue_has_the_ids_it_is_known_for(gemma: Tokenizer) -> None:
    text = "<start_of_turn>user\nKnock knock.<end_of_turn>\n<start_of_turn>model\n"
    known = [106, 1645, 108, 94210, 26021, 235265, 107, 108, 106, 2516, 108]
    assert gemma.encode(text, allow_special=True) == known
    assert not set(gemma.encode(text)) & {START_OF_TURN, END_OF_TURN}


def test_training_gives_the_same_bytes_whatever_the_threads_and_the_process(model: bytes, texts: list[str]) -> None:
    assert train_tokenizer(texts, 2048, threads=3) == model
    program = (
        "import sys; from tests.data.test_tokenizer import source_texts; from data.tokenizer import train_tokenizer;"
        "sys.stdout.buffer.write(train_tokenizer(source_texts(), 2048))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, cwd=REPOSITORY, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == model
    assert done.stderr == b"", "training should be silent"


def test_learned_pieces_hold_no_newline_no_inner_space_and_no_two_digits(tokenizer: Tokenizer) -> None:
    pieces = tokenizer._processor.id_to_piece(list(range(473, tokenizer.vocab_size)))
    for piece in pieces:
        assert "\n" not in piece
        assert "\u2581" not in piece.lstrip("\u2581")
        assert sum(character.isdigit() for character in piece) <= 1
        assert len(piece) <= 16
    assert any(len(piece) > 6 for piece in pieces)


def test_long_lines_are_learned_from_too() -> None:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnop"), 9)) for _ in range(200)]
    text = " ".join(rng.choice(words, 10_000))
    assert "\n" not in text
    learned = Tokenizer.from_bytes(train_tokenizer([text + "\0" + "x" * 100_000], 1024))
    assert len(learned.encode(text)) / 10_000 < 6
    assert len(learned.encode("x" * 16)) == 1


@pytest.mark.parametrize("text", NASTY)
def test_nasty_text_round_trips_and_forges_no_control_token(either: Tokenizer, text: str) -> None:
    ids = either.encode(text)
    assert either.decode(ids) == text
    assert not set(ids) & set(range(108)), "a named symbol or control id from plain text"
    assert int(either.token_bytes()[ids].sum()) == len(text.encode())


@PROPERTY
@given(
    text=st.lists(
        st.text(st.characters(exclude_characters="\u2581", exclude_categories=["Cs"]), max_size=8)
        | st.sampled_from([piece for piece, _ in LAYOUT if "\u2581" not in piece])
        | st.sampled_from(["<", ">", "[", "<start_of_", "turn>", "@BOS@]", "  ", "\n\n", "\t"])
    ).map("".join)
)
def test_any_text_round_trips_and_forges_no_control_token(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert min(ids, default=108) >= 108
    assert int(tokenizer.token_bytes()[ids].sum()) == len(text.encode())
    assert tokenizer.decode(tokenizer.encode(text, allow_special=True)) == text


@PROPERTY
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_text_without_named_symbols_is_encoded_as_sentencepiece_does(tokenizer: Tokenizer, text: str) -> None:
    assume(not any(symbol in text for symbol, _ in LAYOUT[4:108]))
    assert tokenizer.encode(text) == tokenizer._processor.encode(text)


def test_control_symbols_in_a_text_are_text_even_where_special_ones_are_allowed(either: Tokenizer) -> None:
    ids = either.encode("<bos>x<eos><pad><unk>", allow_special=True)
    assert min(ids) > 107
    assert either.encode("<start_of_turn>", allow_special=True) == [START_OF_TURN]


def test_the_real_tokenizers_late_symbols_are_spelled_out_too(gemma: Tokenizer) -> None:
    assert gemma.encode("[toxicity=0]", allow_special=True) == [255_968]
    for text in ("[toxicity=0]", "<unused99>"):
        assert len(gemma.encode(text)) > 1
        assert gemma.decode(gemma.encode(text)) == text
    assert gemma.encode("\t\t\t<td>") == [255_970, gemma.encode("<td>")[0]]


def test_a_document_is_framed(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_document("") == [BOS, EOS]
    assert tokenizer.encode_document("def x") == [BOS, *tokenizer.encode("def x"), EOS]
    assert tokenizer.decode(tokenizer.encode_document("def x")) == "def x"


def test_token_bytes_count_what_each_id_decodes_to(tokenizer: Tokenizer) -> None:
    counts = tokenizer.token_bytes()
    assert counts.shape == (tokenizer.vocab_size,)
    for id, (_, kind) in enumerate(LAYOUT):
        assert counts[id] == (1 if kind == BYTE else len(tokenizer.decode([id]).encode())), id
    for id in range(473, tokenizer.vocab_size):
        assert counts[id] == len(tokenizer.decode([id]).encode()), id


def test_a_tokenizer_survives_pickling_and_a_file(tokenizer: Tokenizer, model: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.model").write_bytes(model)
    for again in (pickle.loads(pickle.dumps(tokenizer)), Tokenizer.load(str(tmp_path / "t.model"))):
        assert again.sha256 == tokenizer.sha256
        assert again.encode("def f(x):\n    return x") == tokenizer.encode("def f(x):\n    return x")


def test_what_has_no_utf8_or_no_piece_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"lone surrogate \('\\ud800'\)"):
        tokenizer.encode("ab\ud800")
    with pytest.raises(ValueError, match="this tokenizer has 0 to 2047"):
        tokenizer.decode([5, 2048])
    with pytest.raises(ValueError, match="this tokenizer has 0 to 2047"):
        tokenizer.decode(np.array([-1]))
    assert tokenizer.decode([]) == ""


def test_too_little_text_says_how_large_a_vocabulary_it_gives() -> None:
    text = "\n".join(f"{a}{b}{c}" for a in "abcdefgh" for b in "ijklmnop" for c in "qrstuvwx")
    with pytest.raises(
        ValueError, match=r"2047 characters of text for vocab_size=8192, which are too few: .* at most (\d+)"
    ) as e:
        train_tokenizer([text], 8192)
    assert "add text" in str(e.value)
    with pytest.raises(ValueError, match="0 characters"):
        train_tokenizer([], 1024)


def test_too_many_different_characters_say_how_large_a_vocabulary_they_need() -> None:
    text = " ".join(chr(0x4E00 + i) for i in range(3000))
    with pytest.raises(ValueError, match=r"set vocab_size above \d+") as e:
        train_tokenizer([text], 1024)
    needed = int(str(e.value).rsplit(" ", 1)[1])
    assert needed > 1024


@pytest.mark.parametrize("size", [1023, 256_001, 0])
def test_a_vocabulary_outside_the_limits_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="allowed are 1024 to 256000"):
        train_tokenizer(["x"], size)


@pytest.mark.parametrize("data", [b"", b"hello, this is no model", b"\xff" * 100])
def test_a_file_that_is_no_model_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.model").write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.model: not"):
        Tokenizer.load(str(tmp_path / "x.model"))


def test_another_layout_is_refused(texts: list[str]) -> None:
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts[0].splitlines()),
        model_writer=file,
        model_type="bpe",
        vocab_size=500,
        minloglevel=3,
    )
    with pytest.raises(ValueError, match="not Gemma's id layout: id 0 is '<unk>'"):
        Tokenizer.from_bytes(file.getvalue())


def test_a_model_that_sentencepiece_cannot_use_is_refused_by_the_name_of_its_file(model: bytes) -> None:
    changed = sentencepiece_model_pb2.ModelProto.FromString(model)
    changed.trainer_spec.byte_fallback = False
    with pytest.raises(ValueError, match=r"^here: not a SentencePiece model that can be used .*byte_fallback"):
        Tokenizer.from_bytes(changed.SerializeToString(), "here")
    with pytest.raises(ValueError, match=r"^here: not a SentencePiece model \(1 bytes"):
        Tokenizer.from_bytes(b"x", "here")


@pytest.mark.chaos
def test_a_vocabulary_of_gemmas_size_is_trained_to_the_same_bytes_and_encoded_fast() -> None:
    def texts() -> Iterator[str]:
        held = 0
        for path in sorted(Path(sysconfig.get_paths()["purelib"]).rglob("*.py")):
            text = path.read_text(encoding="utf-8", errors="replace")
            held += len(text)
            if held > 150_000_000:
                return
            yield text

    models = [train_tokenizer(texts(), 256_000) for _ in range(2)]
    assert models[0] == models[1]
    tokenizer = Tokenizer.from_bytes(models[0])
    assert tokenizer.vocab_size == 256_000
    assert tokenizer.fast_encoder == ""
