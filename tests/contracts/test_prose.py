"""How pages read: length of sentences, width of lines, spelling."""

from tests.programs import sentences, spelling
from tests.programs.markdown import Block, blocks, pages, too_wide, words_in, wrapped
from tests.programs.markdown import sentences as sentences_of


def test_a_sentence_has_at_most_25_words_on_average() -> None:
    """`python -m tests.programs.sentences --longest 20` prints the longest ones."""
    averages = sentences.averages()
    assert {"README.md", "CONTRIBUTING.md", "docs/design.md", "all"} <= averages.keys()
    assert {name: words for name, (words, *_) in averages.items() if words > sentences.MOST_WORDS} == {}


def test_prose_is_wrapped_at_120_columns() -> None:
    """`python -m tests.programs.markdown` wraps it."""
    wide = [f"{name}:{block.first}" for name, text in pages().items() for block in blocks(text) if too_wide(block)]
    assert wide == []


def test_every_word_is_in_the_dictionary_or_on_our_list() -> None:
    """`python -m tests.programs.spelling` prints them; with --add they go on the list."""
    assert spelling.unknown() == {}


def test_our_list_of_words_is_sorted() -> None:
    words = spelling.own_words()
    assert words == sorted({word.lower() for word in words})


def test_a_misspelled_word_is_unknown() -> None:
    lines = ["A checkpiont is writen (to `a_bukket` at gs://bukket) for", "the dataclass's gradeints."]
    words = [word for line in spelling.prose_of_page("\n".join(lines)) for word in spelling.words_of(line[1])]
    assert spelling.strange(words) == {"checkpiont", "writen", "gradeints"}


def test_docstrings_and_comments_are_spelled_too() -> None:
    source = 'text = "a strnig"  # a commnet\n"""A docstrnig\nof `two_lnies`."""\n'
    words = [(line, word) for line, prose in spelling.prose_of_code(source) for word in spelling.words_of(prose)]
    assert words == [(2, "docstrnig"), (3, "of"), (1, "commnet")]


def only_block(text: str) -> Block:
    (block,) = blocks(text)
    return block


def test_sentences_are_counted_as_a_reader_does() -> None:
    text = (
        "See [the page](docs/x.md) of version 2.9.1, e.g. `make test` or\n`a b c`. Is it **so?** Yes: 3 runs; no more."
    )
    assert [words_in(sentence) for sentence in sentences_of(only_block(text))] == [10, 3, 5]
    kinds = [block.kind for block in blocks("# A\nText:\n- one\n  more\n- two\n\n| a |\n|---|\n```\nx\n```\nText")]
    assert kinds == ["heading", "paragraph", "item", "item", "table", "code", "paragraph"]


def test_a_wrapped_line_keeps_code_together_and_begins_no_list() -> None:
    item = only_block("- " + "word " * 22 + "`one two` - " + "word " * 22 + "end")
    lines = wrapped(item)
    assert all(len(line) <= 120 for line in lines)
    assert lines[1].startswith("  `one two` - word")
    assert " ".join(" ".join(lines).split()) == " ".join(item.lines[0].split())
    assert only_block("\n".join(lines)).kind == "item"
