"""A SentencePiece model as the tokenizer files of a Hugging Face directory, with which `transformers` gives our ids.

    tokenizer.model            the SentencePiece model itself, byte for byte
    tokenizer.json             the model as a BPE of the `tokenizers` library: pieces, merges, symbols, byte fallback
    tokenizer_config.json      the class that reads tokenizer.json, the special tokens, and all symbols by id

SentencePiece joins the two neighbours whose join has the best score. `tokenizers` joins the pair that comes first in a
list, so the list holds every way to cut every piece in two, best score first. Cost: 256,000 pieces take seconds, and
tokenizer.json has some 20 MB.

The control symbols and the two turn marks are special: `decode(ids, skip_special_tokens=True)` leaves them out. The
symbols are in both JSON files, because llama.cpp's converter reads the kind of a symbol only from
`added_tokens_decoder` in tokenizer_config.json.

One difference is left: named symbols in a text (`<start_of_turn>`, `<bos>`) are matched, as `transformers` does for
every Gemma. `Tokenizer.encode` spells them out.
"""

import json
from collections.abc import Iterator
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from data.tokenizer import BOS, CONTROL, END_OF_TURN, SPACE, START_OF_TURN, UNKNOWN, USER_DEFINED

MODEL_FILE = "tokenizer.model"
NORMAL = 1
"""piece type of sentencepiece_model.proto"""
NAMES = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
TURN_MARKS = {START_OF_TURN: "<start_of_turn>", END_OF_TURN: "<end_of_turn>"}


def tokenizer_files(model: bytes) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of each file, from the bytes of a SentencePiece model with Gemma's layout."""
    fast = _fast_tokenizer(model)
    yield MODEL_FILE, model
    yield "tokenizer.json", json.dumps(fast, ensure_ascii=False).encode()
    yield (
        "tokenizer_config.json",
        _json(
            {
                "tokenizer_class": "GemmaTokenizer",
                **NAMES,
                "additional_special_tokens": list(TURN_MARKS.values()),
                "added_tokens_decoder": {
                    str(symbol["id"]): {name: value for name, value in symbol.items() if name != "id"}
                    for symbol in fast["added_tokens"]
                },
                "add_bos_token": True,
                "add_eos_token": False,
                "clean_up_tokenization_spaces": False,
                "model_max_length": 8192,
            }
        ),
    )


def _fast_tokenizer(model: bytes) -> dict[str, Any]:
    pieces = sentencepiece_model_pb2.ModelProto.FromString(model).pieces
    ids = {piece.piece: id for id, piece in enumerate(pieces)}
    normal = [(piece.score, id, piece.piece) for id, piece in enumerate(pieces) if piece.type == NORMAL]
    joinable = {piece for _, _, piece in normal}
    merges = [
        [piece[:cut], piece[cut:]]
        for _, _, piece in sorted(normal, key=lambda entry: (-entry[0], entry[1]))
        for cut in range(1, len(piece))
        if piece[:cut] in joinable and piece[cut:] in joinable
    ]
    return {
        "version": "1.0",
        "added_tokens": [
            {
                "id": id,
                "content": piece.piece,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": SPACE in piece.piece,  # runs of spaces are matched after spaces are replaced
                "special": piece.type != USER_DEFINED or id in TURN_MARKS,
            }
            for id, piece in enumerate(pieces)
            if piece.type in (CONTROL, UNKNOWN, USER_DEFINED)
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_special("<bos>"), _text("A", 0)],
            "pair": [_special("<bos>"), _text("A", 0), _special("<bos>", 1), _text("B", 1)],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [BOS], "tokens": ["<bos>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": ids,
            "merges": merges,
        },
    }


def _special(name: str, type_id: int = 0) -> dict[str, Any]:
    return {"SpecialToken": {"id": name, "type_id": type_id}}


def _text(name: str, type_id: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": type_id}}


def _json(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=2) + "\n").encode()
