import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import aiohttp
import pytest
import requests

from pipelines import submit
from pipelines.__main__ import main
from tests.chaos_log import REPOSITORY


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("", "needs the name of a stage or recipe"),
        ("smok --root /tmp/x", "did you mean 'smoke'"),
        ("smoke", "--root is not given; a job runs elsewhere: give gs://bucket/path, or an absolute path"),
        ("smoke --root runs", "--root is runs; a job runs elsewhere"),
        ("smoke --root /tmp/x --teacher.stepz 3", "did you mean"),
        ("smoke --root gs://bucket/x --only teachr", "no step 'teachr'; did you mean 'teacher'"),
        ("smoke --root gs://bucket/x --only", "--only needs a value"),
        ("gemma2_2b_distill --root gs://bucket/x", "gemma2_2b_distill needs --"),
        ("collect_text --root memory://x --input /x", "vanishes with it; give a directory or gs://bucket/path"),
        ("collect_text --root gs://bucket/x --shard-bytes -1", "shard_bytes is -1"),
        ("smoke --root gs://bucket/x --address", "--address needs a value"),
        ("smoke --root gs://bucket/x", "--address http://HOST:8265 of the cluster's head"),
        ("smoke --root gs://bucket/x --address http://127.0.0.1:1", "no cluster answers at http://127.0.0.1:1"),
        ("smoke --root gs://bucket/x --address 127.0.0.1:8265", "give the dashboard of the cluster's head as http://"),
        ("smoke --root gs://bucket/x --address auto", "--address is 'auto'; give the dashboard"),
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
    line: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(submit.ADDRESS_VARIABLE, raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises((ValueError, SystemExit)) as refused:
        submit.submit(line.split())
    assert told in str(refused.value) + capsys.readouterr().err


def test_steps_of_a_recipe_are_chosen_as_for_run() -> None:
    submit.check_line(["smoke", "--root", "gs://bucket/x", "--only", "collect,filter"])


@pytest.mark.parametrize(
    ("status", "body"), [(404, b""), (500, b"broken"), (502, b"<html>"), (200, b"<html>"), (200, b"{}"), (200, b"[1]")]
)
def test_what_is_no_dashboard_is_told_in_a_line(
    status: int, body: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")  # Ray's own client would go there instead
    try:
        assert main(["submit", "smoke", "--root", "gs://bucket/x", "--address", address]) == 2
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: what answers at {address} does not take the job as a Ray dashboard would (")


class LostClient:
    """Follows a log of one line, which ends with an error."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield f"a line of {job}\n"
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (KeyboardInterrupt(), 130, "no longer following: job raysubmit_1 goes on"),
        (RuntimeError("WebSocket closed"), 1, "was lost (WebSocket closed): job raysubmit_1 goes on if its cluster"),
        (aiohttp.ClientError("reset\nby peer"), 1, "was lost (reset): job raysubmit_1 goes on"),
        (requests.exceptions.ConnectionError(), 1, "was lost (ConnectionError): job raysubmit_1 goes on"),
    ],
)
def test_who_stops_following_is_told_that_the_job_goes_on(
    error: BaseException, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit.follow(LostClient(error), "raysubmit_1", "http://127.0.0.1:8265") == code
    line, said, follow, stop = capsys.readouterr().err.splitlines()
    assert line == "a line of raysubmit_1"
    assert told in said
    assert "ray job logs raysubmit_1 --address http://127.0.0.1:8265 --follow" in follow
    assert "ray job stop raysubmit_1 --address http://127.0.0.1:8265" in stop


def test_what_is_shipped_is_small_and_enough(tmp_path: Path) -> None:
    """Without environments, runs, git's own files; unpacked elsewhere it imports and knows every stage and recipe."""
    package = tmp_path / "working_dir.zip"
    from ray._private.runtime_env.packaging import create_package

    create_package(str(REPOSITORY), package, include_gitignore=True)
    assert package.stat().st_size < 8 << 20
    with zipfile.ZipFile(package) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "there")
    tops = {name.partition("/")[0] for name in names}
    assert {"model", "data", "training", "infra", "pipelines", "requirements.txt"} <= tops
    assert not {".git", ".venv", ".venv-fit", ".venv-rival", ".cache", "runs", ".ci"} & tops
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [sys.executable, "-m", "pipelines", "list"]
    done = subprocess.run(words, cwd=tmp_path / "there", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    here = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == here.stdout


def test_a_repository_with_data_in_it_is_refused_by_the_names_of_the_largest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(REPOSITORY / ".gitignore", tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "ignored.bin").write_bytes(os.urandom(300_000))
    (tmp_path / "corpus.jsonl").write_bytes(os.urandom(200_000))
    assert 200_000 < submit.check_size(tmp_path) < 300_000
    monkeypatch.setattr(submit, "MOST_BYTES", 100_000)
    with pytest.raises(ValueError, match=r"the largest are corpus\.jsonl \(200\.\d kB\).*move them out, or name them"):
        submit.check_size(tmp_path)


def test_a_huge_file_is_refused_before_anything_is_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "corpus.bin").open("wb") as file:
        file.truncate(200 << 30)  # a hole: takes no room, and would take minutes to pack
    monkeypatch.setenv("TMPDIR", "/nowhere")
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"would ship 214\.7 GB.*corpus\.bin \(214\.7 GB\)"):
        submit.check_size(tmp_path)
    assert time.monotonic() - began < 5
