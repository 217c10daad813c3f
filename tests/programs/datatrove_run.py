"""python -m tests.programs.datatrove_run in .venv-rival: what datatrove's filters say of each text.

Reads {"texts": [...], "words": [the words of each text]}. Words and sentences are ours, so only the heuristics differ.
Prints {filter: [reason or null]} and C4's texts.
"""

import json
import sys
from importlib import import_module

from data.words import split_sentences

FILTERS = {
    "gopher_quality": ("gopher_quality_filter", "GopherQualityFilter"),
    "gopher_repetition": ("gopher_repetition_filter", "GopherRepetitionFilter"),
    "fineweb_quality": ("fineweb_quality_filter", "FineWebQualityFilter"),
    "c4_quality": ("c4_filters", "C4QualityFilter"),
}


def main() -> None:
    from datatrove.data import Document

    given = json.load(sys.stdin)
    texts = given["texts"]
    words_of = dict(zip(texts, given["words"], strict=True))
    verdicts: dict[str, list[object]] = {}
    for name, (place, kind) in FILTERS.items():
        module = import_module(f"datatrove.pipeline.filters.{place}")
        for function, ours in (("split_into_words", words_of.__getitem__), ("split_into_sentences", split_sentences)):
            if hasattr(module, function):
                setattr(module, function, lambda text, language, ours=ours: ours(text))
        asked = getattr(module, kind)()
        verdicts[name] = []
        for number, text in enumerate(texts):
            document = Document(text=text, id=str(number))
            try:
                answer = asked.filter(document)
            except (ZeroDivisionError, ValueError, IndexError) as error:
                verdicts[name].append(["error", type(error).__name__, ""])
                continue
            kept = answer is True
            verdicts[name].append([None if kept else answer[1], "", document.text if name == "c4_quality" else ""])
    json.dump(verdicts, sys.stdout)


if __name__ == "__main__":
    main()
