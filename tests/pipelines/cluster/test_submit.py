import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import requests

from infra.ray_session import own_token
from pipelines.__main__ import main
from pipelines.cluster import submit
from tests.contracts.test_layout import PACKAGES
from tests.programs.places import REPOSITORY


@pytest.mark.parametrize(
    ("line", "refusal"),
    [
        ("", "got no name after submit; give the name of a stage or recipe"),
        ("smok --root /tmp/x", "did you mean 'smoke'"),
        ("smoke", "got no --root; a job runs on other machines, so give gs://bucket/path, or an absolute path"),
        ("smoke --root runs", "got --root runs; a job runs on other machines"),
        ("smoke --root /tmp/x --teacher.stepz 3", "did you mean"),
        ("smoke --root gs://bucket/x --only teachr", "no step 'teachr'; did you mean 'teacher'"),
        ("smoke --root gs://bucket/x --only", "got --only without a value"),
        ("gemma2_2b_distill --root gs://bucket/x", "--teacher-weights for gemma2_2b_distill; give all of them"),
        ("collect_text --root memory://x --input /x", "which ends with it; give a directory or gs://bucket/path"),
        ("collect_text --root gs://bucket/x --shard-bytes -1", "shard_bytes is -1"),
        ("collect_text --root gs://bucket/x", "collect_text needs --input ("),
        ("filter_text --root gs://bucket/x", "filter_text needs --text ("),
        ("filter_text --root gs://bucket/x --text a b", "got 2 inputs for --text (a, b): filter_text takes one"),
        ("smoke --root gs://bucket/x --address", "got --address without a value"),
        ("smoke --root gs://bucket/x", "--address http://HOST:8265 of the cluster's head node"),
        ("smoke --root gs://bucket/x --address http://127.0.0.1:1", "no cluster answers at http://127.0.0.1:1"),
        ("smoke --root gs://bucket/x --address 127.0.0.1:8265", "the dashboard of the cluster's head node as http://"),
        ("smoke --root gs://bucket/x --address auto", "got --address 'auto'; give the dashboard"),
        ("smoke --root gs://bucket/x --address ray://127.0.0.1:10001", "give the dashboard"),
        ("smoke --root gs://bucket/x --address http://127.0.0.1:port", "give the dashboard"),
        (
            "smoke --root gs://bucket/x --address http://10.0.0.3:8265",
            "reached over the network and no token is in use",
        ),
        ("smoke --root gs://bucket/x --address https://127.evil.com", "anyone there could run code as you"),
    ],
)
def test_a_line_that_cannot_run_there_is_refused_here(
    line: str, refusal: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(submit.ADDRESS_VARIABLE, raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises((ValueError, SystemExit)) as refused:
        submit.submit(line.split())
    assert refusal in str(refused.value) + capsys.readouterr().err


def test_steps_of_a_recipe_are_chosen_as_for_run() -> None:
    submit.check_line(["smoke", "--root", "gs://bucket/x", "--only", "collect,filter"])


@contextmanager
def answering(closed: int, status: int, body: bytes) -> Iterator[tuple[str, list[str]]]:
    """(address, requests so far) of a server that says `closed` to who asks for jobs, and `status` to all others."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(f"{self.command} {self.path} {self.headers.get('Authorization', '-')}")
            code = closed if self.path == "/api/jobs/" else status
            self.send_response(code)
            if code == 302:
                self.send_header("Location", "/login")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PUT = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("closed", "status", "body"),
    [
        (401, 404, b""),
        (401, 500, b"broken"),
        (401, 502, b"<html>"),
        (401, 200, b"<html>"),
        (401, 200, b"{}"),
        (401, 200, b"[1]"),
        (404, 404, b""),
        (302, 200, b"<html>"),
        (503, 200, b""),
    ],
)
def test_what_is_no_dashboard_is_told_in_a_line(
    closed: int, status: int, body: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")  # Ray's own client would go there instead
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    # Ray keeps the first token that it reads: that of this process, not of a file that an earlier session left.
    monkeypatch.setenv("RAY_AUTH_TOKEN", own_token())
    with answering(closed, status, body) as (address, _):
        assert main(["submit", "smoke", "--root", "gs://bucket/x", "--address", address]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: got an answer at {address} that a Ray dashboard in order does not give (")


def test_a_cluster_that_asks_nobody_for_a_token_is_sent_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also at the end of a tunnel, which is on loopback; what we know of passwords and tokens does not go there."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    with answering(200, 200, b"[]") as (address, seen):
        assert main(["submit", "smoke", "--root", "gs://bucket/x", "--address", f"{address}/"]) == 2
    assert seen == ["GET /api/jobs/ -"]
    (line,) = capsys.readouterr().err.splitlines()
    assert "asks for no token: anyone who reaches the cluster could run code as you; start the cluster with" in line


def test_a_token_file_is_taken_from_other_users_eyes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "token"
    token.write_text("0" * 64)
    token.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    with pytest.raises(ValueError, match="no cluster answers"):
        submit.submit(["smoke", "--root", "gs://bucket/x", "--address", "http://127.0.0.1:1"])
    assert token.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 1, 1),
        ("FAILED", 2, 2),
        ("FAILED", -9, 1),
        ("FAILED", None, 1),
        ("STOPPED", None, 1),
    ],
)
def test_the_exit_code_is_the_jobs_own(status: str, driver: int | None, code: int) -> None:
    assert submit.exit_code(status, driver) == code


class LostClient:
    """Follows a log of one line, which ends with an error."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield f"a line of {job}\n"
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (KeyboardInterrupt(), 130, "stopped following: job raysubmit_1 runs on"),
        (RuntimeError("WebSocket closed"), 1, "was lost (WebSocket closed): job raysubmit_1 runs on if its cluster"),
        (aiohttp.ClientError("reset\nby peer"), 1, "was lost (reset): job raysubmit_1 runs on"),
        (requests.exceptions.ConnectionError(), 1, "was lost (ConnectionError): job raysubmit_1 runs on"),
    ],
)
def test_who_stops_following_is_told_that_the_job_goes_on(
    error: BaseException, code: int, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit.follow(LostClient(error), "raysubmit_1", "http://127.0.0.1:8265") == code
    line, said, follow, stop = capsys.readouterr().err.splitlines()
    assert line == "a line of raysubmit_1"
    assert reason in said
    assert "ray job logs raysubmit_1 --address http://127.0.0.1:8265 --follow" in follow
    assert "ray job stop raysubmit_1 --address http://127.0.0.1:8265" in stop


def shipped(repository: Path, package: Path) -> dict[str, int]:
    """Name -> bytes of each file that Ray's own client ships of `repository`; packed at `package`, not sent."""
    from ray._private.runtime_env.packaging import create_package
    from ray.job_submission import JobSubmissionClient

    class Packer(JobSubmissionClient):
        def __init__(self) -> None:
            pass

        def _package_exists(self, package_uri: str) -> bool:
            return False

        def _upload_package(self, package_uri: str, package_path: str, *, is_file: bool, **options: Any) -> None:
            create_package(package_path, package, **options)

    Packer()._upload_working_dir_if_needed({"working_dir": str(repository)})
    with zipfile.ZipFile(package) as archive:
        return {entry.filename: entry.file_size for entry in archive.infolist() if not entry.is_dir()}


def python(folder: Path, *words: str, given: str = "") -> str:
    """What a python of its own prints, in `folder`, with nothing else to import from but its environment."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, input=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_shipped_is_small_and_knows_every_stage(tmp_path: Path) -> None:
    """Without environments, runs, git's own files."""
    package = tmp_path / "working_dir.zip"
    names = shipped(REPOSITORY, package)
    assert sum(names.values()) == submit.check_size(REPOSITORY)
    assert package.stat().st_size < 8 << 20
    tops = {name.partition("/")[0] for name in names}
    assert {*PACKAGES, "requirements.txt"} <= tops
    assert not {".git", ".venv", ".venv-fit", ".venv-rival", ".cache", "runs", ".ci"} & tops
    shutil.unpack_archive(package, tmp_path / "there")
    listing = ("-m", "pipelines", "list")
    assert python(tmp_path / "there", *listing) == python(REPOSITORY, *listing)


IMPORT = """
import importlib, pathlib, sys
for name in sys.stdin.read().split():
    module = importlib.import_module(name)
    assert pathlib.Path(module.__file__).is_relative_to(pathlib.Path.cwd()), module.__file__
    print(name)
"""


@pytest.mark.slow
def test_every_module_that_there_is_was_shipped_and_imports_there(tmp_path: Path) -> None:
    package, there = tmp_path / "working_dir.zip", tmp_path / "there"
    names = shipped(REPOSITORY, package)
    shutil.unpack_archive(package, there)
    files = sorted(str(path.relative_to(REPOSITORY)) for top in PACKAGES for path in (REPOSITORY / top).rglob("*.py"))
    assert set(files) <= names.keys()
    modules = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in files]
    assert len(modules) > 150
    assert python(there, "-c", IMPORT, given="\n".join(modules)).split() == modules


