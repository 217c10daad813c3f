"""From masked character ranges to masked token ranges, by the number of bytes that each token decodes to."""

from collections.abc import Mapping, Sequence

import numpy as np

from data.errors import UserError


def masked_tokens(
    text: str, tokens: Sequence[int], token_bytes: np.ndarray, spans: Sequence[Mapping[str, int]]
) -> list[dict[str, int]]:
    """Ranges [start, end) of `tokens` that overlap the character ranges `spans` of `text`.

    `token_bytes[id]` is the number of UTF-8 bytes that an id decodes to, 0 for control ids. Raises UserError for a span
    outside the text.
    """
    if not spans:
        return []
    # SentencePiece marks a space by U+2581, and decodes every U+2581 to a space
    character_bytes = [len(character.encode()) for character in text.replace("\u2581", " ")]
    byte_of = np.concatenate([[0], np.cumsum(character_bytes)])
    ends = np.cumsum(token_bytes[np.asarray(tokens)])
    starts = ends - token_bytes[np.asarray(tokens)]
    ranges = []
    for span in spans:
        start, end = span["start"], span["end"]
        if not 0 <= start <= end <= len(text):
            raise UserError(
                f"got the masked span [{start}, {end}) in a text of {len(text)} characters; a span is inside its text: "
                "run the stage that wrote it again"
            )
        if start == end:
            continue  # an empty range, even in the middle of a token
        inside = np.flatnonzero((ends > byte_of[start]) & (starts < byte_of[end]) & (ends > starts))
        if len(inside):
            ranges.append({"start": int(inside[0]), "end": int(inside[-1]) + 1})
    return ranges
