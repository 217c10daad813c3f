"""A linear classifier of texts over hashed word n-grams (scikit-learn): trained, calibrated, stored without pickle.

    labelled texts -> 1- and 2-grams hashed to 2^18 weights -> logistic regression -> P(kept label)

Logistic regression is calibrated by its own loss; how well is measured on texts that it was not trained on (one in
ten, by a hash of the text). The same texts give the same bytes. Cost: about 3 MB/s a core to score.
"""

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xxhash
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from data import storage
from data.errors import UserError

TEST_ONE_IN = 10
SCORED_CHARACTERS = 50_000
"""of a text, from its beginning: what a score rests on"""
BINS = 10


@dataclass(frozen=True, kw_only=True)
class Features:
    """What a classifier sees of a text."""

    ngrams: int = 2
    """words in the longest n-gram"""
    weights: int = 1 << 18
    """n-grams are hashed to so many weights"""

    @functools.cached_property
    def vectorizer(self) -> Any:
        from sklearn.feature_extraction.text import HashingVectorizer  # seconds that only users of classifiers pay

        return HashingVectorizer(
            ngram_range=(1, self.ngrams), n_features=self.weights, alternate_sign=False, dtype=np.float32
        )

    def of(self, texts: Sequence[str]) -> Any:
        """Sparse float32 [texts, weights], rows of length 1."""
        return self.vectorizer.transform([text[:SCORED_CHARACTERS] for text in texts])


@dataclass(frozen=True, kw_only=True, eq=False)
class Classifier:
    """Scores texts: the probability of the label that is kept."""

    features: Features
    kept_label: str
    weights: np.ndarray
    """float32 [features.weights]"""
    bias: float

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """float64 [texts], 0 to 1."""
        if not len(texts):
            return np.zeros(0)
        return 1 / (1 + np.exp(-(self.features.of(texts) @ self.weights.astype(np.float64) + self.bias)))

    def to_bytes(self) -> bytes:
        settings = json.dumps({"features": asdict(self.features), "kept_label": self.kept_label}, sort_keys=True)
        data = np.frombuffer(settings.encode(), np.uint8)
        return save_tensors({"weights": self.weights, "bias": np.array([self.bias]), "settings": data})

    @staticmethod
    def from_bytes(data: bytes, uri: str = "") -> "Classifier":
        """Raises UserError where the bytes are no classifier of ours."""
        try:
            tensors = load_tensors(data)
            settings = json.loads(tensors["settings"].tobytes())
            features = Features(**settings["features"])
            if tensors["weights"].shape != (features.weights,):
                raise UserError(f"weights {tensors['weights'].shape} for {features.weights} features")
            return Classifier(
                features=features,
                kept_label=settings["kept_label"],
                weights=tensors["weights"],
                bias=float(tensors["bias"][0]),
            )
        except Exception as error:  # safetensors has an error of its own
            raise UserError(
                f"{uri or 'this file'} is no classifier ({error}); name the output of train_classifier"
            ) from error


@functools.lru_cache(maxsize=4)
def load(uri: str) -> Classifier:
    """Kept by a worker process between shards."""
    return Classifier.from_bytes(storage.read_bytes(uri), uri)


def read_labelled(uri: str, name: str, text_field: str, label_field: str) -> Iterator[tuple[str, str]]:
    """(text, label) of each line of a JSONL file. Raises UserError, naming the line, for one that has not both."""
    for number, line in enumerate(storage.read_bytes(uri).splitlines()):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{name}, line {number + 1} is not JSON ({error}); labelled texts are JSON lines"
            ) from error
        fields = list(record) if isinstance(record, dict) else []
        text, label = (record.get(field) if fields else None for field in (text_field, label_field))
        if not isinstance(text, str) or not isinstance(label, str | int | bool):
            raise UserError(
                f"{name}, line {number + 1} needs a string {text_field!r} and a label {label_field!r} (a word or a "
                f"whole number); it has {', '.join(fields) or 'no fields'}"
            )
        yield text, str(int(label)) if isinstance(label, bool) else str(label)


def is_test(text: str) -> bool:
    """Whether a labelled text is kept for the calibration."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) % TEST_ONE_IN == 0


def train(
    texts: Sequence[str], labels: Sequence[str], kept_label: str, features: Features, inverse_penalty: float
) -> tuple[Classifier, dict[str, Any]]:
    """(classifier, its calibration). Raises UserError where one of the labels is missing among either part."""
    kept = np.array([label == kept_label for label in labels])
    test = np.array([is_test(text) for text in texts])
    for name, part in (("train on", ~test), ("test on", test)):
        if not (part & kept).any() or not (part & ~kept).any():
            names = ", ".join(sorted(set(labels))) or "none"
            raise UserError(
                f"of {len(texts)} labelled texts {int((part & kept).sum())} of label {kept_label!r} and "
                f"{int((part & ~kept).sum())} others are left to {name} (labels: {names}); give some hundred of each, "
                "or set --kept-label"
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
    """How scores and labels agree: reliability by bins of the score, Brier score, expected calibration error (Guo et
    al. 2017, arXiv 1706.04599), area under the ROC curve, and precision and recall at thresholds."""
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
