"""Text that overlaps evaluation sets: found by word n-grams, then dropped or kept out of the loss.

    evaluation items -> n-grams -> INDEX, sorted by hash;  TEXT shard + INDEX -> TEXT, HITS

Words are those of minhash.py, folded runs of letters and digits, so punctuation (of any script), case, Unicode form and
line breaks do not hide an overlap. An item of fewer than n words has no n-gram and cannot be found; such items are
counted. The GPT-3 paper used n-grams of 13 words (arXiv 2005.14165, appendix C). Cost: about 30 MB/s a core.
"""

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from data import compressed, folding, minhash, schema, storage
from data.errors import UserError

INDEX = pa.schema([("hash", pa.uint64()), ("set", pa.int32()), ("item", pa.int64())])


def read_items(uri: str, name: str, fields: Sequence[str]) -> Iterator[str | None]:
    """The text of each line of a JSONL evaluation set: its `fields`, or all of its strings, joined by blank lines.

    It may be compressed, as its name says.

    None for a blank line. Raises UserError, naming the line, for a line that is not an object or lacks a field.
    """
    try:
        content = compressed.open_stream(name, io.BytesIO(storage.read_bytes(uri))).read()
    except compressed.BROKEN as error:
        raise UserError(f"{name} is not compressed as its name says, or breaks ({error}); fetch it again") from error
    for number, line in enumerate(content.splitlines()):
        if not line.strip():
            yield None
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{name}, line {number + 1} is not JSON ({error}); write evaluation sets as one JSON object a line"
            ) from error
        if not isinstance(record, dict):
            raise UserError(
                f"{name}, line {number + 1} is not a JSON object; write evaluation sets as one JSON object a line"
            )
        if missing := [field for field in fields if field not in record]:
            raise UserError(
                f"{name}, line {number + 1} has no field {', '.join(missing)}; it has {', '.join(record)}: set --fields"
            )
        yield "\n\n".join(_strings([record[field] for field in fields] if fields else list(record.values())))


def _strings(values: list[Any]) -> Iterator[str]:
    """Every string among the values, lists and objects included: the choices of a question are part of its text."""
    for value in values:
        if isinstance(value, str):
            yield value.encode("utf-8", "replace").decode()
        elif isinstance(value, list):
            yield from _strings(value)
        elif isinstance(value, dict):
            yield from _strings(list(value.values()))


def set_name(file_name: str) -> str:
    """The name of the set in a file: the file's relative path without the endings, so folders tell sets apart."""
    path = PurePosixPath(file_name)
    return str(path.with_name(path.name.partition(".")[0] or path.name))


def index_of(sets: Sequence[Sequence[str | None]], ngram_words: int) -> tuple[pa.Table, list[int]]:
    """(INDEX of all sets, number of items of each set that are too short to be found)."""
    parts, short = [], []
    for number, items in enumerate(sets):
        hashes, offsets = minhash.shingle_hashes(pa.array([item or "" for item in items], pa.string()), ngram_words)
        counts = np.diff(offsets)
        words = minhash.word_counts(pa.array([item or "" for item in items], pa.string()))
        findable = np.repeat(words >= ngram_words, counts)
        item = np.repeat(np.arange(len(items)), counts)
        rows = np.unique(np.stack([hashes, item.astype(np.uint64)], axis=1)[findable], axis=0).reshape(-1, 2)
        parts.append((rows[:, 0], np.full(len(rows), number, np.int32), rows[:, 1].astype(np.int64)))
        short.append(sum(item is not None for item in items) - int((words >= ngram_words).sum()))
    columns = [np.concatenate([part[place] for part in parts]) for place in range(3)]
    order = np.lexsort(tuple(reversed(columns)))
    return pa.table([column[order] for column in columns], schema=INDEX), short


def find_hits(table: pa.Table, index: pa.Table, sets: Sequence[str], ngram_words: int) -> pa.Table:
    """HITS of a TEXT table: a row for each pair of a document and an evaluation item that share an n-gram."""
    hashes_of_index, set_of_index, item_of_index = (index[name].to_numpy() for name in INDEX.names)
    rows = []
    for _, text, id in _suspects(table, hashes_of_index, ngram_words):
        hashes, places = minhash.shingle_places(text, ngram_words)
        distinct, number_of, times = np.unique(hashes, return_inverse=True, return_counts=True)
        first, last = np.full(len(distinct), len(hashes)), np.zeros(len(distinct), np.int64)
        np.minimum.at(first, number_of, np.arange(len(hashes)))
        np.maximum.at(last, number_of, np.arange(len(hashes)))
        begin = np.searchsorted(hashes_of_index, distinct, side="left")
        count = np.searchsorted(hashes_of_index, distinct, side="right") - begin
        # one row for each distinct n-gram of the text and each entry of the index with the same hash
        ngram = np.repeat(np.arange(len(distinct)), count)
        entry = np.arange(len(ngram)) - np.repeat(np.cumsum(count) - count, count) + begin[ngram]
        order = np.lexsort((item_of_index[entry], set_of_index[entry]))
        number, item, ngram = set_of_index[entry][order], item_of_index[entry][order], ngram[order]
        new = np.flatnonzero(np.append(True, (number[1:] != number[:-1]) | (item[1:] != item[:-1])))
        ngrams = np.add.reduceat(times[ngram], new)
        start = places[np.minimum.reduceat(first[ngram], new), 0]
        end = places[np.maximum.reduceat(last[ngram], new), 1]
        columns = (number[new], item[new], ngrams, start, end)
        rows += [
            {"id": id, "set": sets[number], "item": item, "ngrams": ngrams, "start": start, "end": end}
            for number, item, ngrams, start, end in zip(*(column.tolist() for column in columns), strict=True)
        ]
    return pa.Table.from_pylist(rows, schema.HITS)


def mask_spans(table: pa.Table, index: pa.Table, ngram_words: int) -> pa.Table:
    """The TEXT table, with every n-gram that is in the index added to the masked spans."""
    masked = table["masked_spans"].to_pylist()
    for place, text, _ in _suspects(table, index["hash"].to_numpy(), ngram_words):
        hashes, places = minhash.shingle_places(text, ngram_words)
        hit = np.isin(hashes, index["hash"].to_numpy())
        spans = [(span["start"], span["end"]) for span in masked[place]]
        spans += [(start, end) for start, end in places[hit].tolist()]
        masked[place] = [{"start": start, "end": end} for start, end in merged(spans)]
    column = pa.array(masked, schema.SPANS)
    return table.set_column(table.schema.get_field_index("masked_spans"), schema.TEXT.field("masked_spans"), column)


def merged(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The spans in order, joined so that they neither touch nor overlap."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _suspects(table: pa.Table, hashes_of_index: np.ndarray, ngram_words: int) -> Iterator[tuple[int, str, str]]:
    """(row, text, id) of each document that has an n-gram of the index."""
    row = 0
    for block in folding.blocks(table["text"]):
        hashes, offsets = minhash.shingle_hashes(block, ngram_words)
        document = np.repeat(np.arange(len(block)), np.diff(offsets))
        for number in np.unique(document[np.isin(hashes, hashes_of_index)]).tolist():
            yield row + number, block[number].as_py(), table["id"][row + number].as_py()
        row += len(block)
