"""The fast encoder gives SentencePiece's ids, or is not used."""

import itertools
import sysconfig
from pathlib import Path

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from data.fast_encoder import FastEncoder, NotExactError, broken_conditions, pieces_of, probes
from data.tokenizer import Tokenizer, train_tokenizer
from tests.programs.places import GEMMA_TOKENIZERS

ADVERSARIAL = [
    "",
    "<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n",
    "<bos><eos><pad><unk><mask><0x41>",
    "<<start_of_turn>><start_of_turn<start_of_turn>",
    "[@BOS@][@BOS@<unused12><2mass>",
    "<table><tr><td>x</td></tr></table>\n\n\n<h1>&lt;</h1>",
    "\u2581 \u2581\u2581  a\u2581b",
    "\x00\x00 a\x00b",
    "\ufffd \U0001f600\u200d\U0001f525 \u0301e",
    "a" * 3000,
    " " * 100 + "\t" * 100 + "\n" * 100,
]


def library() -> list[str]:
    return [path.read_text() for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-d]*.py"))]


@pytest.fixture(scope="module")
def own() -> bytes:
    return train_tokenizer(library()[:20], 1024)


def proto_of(model: bytes) -> sentencepiece_model_pb2.ModelProto:
    return sentencepiece_model_pb2.ModelProto.FromString(model)


def check_equal(model: bytes, texts: list[str]) -> None:
    tokenizer = Tokenizer.from_bytes(model)
    assert tokenizer.fast_encoder == ""
    values, offsets = tokenizer.encode_documents([text.encode() for text in texts])
    for text, (start, end) in zip(texts, itertools.pairwise(offsets), strict=True):
        assert values[start:end].tolist() == tokenizer.encode_document(text), ascii(text[:200])


@pytest.mark.slow
def test_documents_get_the_ids_that_sentencepiece_gives(own: bytes) -> None:
    check_equal(own, [*ADVERSARIAL, *library()[:15], *probes(proto_of(own), 1000, seed=11)])


@pytest.mark.slow
def test_a_lower_block_beside_a_space_is_not_cut_from_it(own: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.tokenizer.PART_BYTES", 64)
    check_equal(own, ["a" * (64 - shift) + "\u2581 b c " * 30 for shift in range(8)])


@pytest.mark.slow
def test_gemmas_own_model_too() -> None:
    path_of_model = next((path for path in GEMMA_TOKENIZERS if path.exists()), None)
    if path_of_model is None:
        pytest.skip("Gemma's tokenizer is not here: make tokenizer")
    model = path_of_model.read_bytes()
    check_equal(model, [*ADVERSARIAL, *library(), *probes(proto_of(model), 3000, seed=12)])


def test_a_model_that_breaks_a_condition_is_encoded_by_sentencepiece(own: bytes) -> None:
    proto = proto_of(own)
    proto.pieces[-1].score = proto.pieces[-2].score
    assert broken_conditions(proto) == ["two pieces have one score"]
    tokenizer = Tokenizer.from_bytes(proto.SerializeToString())
    assert tokenizer.fast_encoder == "two pieces have one score"
    values, offsets = tokenizer.encode_documents([text.encode() for text in ADVERSARIAL])
    for text, (start, end) in zip(ADVERSARIAL, itertools.pairwise(offsets), strict=True):
        assert values[start:end].tolist() == tokenizer.encode_document(text)


def test_a_model_whose_ids_differ_on_a_probe_is_not_taken(own: bytes) -> None:
    other = proto_of(own)
    other.pieces[500].score, other.pieces[900].score = other.pieces[900].score, other.pieces[500].score
    processor = sentencepiece.SentencePieceProcessor(model_proto=other.SerializeToString())
    with pytest.raises(NotExactError, match="other ids than SentencePiece"):
        FastEncoder(own, processor)


@pytest.mark.parametrize("size", [1, 7, 300, 10**6])
def test_parts_joined_are_the_text_and_change_no_id(own: bytes, size: int) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=own)
    for text in [*ADVERSARIAL, *library()[:3], *probes(proto_of(own), 200, seed=3)]:
        data = text.replace("\u2581", " ").encode()
        parts = list(pieces_of(data, size))
        assert b"".join(parts) == data
        assert [id for part in parts for id in processor.encode(part)] == processor.encode(data)


@pytest.mark.slow
def test_no_documents_are_no_ids(own: bytes) -> None:
    values, offsets = Tokenizer.from_bytes(own).encode_documents([])
    assert values.tolist() == []
    assert offsets.tolist() == [0]
