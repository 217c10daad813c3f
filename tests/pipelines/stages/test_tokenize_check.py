"""What tokenize_text compares with SentencePiece: a wrong id in what it looks at, and no shard is made."""

import sysconfig
from pathlib import Path

import numpy as np
import pytest

from data.tokenizer import PART_BYTES, Tokenizer, train_tokenizer
from pipelines.stages import tokenize_text

LIBRARY = "".join(path.read_text() for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-c]*.py")))
LONG = LIBRARY * (1 + 2 * PART_BYTES // len(LIBRARY))
SPACED = LONG.replace("\n", " ")
UNSPACED = LIBRARY.replace("\n", "").replace(" ", "")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_bytes(train_tokenizer([LIBRARY], 1024))


def check(tokenizer: Tokenizer, text: str, change: int | None = None) -> int:
    """Documents compared of the one; its id at place `change` is another (negative: from its end)."""
    values, offsets = tokenizer.encode_documents([text.encode()])
    if change is not None:
        values[change] += 1
    stage = tokenize_text._Tokenize(tokenize_text.Config(), "", "")
    return stage._check(tokenizer, ["the-document"], [text.encode()], values, offsets, "shard.parquet")


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "short", LIBRARY[:60_000], LONG, SPACED, "\u2581 a\u2581b " * 200_000])
def test_right_ids_pass(tokenizer: Tokenizer, text: str) -> None:
    assert check(tokenizer, text) == 1


@pytest.mark.parametrize("text", [LIBRARY[:60_000], LONG, SPACED])
@pytest.mark.parametrize("place", [0, 7, 9000, -9000, -2, -1])
def test_a_wrong_id_is_told_with_document_and_byte(tokenizer: Tokenizer, text: str, place: int) -> None:
    with pytest.raises(
        RuntimeError, match=r"document the-document differs from SentencePiece from token \d+, byte \d+ on: got ids"
    ):
        check(tokenizer, text, place)


def test_the_place_where_a_long_text_was_cut_is_compared(tokenizer: Tokenizer) -> None:
    values, _ = tokenizer.encode_documents([LONG.encode()])
    place = int(np.searchsorted(np.cumsum(tokenizer.token_bytes()[values]), PART_BYTES))
    with pytest.raises(RuntimeError, match=f"from token {place},"):
        check(tokenizer, LONG, place)


def test_a_long_text_that_cannot_be_cut_is_not_counted_as_compared(tokenizer: Tokenizer) -> None:
    assert check(tokenizer, UNSPACED) == 0
