"""What ends a command line with which exit code, and that help and README tell each of them."""

import importlib
import json
import re

import pyarrow as pa
import pytest

from data.storage import FullError
from pipelines import __main__
from pipelines.cli import listing
from pipelines.engine.errors import FailedError, UserError
from pipelines.engine.stage import VerdictError
from tests.programs.places import REPOSITORY
from training.errors import StoppedError
from training.faults import Drained

CODES = {"0", "1", "2", "130"}
PACKAGES = ("model", "data", "infra", "training", "pipelines.engine")
USER_ERRORS = [importlib.import_module(f"{package}.errors").UserError for package in PACKAGES]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        *((kind("no such thing; name another"), 2, "error: no such thing; name another") for kind in USER_ERRORS),
        (FullError("no room; make some"), 1, "failed: no room; make some"),
        (FailedError("no room in a worker; make some"), 1, "failed: no room in a worker; make some"),
        (Drained("asked to stop after step 3"), 130, "stopped: asked to stop after step 3"),
        (FileNotFoundError("a"), 2, "error: a; check that the path exists and that you have access to it"),
        (
            ConnectionError("gone"),
            1,
            "failed: gone; check that the cluster at RAY_ADDRESS is up, or unset RAY_ADDRESS to run on this machine",
        ),
        (VerdictError("the answer is no"), 1, "failed: the answer is no"),
        (StoppedError("a training worker died; --max-failures"), 1, "failed: a training worker died; --max-failures"),
        (KeyboardInterrupt("asked to stop after step 3"), 130, "stopped: asked to stop after step 3"),
        (KeyboardInterrupt(), 130, "stopped: run the same command again to resume it"),
        (
            UserError(f"got {'x' * 9000}; give a number"),
            2,
            f"error: got {'x' * 1996} [5,019 characters left out] {'x' * 1985}; give a number",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_is_one_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    def raises(words: list[str]) -> int:
        raise error

    monkeypatch.setattr(listing, "list_", raises)
    assert __main__.main(["list"]) == code
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize(
    "bug",
    [
        ValueError("invalid literal"),
        KeyError("name"),
        RuntimeError("so it is"),
        pa.ArrowInvalid("no int"),
        json.JSONDecodeError("Expecting value", "x", 0),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_without_an_exit_code_of_its_class_is_a_bug_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, bug: Exception
) -> None:
    def raises(words: list[str]) -> int:
        raise bug

    monkeypatch.setattr(listing, "list_", raises)
    with pytest.raises(type(bug)) as caught:  # Python prints its traceback and ends with 1
        __main__.main(["list"])
    assert caught.value is bug


def test_the_traceback_of_a_user_error_is_a_variable_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "PIPELINES_TRACEBACK=1" in (__main__.__doc__ or "")
    monkeypatch.setenv("PIPELINES_TRACEBACK", "1")
    assert __main__.main(["show", "no_such"]) == 2
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("Traceback")
    assert last.startswith("error: no stage or recipe 'no_such'")


def test_every_list_of_exit_codes_names_all_of_them() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    lists = re.findall(r"Exit codes: [^.]+", f"{readme}\n{__main__.__doc__}")
    assert len(lists) == 2
    for text in lists:
        assert set(re.findall(r"\b\d+\b", text)) == CODES, text
