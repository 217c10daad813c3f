"""Command lines in this process, over a Ray that is started once.

    run_here(*words)                      in tests: on the Ray of the session (tests/conftest.py)
    python -m tests.programs.here LINES   in its own process, for another environment

LINES is JSON: a list of command lines, each a list of words. A line that begins with "!" is for another program. A word
"$0" stands for the last line that the first command printed, the directory of its run. Prints a JSON list of
[exit code, stdout, stderr].
"""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from infra.ray_session import RaySession, own_token
from infra.warm_process import WarmProcess
from pipelines.cli import commands
from tests.programs.places import REPOSITORY

Done = subprocess.CompletedProcess[str]
RunHere = Callable[..., Done]
"""type of the fixture `run_here`"""


class Kept(RaySession):
    """A session that stays open when the command that uses it ends."""

    def __init__(self, session: RaySession) -> None:
        self._session = session

    def start(self) -> None:
        self._session.start()

    def has_tpu(self) -> bool:
        return False

    def warm_process(self) -> WarmProcess | None:
        return self._session.warm_process()

    def map(
        self, tasks: Mapping[int, Any], work: Callable[[int, Any], dict[str, Any]], **settings: Any
    ) -> Iterator[dict[str, Any]]:
        return self._session.map(tasks, work, **settings)

    def close(self) -> None:
        pass


def address_of(session: RaySession) -> dict[str, str]:
    """The environment in which another process of ours joins the embedded Ray of this session."""
    import ray

    session.start()
    return {
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": own_token(),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the address stays 127.0.0.1
    }


@contextlib.contextmanager
def kept_session(session: RaySession) -> Iterator[None]:
    """Inside this context, commands of this process use the session."""
    before = commands.RaySession
    commands.RaySession = lambda cpus=None: Kept(session)  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        commands.RaySession = before  # type: ignore[misc]


def done(words: Sequence[str]) -> Done:
    """The result of one of our command lines."""
    from pipelines.__main__ import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(list(words))
        except SystemExit as end:
            code = int(end.code or 0)
    return Done(list(words), code, out.getvalue(), err.getvalue())


def in_own_process(*lines: Sequence[str], before: Sequence[str] = (), **environment: str) -> list[Done]:
    """The result of each line. `before` are words in front of the interpreter's."""
    process = subprocess.run(
        [*before, sys.executable, "-m", "tests.programs.here", json.dumps(lines)],
        cwd=REPOSITORY,
        env={**{name: value for name, value in os.environ.items() if not name.startswith("RAY_")}, **environment},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return [Done(list(words), *ended) for words, ended in zip(lines, json.loads(process.stdout), strict=True)]


def _main() -> None:
    session = RaySession()
    ended: list[Done] = []
    with kept_session(session):
        for line in json.loads(sys.argv[1]):
            words = [ended[int(word[1:])].stdout.split()[-1] if word[:1] == "$" else word for word in line]
            if words[0] == "!":
                ended.append(subprocess.run(words[1:], capture_output=True, text=True, check=False))
            else:
                ended.append(done(words))
    session.close()
    print(json.dumps([[line.returncode, line.stdout, line.stderr] for line in ended]))


if __name__ == "__main__":
    _main()
