"""Leaves out documents by length, language, words, quality and personal data; each becomes a reject with a reason.

Shard k of the output is made of shard k of the input. By default the stage leaves out only empty and too long
documents. The order of the rules is: word list, empty, length, language, Gopher repetition, Gopher quality, C4,
FineWeb, personal data, classifiers.
"""

from collections import Counter
from dataclasses import dataclass, field

from data import documents, filters, pii, schema, shards, storage
from data.absent import absent
from data.filters import Rules, Treatment
from data.heuristics import C4Quality, FineWebQuality, GopherQuality, GopherRepetition
from pipelines.account.costs import TextCost, core_speed
from pipelines.engine.declaration import Declaration
from pipelines.engine.errors import UserError
from pipelines.engine.inputs import Read
from pipelines.engine.shard_map import Part, ShardOutput, dataset_of, map_shards, total_dropped
from pipelines.engine.stage import Context, Outcome

VERSION = 6
WRITER = shards.WRITER
READS = {
    "text": Read(help="documents", dataset="text"),
    "words": Read(
        help="word list, one word or phrase in each line: documents that hold one of them are left out", optional=True
    ),
    "classifier": Read(
        help="classifiers of train_classifier, for --min-classifier-score",
        dataset="classifier",
        many=True,
        optional=True,
    ),
}
WRITES = ("text", "rejects")
DECLARES = Declaration(cost=TextCost(speed=core_speed(6.5), reads="raw"))


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which rules are on, and their thresholds."""

    max_characters: int = 1_000_000
    """Longest document that is kept, in characters."""
    gopher_quality: bool = absent(False)
    """The Gopher paper's quality filters."""
    gopher_repetition: bool = absent(False)
    """The Gopher paper's repetition filters."""
    c4: bool = absent(False)
    """C4's rules: they remove lines, then texts with few sentences."""
    fineweb: bool = absent(False)
    """FineWeb's own filters."""
    gopher: GopherQuality = field(default_factory=GopherQuality)
    """Thresholds of gopher_quality."""
    repetition: GopherRepetition = field(default_factory=GopherRepetition)
    """Thresholds of gopher_repetition."""
    c4_limits: C4Quality = field(default_factory=C4Quality)
    """Thresholds of c4."""
    fineweb_limits: FineWebQuality = field(default_factory=FineWebQuality)
    """Thresholds of fineweb."""
    languages: tuple[str, ...] = absent(())
    """Languages that are kept, as ISO 639-1 codes; empty: all languages. The language of a document is detected from
    the letters of places all over its text. With its score and share of the text it becomes metadata."""
    min_language_score: float = 0.65
    """Least certainty of the language, from 0 to 1 (FineWeb's value)."""
    pii_email: Treatment = absent("keep")
    """Treatment of email addresses."""
    pii_phone: Treatment = absent("keep")
    """Treatment of phone numbers: with a country code, as written in North America, or after a word such as "phone"."""
    pii_ip: Treatment = absent("keep")
    """Treatment of public IP addresses."""
    pii_card: Treatment = absent("keep")
    """Treatment of payment card numbers (Luhn check)."""
    pii_iban: Treatment = absent("keep")
    """Treatment of bank account numbers (IBAN, mod 97 check)."""
    pii_national_id: Treatment = absent("keep")
    """Treatment of social security numbers (US), DNI (Spain), CPF (Brazil) and codice fiscale (Italy)."""

    min_classifier_score: tuple[float, ...] = absent(())
    """Least score of a document, from 0 to 1, one for each given classifier."""

    def __post_init__(self) -> None:
        if wrong_scores := [score for score in self.min_classifier_score if not 0 <= score <= 1]:
            raise UserError(f"min_classifier_score has {wrong_scores}; allowed are 0 to 1")
        if self.max_characters < 1:
            raise UserError(f"max_characters is {self.max_characters}; it must be at least 1 (default: 1000000)")
        if not 0 <= self.min_language_score <= 1:
            raise UserError(f"min_language_score is {self.min_language_score}; allowed are 0 to 1")
        if wrong := [
            code for code in self.languages if not (code.isalpha() and code.islower() and len(code) in (2, 3))
        ]:
            raise UserError(f"got languages {wrong}; allowed are ISO 639-1 codes, as in --languages en de")

    def rules(self, words: tuple[str, ...], classifiers: tuple[str, ...]) -> Rules:
        return Rules(
            max_characters=self.max_characters,
            gopher_quality=self.gopher if self.gopher_quality else None,
            gopher_repetition=self.repetition if self.gopher_repetition else None,
            c4=self.c4_limits if self.c4 else None,
            fineweb=self.fineweb_limits if self.fineweb else None,
            languages=self.languages,
            min_language_score=self.min_language_score,
            words=words,
            classifiers=tuple(zip(classifiers, self.min_classifier_score, strict=True)),
            pii={name: how for name in pii.CLASSES if (how := getattr(self, f"pii_{name}")) != "keep"},
        )


@dataclass(frozen=True)
class _Filter:
    config: Config
    words: tuple[str, ...] = ()
    classifiers: tuple[str, ...] = ()

    def __call__(self, uri: str) -> ShardOutput:
        rules = self.config.rules(self.words, self.classifiers)
        kept, rejects, rewritten = filters.filter_table(shards.read_table(uri, schema.TEXT), rules)
        counts = rejects["reason"].value_counts().to_pylist()
        return ShardOutput(
            parts={"text": Part(table=kept), "rejects": Part(table=rejects)},
            dropped={count["values"]: count["counts"] for count in counts},
            facts={
                "text_bytes": schema.text_bytes(kept["text"]),
                "rewritten": dict(rewritten),
            },
        )


def read_words(uris: list[str]) -> tuple[str, ...]:
    """The words and phrases of the lists, sorted. Raises UserError if there is none, or if a file is not UTF-8."""
    words: set[str] = set()
    for uri in uris:
        try:
            lines = documents.lines_of(storage.read_bytes(uri))
        except UnicodeDecodeError as error:
            raise UserError(
                f"the word list {uri} is not UTF-8 ({error}); save it as UTF-8, one word in a line"
            ) from error
        words |= {line.strip() for line in lines if line.strip()}
    if uris and not words:
        raise UserError(f"the word list {', '.join(uris)} holds no word; give one in each line, or leave --words out")
    return tuple(sorted(words))


def run(context: Context, config: Config) -> Outcome:
    """Raises UserError if no document is left."""
    words = read_words([uri for source in context.inputs.get("words", []) for uri in source.uris()])
    classifiers = tuple(uri for source in context.inputs.get("classifier", []) for uri in source.uris())
    if len(classifiers) != len(config.min_classifier_score):
        raise UserError(
            f"got {len(classifiers)} classifiers and {len(config.min_classifier_score)} scores; give "
            "--min-classifier-score one score for each --classifier"
        )
    work = _Filter(config, words, classifiers)
    receipts = map_shards(context, "filter", context.input("text").uris(), work)
    rewritten: Counter[str] = Counter()
    for receipt in receipts:
        rewritten.update(receipt.facts["rewritten"])
    text = dataset_of(
        receipts,
        "text",
        text_bytes=sum(receipt.facts["text_bytes"] for receipt in receipts),
        rewritten=dict(sorted(rewritten.items())),
    )
    dropped = total_dropped(receipts)
    if not text.rows:
        raise UserError(
            f"no document is left; the reasons by count are {dropped}: raise --max-characters, or collect other text"
        )
    return Outcome(datasets={"text": text, "rejects": dataset_of(receipts, "rejects")}, dropped=dropped)