def test_a_repository_with_data_in_it_is_refused_by_the_names_of_the_largest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(REPOSITORY / ".gitignore", tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "ignored.bin").write_bytes(os.urandom(300_000))
    (tmp_path / "corpus.jsonl").write_bytes(os.urandom(200_000))
    assert 200_000 < submit.check_size(tmp_path) < 300_000
    monkeypatch.setattr(submit, "MOST_BYTES", 100_000)
    with pytest.raises(ValueError, match=r"largest are corpus\.jsonl \(200\.\d kB\).*: move them out, or name them"):
        submit.check_size(tmp_path)


@pytest.mark.parametrize(
    ("setting", "more"),
    [
        ("", ()),
        ("RAY_RUNTIME_ENV_IGNORE_GITIGNORE=1", ("runs/ignored.bin",)),
        ("RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES=", ("venv/lib.py", ".git/objects")),
    ],
)
def test_what_is_measured_is_what_ray_ships(
    setting: str, more: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Ray's settings for it, too: its own packing is the judge."""
    there = tmp_path / "repository"
    for name in ("a.py", "runs/ignored.bin", "venv/lib.py", ".git/objects", "left/out.bin"):
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_bytes(os.urandom(1000))
    (there / ".gitignore").write_text("/runs/\n")
    (there / ".rayignore").write_text("/left\n")
    if setting:
        monkeypatch.setenv(*setting.split("="))
    names = shipped(there, tmp_path / "package.zip")
    assert names.keys() == {"a.py", ".gitignore", ".rayignore", *more}
    assert submit.check_size(there) == sum(names.values())


def test_who_ships_what_git_ignores_is_told_of_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")
    monkeypatch.setattr(submit, "MOST_BYTES", 100)
    (tmp_path / ".gitignore").write_text("/runs/\n")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "big.bin").write_bytes(bytes(1000))
    with pytest.raises(ValueError, match=r"runs/big\.bin .*: unset RAY_RUNTIME_ENV_IGNORE_GITIGNORE, move them out"):
        submit.check_size(tmp_path)


def test_a_huge_file_is_refused_before_anything_is_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "corpus.bin").open("wb") as file:
        file.truncate(200 << 30)  # a hole: takes no room, and would take minutes to pack
    monkeypatch.setenv("TMPDIR", "/nowhere")
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"got 214\.7 GB to ship of .*corpus\.bin \(214\.7 GB\)"):
        submit.check_size(tmp_path)
    assert time.monotonic() - began < 5
