"""SentencePiece BPE with Gemma's settings and Gemma's id layout: to train or load a tokenizer, encode and decode.

Ids 0 to 472 mean the same in every vocabulary, including Gemma's own. Ids 0-3 are control ids and the unknown id, 4-107
are named symbols (the turn markers are 106 and 107). Then come runs of newlines and of spaces, HTML tags, and the 256
bytes that spell everything else.

SentencePiece matches named symbols inside ordinary text, so a document could forge a dialogue. `encode` therefore
spells them out by default. Runs of newlines and spaces, and HTML tags, are text and are matched. SentencePiece never
matches `<bos>`, `<eos>` and `<pad>` in a text.

`encode` is SentencePiece itself. `encode_documents` gives the same ids, at several times the speed if gigatoken is
proven exact on the model (fast_encoder.py).

Cost: `encode` runs at 4 MB/s a core, `encode_documents` at 40 MB/s. Training on 4 MB of source code, to 8,192 pieces,
takes 1 s and holds the text in memory.
"""

import functools
import hashlib
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np
import re2
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from data import storage
from data.errors import UserError
from data.fast_encoder import FastEncoder, NotExactError, pieces_of

PAD: Final = 0
EOS: Final = 1
BOS: Final = 2
START_OF_TURN: Final = 106
END_OF_TURN: Final = 107

SPACE = "\u2581"
"""SentencePiece's mark of a space; a text with this character is decoded to one with a space"""
UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6
"""piece types of sentencepiece_model.proto"""

_TABLE_TAGS = ["table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td"]
_BLOCK_TAGS = ["h1", "h2", "h3", "h4", "h5", "h6", "blockquote"]
_INLINE_TAGS = ["strong", "em", "b", "i", "u", "s", "sub", "sup", "code"]
_NAMED = (
    "<mask>",
    "<2mass>",
    "[@BOS@]",
    *(f"<unused{n}>" for n in range(99)),
    "<start_of_turn>",
    "<end_of_turn>",
)
_TEXTUAL = (
    *("\n" * n for n in range(1, 32)),
    *(SPACE * n for n in range(2, 32)),
    *(f"<{slash}{tag}>" for tags in (_TABLE_TAGS, _BLOCK_TAGS, _INLINE_TAGS) for slash in ("", "/") for tag in tags),
)
LAYOUT: tuple[tuple[str, int], ...] = (
    *((piece, CONTROL) for piece in ("<pad>", "<eos>", "<bos>")),
    ("<unk>", UNKNOWN),
    *((piece, USER_DEFINED) for piece in _NAMED + _TEXTUAL),
    *((f"<0x{byte:02X}>", BYTE) for byte in range(256)),
)
"""(piece, type) of ids 0 to 472"""

SMALLEST_VOCAB, LARGEST_VOCAB = 1024, 256_000
PART_BYTES = 1 << 20
"""size of the parts that a longer text is encoded in, in bytes"""
_LINE_CHARACTERS = 4096
# SentencePiece's trainer skips a line with NUL or U+2585 (its mark of an unknown), so lines are cut there.
_LINE_ENDS = re.compile("[\n\0\u2585]+")


def train_tokenizer(texts: Iterable[str], vocab_size: int, threads: int = 1) -> bytes:
    """A SentencePiece model of `vocab_size` pieces, of which 473 are Gemma's. The same bytes for any `threads`.

    Texts are cut at newlines, which no learned piece holds (runs of newlines and spaces are pieces already). Long lines
    are also cut before a space; no piece crosses the start of a word, so the cut loses nothing.
    Raises UserError for a `vocab_size` outside 1024..256000, and for texts that are too few or too varied for it.
    """
    if not SMALLEST_VOCAB <= vocab_size <= LARGEST_VOCAB:
        raise UserError(f"got vocab_size={vocab_size}; allowed are {SMALLEST_VOCAB} to {LARGEST_VOCAB}")
    lines = _Lines(texts)
    model_file = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model_file,
            model_type="bpe",
            vocab_size=vocab_size,
            num_threads=threads,
            split_digits=True,
            byte_fallback=True,
            allow_whitespace_only_pieces=True,
            max_sentencepiece_length=16,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            max_sentence_length=8 * _LINE_CHARACTERS,  # in bytes; longer sentences would be dropped
            user_defined_symbols=[*_NAMED, *_TEXTUAL],
            pad_id=PAD,
            eos_id=EOS,
            bos_id=BOS,
            unk_id=3,
            pad_piece="<pad>",
            eos_piece="<eos>",
            bos_piece="<bos>",
            minloglevel=3,
        )
    except RuntimeError as error:
        raise _training_error(str(error), vocab_size, lines.characters) from error
    model = sentencepiece_model_pb2.ModelProto.FromString(model_file.getvalue())
    model.trainer_spec.ClearField("num_threads")  # it does not change the pieces
    return model.SerializeToString(deterministic=True)


