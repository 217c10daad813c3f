"""What ends a command line with which exit code, and that help and README tell each of them."""

import re

import pytest

from pipelines import __main__
from pipelines.cli import commands
from pipelines.engine.stage import StoppedError, VerdictError
from tests.programs.places import REPOSITORY

CODES = {"0", "1", "2", "130"}


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (ValueError("no such thing; name another"), 2, "error: no such thing; name another"),
        (VerdictError("the answer is no"), 1, "failed: the answer is no"),
        (StoppedError("a training worker died; --max-failures"), 1, "failed: a training worker died; --max-failures"),
        (KeyboardInterrupt("asked to stop after step 3"), 130, "stopped: asked to stop after step 3"),
        (KeyboardInterrupt(), 130, "stopped; the same command goes on where this one was"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_is_one_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, told: str
) -> None:
    def raises(words: list[str]) -> int:
        raise error

    monkeypatch.setattr(commands, "list_", raises)
    assert __main__.main(["list"]) == code
    assert capsys.readouterr().err == f"{told}\n"


def test_every_list_of_exit_codes_names_all_of_them() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    lists = re.findall(r"Exit codes: [^.]+|its exit code \([^)]+\)", f"{readme}\n{__main__.__doc__}")
    assert len(lists) == 3
    for one in lists:
        assert set(re.findall(r"\b\d+\b", one)) == CODES, one
