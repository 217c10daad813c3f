"""The tokenizer files of an export say of every symbol what other programs need to know."""

import json
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import sentencepiece_model_pb2

from data.hf_tokenizer import tokenizer_files
from data.tokenizer import CONTROL, END_OF_TURN, SPACE, START_OF_TURN, UNKNOWN, USER_DEFINED, train_tokenizer

MODEL = train_tokenizer([f"{word} {word[::-1]}. " * 9 for word in Path(__file__).read_text().split()], 1024)
PIECES = sentencepiece_model_pb2.ModelProto.FromString(MODEL).pieces


@pytest.fixture(scope="module")
def files() -> dict[str, Any]:
    return {name: json.loads(data) for name, data in tokenizer_files(MODEL) if name.endswith(".json")}


def test_both_files_list_every_symbol_alike(files: dict[str, Any]) -> None:
    symbols = [id for id, piece in enumerate(PIECES) if piece.type in (CONTROL, UNKNOWN, USER_DEFINED)]
    decoder = files["tokenizer_config.json"]["added_tokens_decoder"]
    assert list(map(int, decoder)) == symbols
    assert [{"id": int(id), **entry} for id, entry in decoder.items()] == files["tokenizer.json"]["added_tokens"]
    assert all(decoder[str(id)]["content"] == PIECES[id].piece for id in symbols)


def test_the_turn_marks_are_special_and_textual_symbols_are_not(files: dict[str, Any]) -> None:
    config = files["tokenizer_config.json"]
    special = {int(id) for id, entry in config["added_tokens_decoder"].items() if entry["special"]}
    assert special == {0, 1, 2, 3, START_OF_TURN, END_OF_TURN}
    assert config["additional_special_tokens"] == [PIECES[id].piece for id in (START_OF_TURN, END_OF_TURN)]


def test_llama_cpps_converter_takes_every_textual_symbol_for_one(files: dict[str, Any]) -> None:
    """The converter's rule: an entry of added_tokens_decoder is a control symbol if special, else user-defined."""
    kinds: dict[int, tuple[str, str]] = {}
    for id, entry in files["tokenizer_config.json"]["added_tokens_decoder"].items():
        kinds[int(id)] = ("control", "") if entry["special"] else ("symbol", entry["content"].replace(SPACE, " "))
    textual = {id: piece.piece for id, piece in enumerate(PIECES) if piece.type == USER_DEFINED}
    assert len(textual) == 213
    for id, piece in textual.items():
        wanted = ("control", "") if id in (START_OF_TURN, END_OF_TURN) else ("symbol", piece.replace(SPACE, " "))
        assert kinds[id] == wanted