class Tokenizer:
    """A SentencePiece model with Gemma's layout. It can be pickled."""

    def __init__(self, model: bytes) -> None:
        self._model = model
        pieces = _checked_pieces(model)
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise UserError(
                f"not a SentencePiece model that can be used ({error}); name a file that train_tokenizer wrote, or "
                "Gemma's tokenizer.model"
            ) from error
        self.vocab_size: int = len(pieces)
        self._token_bytes = np.array([_decoded_bytes(piece, kind) for piece, kind in pieces], np.int32)
        special = [piece for piece, kind in pieces if kind == USER_DEFINED and not _is_textual(piece)]
        self._special = _special_pattern(special)
        self._any_special = re2.compile("|".join(map(re2.escape, special)).encode())

    @classmethod
    def from_bytes(cls, model: bytes, uri: str = "") -> "Tokenizer":
        """Raises UserError if the bytes (of the file `uri`) are not a SentencePiece model, or its ids 0-472 are not
        Gemma's."""
        try:
            return cls(model)
        except UserError as error:
            raise UserError(f"{uri}: {error}" if uri else str(error)) from error

    @classmethod
    def load(cls, uri: str) -> "Tokenizer":
        """`from_bytes` of the file at `uri`."""
        return cls.from_bytes(storage.read_bytes(uri), uri)

    @functools.cached_property
    def sha256(self) -> str:
        """sha256 of the model's bytes, hex."""
        return hashlib.sha256(self._model).hexdigest()

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Ids of the text, without <bos> and <eos>. `decode` returns the text (with a space for each U+2581).

        The named symbols of the vocabulary are spelled out, so that no text can forge a turn. With `allow_special` they
        are matched, for text that this program wrote. Raises UserError for a lone surrogate, which is not valid
        Unicode.
        """
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"got a text with a lone surrogate ({error.object[error.start : error.end]!a}), which UTF-8 cannot "
                "hold; decode its bytes again with errors='replace'"
            ) from error
        parts = [data] if allow_special else self._parts(data)
        return [id for part in parts for id in self._processor.encode(part)]

    def encode_documents(self, texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """`encode_document` of many texts in UTF-8: (ids of all texts int32 [n], offsets int64 [texts + 1]).

        Long texts are encoded in parts that no piece crosses. Memory is some 20 bytes for each byte of text.
        """
        parts: list[bytes] = []
        counts = np.zeros(len(texts) + 1, np.int64)
        for number, text in enumerate(texts):
            before = len(parts)
            for part in self._parts(text):
                parts.extend(pieces_of(part.replace(b"\xe2\x96\x81", b" "), PART_BYTES) if self._cuttable else [part])
            counts[number + 1] = len(parts) - before
        ids, offsets = self._encode_parts(parts)
        ends = offsets[np.cumsum(counts)]
        return _framed(ids, ends)

    @property
    def fast_encoder(self) -> str:
        """Why plain SentencePiece encodes the documents; empty if the fast encoder is proven exact on this model."""
        fast = self._fast
        return fast if isinstance(fast, str) else ""

    @functools.cached_property
    def _fast(self) -> "FastEncoder | str":
        try:
            return FastEncoder(self._model, self._processor)
        except NotExactError as error:
            return str(error)

    @property
    def _cuttable(self) -> bool:
        return not isinstance(self._fast, str)  # the proof includes the condition for cutting texts

    def _encode_parts(self, parts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        if not isinstance(self._fast, str):
            return self._fast.encode(parts)
        encoded = [np.array(self._processor.encode(part), np.int32) for part in parts]
        offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        return np.concatenate([np.zeros(0, np.int32), *encoded]), offsets

    def _parts(self, text: bytes) -> list[bytes]:
        """The text, cut after the first character of every named symbol in it, so that none is matched."""
        if not self._any_special.search(text):  # nearly every text; RE2 searches ten times as fast
            return [text]
        ends = [match.end() for match in self._special.finditer(text)]
        return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]

    def encode_document(self, text: str) -> list[int]:
        """<bos>, the ids of the text, <eos>. Named symbols are spelled out."""
        return [BOS, *self.encode(text), EOS]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of the ids. Control ids decode to nothing, and bytes that are not UTF-8 to U+FFFD."""
        ids = np.asarray(ids, np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise UserError(
                f"got ids {ids.min()} to {ids.max()}; this tokenizer has 0 to {self.vocab_size - 1}: "
                "decode with the tokenizer that encoded them"
            )
        return self._processor.decode(ids.tolist())

    def token_bytes(self) -> np.ndarray:
        """Number of UTF-8 bytes that each id decodes to, int32 [V]; 0 for control ids."""
        return self._token_bytes.copy()

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[bytes]]:
        return Tokenizer, (self._model,)


