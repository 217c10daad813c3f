"""A linear classifier of texts over hashed word n-grams (scikit-learn): trained, calibrated, stored without pickle.

    labelled texts -> words, 1- and 2-grams -> hashed to 2^18 weights -> logistic regression -> P(kept label)

The loss of logistic regression calibrates it. The calibration is measured on the texts that were held out of training,
one in ten by a hash of the text. The same texts give the same bytes. Cost: scoring runs at about 3 MB/s a core.
"""

import functools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xxhash
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from data import storage, words
from data.errors import UserError

TEST_ONE_IN = 10
SCORED_CHARACTERS = 50_000
"""characters at the beginning of a text that its score rests on"""
BINS = 10
_TOKENS = re.compile(r"\b\w\w+\b")
_APOSTROPHES = re.compile("['\u2019]")


def tokens(text: str) -> list[str]:
    """The words of a text that count: those of two letters or more, and words of one letter in scripts without spaces.

    In text without combining marks they are those of scikit-learn.
    """
    if words.is_plain(text):
        return _TOKENS.findall(text)
    parts = (part for word in words.split_words(text) for part in _APOSTROPHES.split(word))
    return [part for part in parts if part[:1].isalnum() and (len(part) > 1 or words.unspaced(part))]


@dataclass(frozen=True, kw_only=True)
class Features:
    """How a text becomes the features of a classifier."""

    ngrams: int = 2
    """length of the longest n-gram, in words"""
    weights: int = 1 << 18
    """number of weights that n-grams are hashed to"""

    @functools.cached_property
    def vectorizer(self) -> Any:
        from sklearn.feature_extraction.text import HashingVectorizer  # takes seconds: only for users of classifiers

        return HashingVectorizer(
            tokenizer=tokens,
            token_pattern=None,
            ngram_range=(1, self.ngrams),
            n_features=self.weights,
            alternate_sign=False,
            dtype=np.float32,
        )

    def of(self, texts: Sequence[str]) -> Any:
        """The features of texts: sparse float32 [texts, weights], rows of norm 1."""
        return self.vectorizer.transform([text[:SCORED_CHARACTERS] for text in texts])


@dataclass(frozen=True, kw_only=True, eq=False)
class Classifier:
    """Scores texts by the probability that a text has the label to keep."""

    features: Features
    kept_label: str
    weights: np.ndarray
    """float32 [features.weights]"""
    bias: float

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """Scores of the texts, float64 [texts], from 0 to 1."""
        if not len(texts):
            return np.zeros(0)
        return 1 / (1 + np.exp(-(self.features.of(texts) @ self.weights.astype(np.float64) + self.bias)))

    def to_bytes(self) -> bytes:
        settings = json.dumps({"features": asdict(self.features), "kept_label": self.kept_label}, sort_keys=True)
        data = np.frombuffer(settings.encode(), np.uint8)
        return save_tensors({"weights": self.weights, "bias": np.array([self.bias]), "settings": data})

    @staticmethod
    def from_bytes(data: bytes, uri: str = "") -> "Classifier":
        """Raises UserError if the bytes are not what `to_bytes` wrote."""
        try:
            tensors = load_tensors(data)
            settings = json.loads(tensors["settings"].tobytes())
            features = Features(**settings["features"])
            if tensors["weights"].shape != (features.weights,):
                raise UserError(f"got weights {tensors['weights'].shape} for {features.weights} features")
            return Classifier(
                features=features,
                kept_label=settings["kept_label"],
                weights=tensors["weights"],
                bias=float(tensors["bias"][0]),
            )
        except Exception as error:  # safetensors raises an error of its own
            raise UserError(
                f"{uri or 'this file'} is not a classifier ({error}); name the output of train_classifier"
            ) from error


@functools.lru_cache(maxsize=4)
def load(uri: str) -> Classifier:
    """The classifier at `uri`, which a worker process keeps from one shard to the next."""
    return Classifier.from_bytes(storage.read_bytes(uri), uri)


