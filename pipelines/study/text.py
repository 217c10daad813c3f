"""The study's text: Python's standard library as packed rows for teacher and students, and as held-out rows.

    files -> documents -> tokenizer -> rows of L tokens, shuffled

The rows are made once and kept on disk as Parquet files of SEQUENCES. Cost: half a minute, mostly for the tokenizer.
"""

import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

import numpy as np
import pyarrow as pa
import xxhash

from data import shards, sources, storage
from data.packing import Document, pack_documents
from data.schema import SEQUENCES, content_hash
from data.tokenizer import Tokenizer, train_tokenizer
from pipelines.engine.errors import UserError
from pipelines.engine.inputs import external_input
from pipelines.recipes.demo import STDLIB_EXCLUDE
from pipelines.study.sizes import Sizes
from training.feed import HostBatch

HELDOUT_ONE_IN = 10
"""number of documents of which one is held out; one in 50, as in the pipeline, would leave only a dozen documents"""
MAX_HELDOUT_ROWS_OF_A_DOCUMENT = 10
"""largest number of held-out rows of one document, so that no long module dominates the figures"""
COLUMNS = ("tokens", "segment_ids", "positions", "loss_mask")


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Packed rows as arrays."""

    columns: dict[str, np.ndarray]
    """columns: tokens, segment_ids, positions int32 [R, T], loss_mask bool [R, T], sequence_hash uint64 [R]"""
    documents: np.ndarray
    """number of the document of each row's first token, int64 [R]"""

    def __len__(self) -> int:
        return len(self.documents)

    def batch(self, rows: Sequence[int] | np.ndarray | slice) -> HostBatch:
        """The given rows, in the given order."""
        return {name: column[rows] for name, column in self.columns.items()}

    def take(self, rows: np.ndarray | slice) -> "Rows":
        return Rows(columns=dict(self.batch(rows)), documents=self.documents[rows])


@dataclass(frozen=True, kw_only=True, eq=False)
class Text:
    """The rows of one study. No row is in two parts, and no held-out document is in another part."""

    teacher: Rows
    students: Rows
    heldout: Rows
    vocab_size: int
    text_bytes: int
    """UTF-8 bytes of all documents"""
    documents: int

    def order(self, seed: int, count: int) -> np.ndarray:
        """The first `count` of the students' rows in the order of the seed. Raises UserError if there are fewer."""
        if count > len(self.students):
            raise UserError(
                f"got {len(self.students):,} rows of text for students that take {count:,} rows; "
                "set fewer student_steps or teacher_steps"
            )
        return np.random.default_rng([seed, 1]).permutation(len(self.students))[:count]


def load_text(sizes: Sizes, root: str) -> Text:
    """The rows of the study; makes them first if they are missing."""
    directory = storage.join(sizes.teacher_directory(root), "text")
    uris = [storage.join(directory, f"{name}.parquet") for name in ("train", "heldout")]
    if not all(map(storage.exists, uris)):
        _make(sizes, directory)
    train, heldout = (_rows(shards.read_table(uri)) for uri in uris)
    cut = sizes.teacher_steps * sizes.batch_rows
    if cut >= len(train):
        raise UserError(
            f"got {len(train):,} rows of text for a teacher that takes {cut:,} rows; set fewer teacher_steps"
        )
    facts = shards.read_table(storage.join(directory, "facts.parquet")).to_pylist()[0]
    return Text(
        teacher=train.take(slice(0, cut)),
        students=train.take(slice(cut, None)),
        heldout=heldout.take(slice(0, sizes.heldout_rows)),
        **facts,
    )


def _make(sizes: Sizes, directory: str) -> None:
    documents = dict(_documents(sizes.max_files))
    kept_out = {id for id in documents if xxhash.xxh3_64_intdigest(id.encode(), seed=1) % HELDOUT_ONE_IN == 0}
    training = [text for id, text in documents.items() if id not in kept_out]
    tokenizer = Tokenizer.from_bytes(train_tokenizer(training, sizes.vocab_size))
    packed = {
        "train": _packed({id: text for id, text in documents.items() if id not in kept_out}, tokenizer, sizes),
        "heldout": _packed({id: text for id, text in documents.items() if id in kept_out}, tokenizer, sizes),
    }
    firsts = [spans[0]["id"] for spans in packed["heldout"]["documents"].to_pylist()]
    within: dict[str, int] = {}
    chosen = []
    for row, id in enumerate(firsts):
        within[id] = within.get(id, 0) + 1
        if within[id] <= MAX_HELDOUT_ROWS_OF_A_DOCUMENT:
            chosen.append(row)
    packed["heldout"] = packed["heldout"].take(pa.array(chosen))
    text_bytes = sum(len(text.encode()) for text in documents.values())
    facts = {"vocab_size": tokenizer.vocab_size, "text_bytes": text_bytes, "documents": len(documents)}
    shards.write_table(directory, "facts.parquet", pa.Table.from_pylist([facts]))
    for name, table in packed.items():
        order = np.random.default_rng(0).permutation(table.num_rows)
        shards.write_table(directory, f"{name}.parquet", table.take(pa.array(order)))


def _documents(max_files: int | None) -> Iterator[tuple[str, str]]:
    """(id, text) of the modules that a person wrote, without duplicates. They depend on the version of Python."""
    files = external_input([sysconfig.get_paths()["stdlib"]], _selected, _excluded).files[:max_files]
    seen: set[str] = set()
    named = [(file.name, file.uri) for file in files]
    for batch in sources.collect("stdlib", named, sources.Options(), 1 << 22):
        for row in batch.text.select(["id", "text"]).to_pylist():
            if (digest := content_hash(row["text"])) not in seen:
                seen.add(digest)
                yield row["id"], row["text"]


def _selected(name: str) -> bool:
    return name.endswith((".py", ".txt", ".rst"))


def _excluded(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in STDLIB_EXCLUDE)


def _packed(texts: dict[str, str], tokenizer: Tokenizer, sizes: Sizes) -> pa.Table:
    encoded = [text.encode() for text in texts.values()]
    ids, offsets = tokenizer.encode_documents(encoded)
    documents = [
        Document(id=id, tokens=ids[start:end], text_bytes=len(text))
        for id, text, start, end in zip(texts, encoded, offsets[:-1], offsets[1:], strict=True)
    ]
    return pack_documents(documents, sizes.sequence_length)


def _rows(table: pa.Table) -> Rows:
    columns = {  # copies, because torch warns of read-only memory
        name: table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(table.num_rows, -1).copy()
        for name in COLUMNS
    }
    columns["sequence_hash"] = table["sequence_hash"].to_numpy().copy()
    numbers: dict[str, int] = {}
    firsts = [numbers.setdefault(spans[0]["id"], len(numbers)) for spans in table["documents"].to_pylist()]
    assert table.schema.equals(SEQUENCES), "rows of another schema"
    return Rows(columns=columns, documents=np.array(firsts, np.int64))
