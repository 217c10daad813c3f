"""What docs/troubleshooting.md quotes, printed again.

    python -m tests.programs.troubleshooting        writes the lines into the page

A block of the page holds commands (`$ ...`), each above what it prints to stderr. Each is run in an empty folder, in
this process and without Ray: they all end before Ray would start. Names of this machine are replaced.
"""

import contextlib
import io
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from data import storage
from pipelines.__main__ import main
from pipelines.engine.lease import hold_lease
from tests.programs.places import REPOSITORY

PAGE = REPOSITORY / "docs" / "troubleshooting.md"
BLOCK = re.compile(r"^```text\n(\$ .*?)^```$", re.DOTALL | re.MULTILINE)
HOME = "/home/you"
OLD_PYTHON = "import sys; sys.version_info = (3, 10, 12); sys.executable = '/usr/bin/python3.10'; "


def commands_of(page: str) -> list[str]:
    """Every quoted command, in order."""
    return [line.removeprefix("$ ") for block in BLOCK.findall(page) for line in block.splitlines() if line[0] == "$"]


def renewed(page: str) -> str:
    """The page with what each command prints now."""
    return BLOCK.sub(lambda block: "```text\n" + "".join(map(_quoted, commands_of(block[0]))) + "```", page)


def _quoted(command: str) -> str:
    return f"$ {command}\n{printed(command)}\n"


def printed(command: str) -> str:
    """What a command prints to stderr. Raises RuntimeError where it succeeds."""
    if command == "make demo":
        return _old_python()
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "pipelines"], command
    stderr = io.StringIO()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        quiet = contextlib.redirect_stdout(io.StringIO())
        there = contextlib.chdir(folder)
        with there, _circumstances(words[3:], folder) as (given, replaced), quiet, contextlib.redirect_stderr(stderr):
            code = main(given)
    if not code:
        raise RuntimeError(f"{command} succeeds")
    text = stderr.getvalue().strip()
    for pattern, replacement in {**replaced, re.escape(str(folder)): HOME}.items():
        text = re.sub(pattern, replacement, text)
    return text


@contextlib.contextmanager
def _circumstances(words: list[str], folder: Path) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Makes the world such that the command fails: (words to run, patterns to replace in what it prints)."""
    with contextlib.ExitStack() as stack:
        replaced = {}
        if words[0] == "submit":
            port = _closed_port()
            words = [word.replace(":8265", f":{port}") for word in words]
            replaced = {rf":{port}\b": ":8265"}
        elif words[0] == "fit":
            stack.enter_context(mock.patch("pipelines.fit.cells.FIT_PYTHON", folder / ".venv-fit" / "bin" / "python"))
            stack.enter_context(mock.patch("pipelines.fit.cells.code_digest", return_value="never asked"))
        elif words[:2] == ["run", "import_model"]:
            (folder / "weights").mkdir()
            (folder / "weights" / "config.json").write_text("{}")
            stdout = io.StringIO()
            with contextlib.redirect_stdout(stdout):
                main(["plan", *words[1:]])
            (run,) = re.findall(r"import_model/[0-9a-f]{16}", stdout.getvalue())
            stack.enter_context(mock.patch("pipelines.engine.lease.HEARTBEAT_SECONDS", 0.2))
            stack.enter_context(hold_lease(str(folder / "runs" / run)))
            replaced = {
                re.escape(run): "import_model/0123456789abcdef",
                rf"process {os.getpid()} on {re.escape(socket.gethostname())}": "process 4711 on laptop",
            }
        elif any(word.startswith("gs://") for word in words):
            nowhere = {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{_closed_port()}"}
            stack.enter_context(mock.patch.dict(os.environ, nowhere))
            storage.filesystem(words[-1])  # first, since it says to gcsfs, before its import, how to ask buckets
            from gcsfs import retry

            no_wait = SimpleNamespace(random=lambda: -60.0)  # six tries, but no wait between them
            stack.enter_context(mock.patch.object(retry, "random", no_wait))
            google = "storage.googleapis.com:443 ssl:default [Name or service not known]"
            replaced = {r"host 127\.0\.0\.1:\d+ ssl:\w+ \[[^]]*\]": f"host {google}"}
        yield words, replaced


def _old_python() -> str:
    """What `make` says to a Python that is too old."""
    (check,) = re.findall(r"\$\(PYTHON\) -c '(.*)'$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    code = OLD_PYTHON + check.replace("$(MAKECMDGOALS)", "demo")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done
    return done.stderr.strip()


def _closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text()))