class _Lines:
    """The lines for the trainer, which counts their characters as they are read."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.characters = 0

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self.characters += len(text)
            for line in _LINE_ENDS.split(text):
                yield from _short_lines(line)


def _short_lines(line: str) -> Iterator[str]:
    start = 0
    while len(line) - start > _LINE_CHARACTERS:
        end = line.rfind(" ", start + 1, start + _LINE_CHARACTERS)
        end = end if end > 0 else start + _LINE_CHARACTERS
        yield line[start:end]
        start = end
    if start < len(line):
        yield line[start:]


def _training_error(message: str, vocab_size: int, characters: int) -> UserError:
    """SentencePiece's error, as a sentence about the texts."""
    if too_high := re.search(r"value <= (\d+)", message):
        most = int(too_high[1])
        smaller = f", or set vocab_size to at most {most}" if most >= SMALLEST_VOCAB else ""
        return UserError(
            f"got {characters} characters of text for vocab_size={vocab_size}, which are too few: "
            f"they give at most {most} pieces; add text{smaller}"
        )
    if too_low := re.search(r"required_chars\. (\d+) vs (\d+)", message):
        needed = max(int(too_low[1]), int(too_low[2]))
        return UserError(
            f"got {characters} characters of text, with more different characters than vocab_size={vocab_size} has "
            f"room for; set vocab_size above {needed}"
        )
    return UserError(
        f"got {characters} characters of text, on which SentencePiece cannot train ({message}); add text, in UTF-8"
    )


def _checked_pieces(model: bytes) -> list[tuple[str, int]]:
    """(piece, type) of each id. Raises UserError if the bytes are not a SentencePiece model with Gemma's layout."""
    try:
        proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    except Exception as error:  # the DecodeError of the implementation of protobuf that is installed
        raise UserError(
            f"not a SentencePiece model ({len(model)} bytes: {error}); name a file that train_tokenizer wrote, "
            "or Gemma's tokenizer.model"
        ) from error
    pieces = [(piece.piece, piece.type) for piece in proto.pieces]
    for id, (expected, piece) in enumerate(zip(LAYOUT, [*pieces, *[("nothing", 0)] * len(LAYOUT)], strict=False)):
        if expected != piece:
            raise UserError(
                f"not Gemma's id layout: id {id} is {piece[0]!r} (type {piece[1]}) and must be {expected[0]!r} (type "
                f"{expected[1]}); train a tokenizer with train_tokenizer, or take Gemma's tokenizer.model"
            )
    return pieces


def _decoded_bytes(piece: str, kind: int) -> int:
    if kind == CONTROL:
        return 0
    if kind == BYTE:
        return 1
    if kind == UNKNOWN:
        return len(" \u2047 ".encode())  # SentencePiece's <unk>; byte fallback never encodes to it
    return len(piece.replace(SPACE, " ").encode())


def _is_textual(piece: str) -> bool:
    return piece in _TEXTUAL or not piece.strip("\t")


def _framed(ids: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ids with <bos> and <eos> around each document, offsets) of documents that end at `ends` in `ids`."""
    offsets = ends + 2 * np.arange(len(ends))
    framed = np.empty(offsets[-1], np.int32)
    framed[offsets[:-1]], framed[offsets[1:] - 1] = BOS, EOS
    shift = 1
    for start, end in itertools.pairwise(ends.tolist()):  # a copy for each document: a third of the time of a mask
        framed[start + shift : end + shift] = ids[start:end]
        shift += 2
    return framed, offsets


def _special_pattern(symbols: list[str]) -> "re.Pattern[bytes]":
    """Matches the first character of every occurrence of a symbol, overlapping ones too."""
    rests: dict[str, list[str]] = {}
    for symbol in symbols:
        rests.setdefault(symbol[0], []).append(re.escape(symbol[1:]))
    pattern = "|".join(f"{re.escape(first)}(?={'|'.join(rest)})" for first, rest in rests.items())
    return re.compile(pattern.encode())
