"""A classifier learns what labels say, knows how sure it is, and is the same bytes for the same texts."""

import json
import random
import sysconfig
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data import classifier, filters
from data.filters import Rules
from tests.data.test_filters import texts as table_of

FEATURES = classifier.Features(weights=1 << 14)


def labelled(count: int = 1200) -> tuple[list[str], list[str]]:
    """Lines of code against lines of documentation, from the standard library; one label in ten is wrong."""
    draw = random.Random(2)
    code, prose = [], []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-h]*.py")):
        parts = path.read_text(encoding="utf-8").split('"""')
        prose += [part for part in parts[1::2] if len(part.split()) > 12]
        code += [part for part in parts[0::2] if len(part.split()) > 12]
    each = min(count // 2, len(prose), len(code))
    pairs = [(text, "prose") for text in draw.sample(prose, each)] + [
        (text, "code") for text in draw.sample(code, each)
    ]
    draw.shuffle(pairs)
    noisy = [(text, draw.choice(["prose", "code"]) if draw.random() < 0.2 else label) for text, label in pairs]
    return [text for text, _ in noisy], [label for _, label in noisy]


@pytest.mark.slow
def test_scores_are_probabilities_that_hold_on_texts_not_trained_on() -> None:
    texts, labels = labelled()
    made, measured = classifier.train(texts, labels, "prose", FEATURES, 10.0)
    again, _ = classifier.train(texts, labels, "prose", FEATURES, 10.0)
    assert made.to_bytes() == again.to_bytes()
    loaded = classifier.Classifier.from_bytes(made.to_bytes())
    assert np.array_equal(loaded.score(texts[:50]), made.score(texts[:50]))
    assert measured["texts"] == sum(map(classifier.is_test, texts))
    assert measured["roc_auc"] > 0.8
    assert measured["expected_calibration_error"] < 0.2
    assert sum(bucket["texts"] for bucket in measured["bins"]) == measured["texts"]
    recalls = [threshold["recall"] for threshold in measured["thresholds"]]
    assert recalls == sorted(recalls, reverse=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It isn't a test_case of 3 or 42: déjà vu.", ["It", "isn", "test_case", "of", "or", "42", "déjà", "vu"]),
        ("हिंदी में लिखा है", ["हिंदी", "में", "लिखा", "है"]),
        ("我喜欢自然语言。", ["我", "喜欢", "自然", "语言"]),
        ("ผมรักภาษาไทย", ["ผม", "รัก", "ภาษา", "ไทย"]),
        ("👍🏽 isn\u2019t a word", ["isn", "word"]),
    ],
)
def test_words_that_a_score_rests_on(text: str, expected: list[str]) -> None:
    assert classifier.tokens(text) == expected


def test_calibration_of_known_scores() -> None:
    scores = np.array([0.05] * 10 + [0.95] * 10)
    kept = np.array([False] * 9 + [True] + [True] * 10)
    measured = classifier.calibration(scores, kept)
    assert measured["expected_calibration_error"] == 0.05
    assert [(bucket["texts"], bucket["kept"]) for bucket in measured["bins"]] == [(10, 0.1), (10, 1.0)]
    assert measured["thresholds"][2] == {"threshold": 0.5, "precision": 1.0, "recall": 0.9091}


def test_a_document_below_the_score_is_a_reject_that_says_so(tmp_path: Path) -> None:
    weights = np.zeros(1 << 14, np.float32)
    features = replace(FEATURES, ngrams=1)
    good = features.of(["good"]).indices[0]
    weights[good] = 10
    made = classifier.Classifier(features=features, kept_label="1", weights=weights, bias=-5.0)
    path = tmp_path / "c.safetensors"
    path.write_bytes(made.to_bytes())
    rules = Rules(max_characters=100, classifiers=((str(path), 0.5),))
    kept, rejects, _ = filters.filter_table(table_of("good", "poor", "", "good good"), rules)
    assert kept["text"].to_pylist() == ["good", "good good"]
    assert rejects["reason"].to_pylist() == ["classifier", "empty"]
    assert rejects["detail"][0].as_py() == "score 0.007; at least 0.5"


def test_labels_that_cannot_be_learned_are_refused() -> None:
    with pytest.raises(ValueError, match="give some hundred of each, or set --kept-label"):
        classifier.train(["a", "b"] * 50, ["0", "0"] * 50, "1", FEATURES, 1.0)


@pytest.mark.parametrize("line", ["{", "[]", '{"text": "x"}', '{"text": 1, "label": 1}', '{"text": "x", "label": 0.5}'])
def test_a_line_without_text_and_label_is_refused_by_name(tmp_path: Path, line: str) -> None:
    path = tmp_path / "l.jsonl"
    path.write_text(json.dumps({"text": "x", "label": True}) + "\n\n" + line)
    with pytest.raises(ValueError, match=r"l\.jsonl, line 3"):
        list(classifier.read_labelled(str(path), path.name, "text", "label"))


def test_a_file_that_is_no_classifier_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_bytes(b"\x80\x04N.")
    with pytest.raises(ValueError, match=r"is not a classifier .* name the output of train_classifier"):
        classifier.load(str(path))
