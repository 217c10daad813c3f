"""A bucket that cannot be reached, or may not be written: one line that says so, before any Ray is started."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from pipelines.__main__ import main
from tests.e2e.conftest import pipelines

LINE = ("run", "collect_text", "--input", "README.md", "--root", "gs://somebodys/runs")


@pytest.fixture
def forbidding() -> Iterator[str]:
    """The URL of a server that answers every request with 403."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b'{"error": {"code": 403, "message": "the account has no storage.objects.create access"}}'
            self.send_response(403)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_DELETE = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
def test_a_bucket_without_permission_is_told(forbidding: str) -> None:
    check_refused(forbidding, "may not do that; grant roles/storage.objectUser on the bucket")


@pytest.mark.slow
def test_a_bucket_out_of_reach_is_told(
    unused_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gcsfs import retry

    monkeypatch.setattr(retry, "random", SimpleNamespace(random=lambda: -60.0))  # six tries, but no wait between them
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{unused_port}")
    assert main(list(LINE)) == 1
    errors = capsys.readouterr().err
    assert "the bucket cannot be reached (Cannot connect to host 127.0.0.1" in errors
    assert len(errors.splitlines()) == 1, errors


@pytest.fixture
def unused_port() -> int:
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    port: int = server.server_port
    server.server_close()
    return port


def check_refused(url: str, sentence: str) -> None:
    done = pipelines(*LINE, STORAGE_EMULATOR_HOST=url)
    assert done.returncode == 1, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