def read_labelled(uri: str, name: str, text_field: str, label_field: str) -> Iterator[tuple[str, str]]:
    """(text, label) of each line of a JSONL file. Raises UserError, naming the line, for a line that lacks one."""
    for number, line in enumerate(storage.read_bytes(uri).splitlines()):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{name}, line {number + 1} is not JSON ({error}); write labelled texts as one JSON object a line"
            ) from error
        fields = list(record) if isinstance(record, dict) else []
        text, label = (record.get(field) if fields else None for field in (text_field, label_field))
        if not isinstance(text, str) or not isinstance(label, str | int | bool):
            raise UserError(
                f"{name}, line {number + 1} has {', '.join(fields) or 'no fields'}; a line needs a string "
                f"{text_field!r} and a label {label_field!r} (a word or a whole number): add them, or set --text-field "
                "and --label-field"
            )
        yield text, str(int(label)) if isinstance(label, bool) else str(label)


def is_test(text: str) -> bool:
    """Whether a labelled text is held out of training, to measure the calibration."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) % TEST_ONE_IN == 0


def train(
    texts: Sequence[str], labels: Sequence[str], kept_label: str, features: Features, inverse_penalty: float
) -> tuple[Classifier, dict[str, Any]]:
    """(classifier, its calibration). Raises UserError if the training or the test texts lack one of the two labels."""
    kept = np.array([label == kept_label for label in labels])
    test = np.array([is_test(text) for text in texts])
    for name, part in (("train on", ~test), ("test on", test)):
        if not (part & kept).any() or not (part & ~kept).any():
            names = ", ".join(sorted(set(labels))) or "none"
            raise UserError(
                f"got {len(texts)} labelled texts (labels: {names}), of which {int((part & kept).sum())} of label "
                f"{kept_label!r} and {int((part & ~kept).sum())} of other labels are left to {name}; give some hundred "
                "of each, or set --kept-label"
            )
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=inverse_penalty, solver="lbfgs", max_iter=1000)
    model.fit(features.of([text for text, out in zip(texts, test, strict=True) if not out]), kept[~test])
    classifier = Classifier(
        features=features,
        kept_label=kept_label,
        weights=model.coef_[0].astype(np.float32),
        bias=float(model.intercept_[0]),
    )
    scores = classifier.score([text for text, out in zip(texts, test, strict=True) if out])
    return classifier, calibration(scores, kept[test])


def calibration(scores: np.ndarray, kept: np.ndarray) -> dict[str, Any]:
    """How well scores agree with labels.

    Reliability by bins of the score, Brier score, expected calibration error (Guo et al. 2017, arXiv 1706.04599), area
    under the ROC curve, and precision and recall at thresholds.
    """
    from sklearn.metrics import roc_auc_score

    place = np.minimum((scores * BINS).astype(int), BINS - 1)
    bins = []
    for number in range(BINS):
        inside = place == number
        if inside.any():
            bins.append(
                {
                    "from": number / BINS,
                    "texts": int(inside.sum()),
                    "mean_score": round(float(scores[inside].mean()), 4),
                    "kept": round(float(kept[inside].mean()), 4),
                }
            )
    thresholds = []
    for threshold in (0.1, 0.25, 0.5, 0.75, 0.9):
        taken = scores >= threshold
        thresholds.append(
            {
                "threshold": threshold,
                "precision": round(float(kept[taken].mean()), 4) if taken.any() else None,
                "recall": round(float(taken[kept].mean()), 4),
            }
        )
    error = sum(entry["texts"] * abs(entry["mean_score"] - entry["kept"]) for entry in bins) / len(scores)
    return {
        "texts": len(scores),
        "brier": round(float(np.mean((scores - kept) ** 2)), 4),
        "expected_calibration_error": round(float(error), 4),
        "roc_auc": round(float(roc_auc_score(kept, scores)), 4),
        "bins": bins,
        "thresholds": thresholds,
    }
