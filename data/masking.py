"""Masked character ranges -> masked token ranges, by counting the bytes that each token stands for."""

from collections.abc import Mapping, Sequence

import numpy as np

from data.errors import UserError


def masked_tokens(
    text: str, tokens: Sequence[int], token_bytes: np.ndarray, spans: Sequence[Mapping[str, int]]
) -> list[dict[str, int]]:
    """Token ranges [start, end) of `tokens` that overlap the character ranges `spans` of `text`.

    `token_bytes[id]` is the number of UTF-8 bytes that id decodes to, 0 for control ids. Raises UserError for a span
    outside the text.
    """
    if not spans:
        return []
    # SentencePiece writes a space for U+2581, its own mark of one
    character_bytes = [len(character.encode()) for character in text.replace("\u2581", " ")]
    byte_of = np.concatenate([[0], np.cumsum(character_bytes)])
    ends = np.cumsum(token_bytes[np.asarray(tokens)])
    starts = ends - token_bytes[np.asarray(tokens)]
    ranges = []
    for span in spans:
        start, end = span["start"], span["end"]
        if not 0 <= start <= end <= len(text):
            raise UserError(f"masked span [{start}, {end}) is outside a text of {len(text)} characters")
        if start == end:
            continue  # inside a token, and yet no character of it
        inside = np.flatnonzero((ends > byte_of[start]) & (starts < byte_of[end]) & (ends > starts))
        if len(inside):
            ranges.append({"start": int(inside[0]), "end": int(inside[-1]) + 1})
    return ranges
