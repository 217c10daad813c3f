"""A proxy in front of an HTTP server on this machine that fails as a busy object store does.

A seeded share of the requests is answered by 429 or 503, or loses its connection, either before the server has seen it
or after the server has carried it out (the lost answer is the hard case). `outage` refuses all requests for some time.
"""

import http.client
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

FAULTS = ("429", "503", "reset before", "reset after")
HOP_HEADERS = {"connection", "transfer-encoding", "keep-alive"}


class FaultyProxy:
    """A running proxy. `counts` has its faults, `listings` the prefix of each requested listing of objects."""

    def __init__(self, target: str, share: float, seed: int = 0) -> None:
        self.target = urlsplit(target).netloc
        self.share = share
        self.counts: Counter[str] = Counter()
        self.listings: list[str] = []
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._down_until = 0.0

    def outage(self, seconds: float) -> None:
        """Answers every request of the next `seconds` by 503, or drops its connection."""
        self._down_until = time.monotonic() + seconds

    def note(self, method: str, path: str) -> None:
        """Notes a request that lists objects of a bucket."""
        asked = urlsplit(path)
        if method == "GET" and asked.path.endswith("/o"):  # an object's name would follow, with its slashes escaped
            self.listings.append(parse_qs(asked.query).get("prefix", [""])[0])

    def draw(self) -> str:
        """The fault of the next request, or "" for none."""
        with self._lock:
            down = time.monotonic() < self._down_until
            fault = ""
            if down:
                fault = self._random.choice(("503", "reset before"))
            elif self._random.random() < self.share:
                fault = self._random.choice(FAULTS)
            self.counts["outage" if down else fault or "passed on"] += 1
            return fault


@contextmanager
def faulty_proxy(target: str, share: float, seed: int = 0) -> Iterator[tuple[str, FaultyProxy]]:
    """(URL, proxy). The proxy ends with the block."""
    proxy = FaultyProxy(target, share, seed)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except (ConnectionError, TimeoutError):  # a client that no longer waits
                self.close_connection = True

        def _pass_on(self) -> None:
            body = self._body()
            proxy.note(self.command, self.path)
            fault = proxy.draw()
            if fault == "reset before":
                return self._reset()
            if fault in ("429", "503"):
                return self._answer(int(fault), [], b'{"error": {"code": %s, "message": "busy"}}' % fault.encode())
            connection = http.client.HTTPConnection(proxy.target, timeout=60)
            try:
                headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_HEADERS}
                connection.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
                answer = connection.getresponse()
                content = answer.read()
                sent = [(name, value) for name, value in answer.getheaders() if name.lower() not in HOP_HEADERS]
            finally:
                connection.close()
            if fault == "reset after":
                return self._reset()
            return self._answer(answer.status, sent, content)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() != "content-length":
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _reset(self) -> None:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # an RST, no goodbye
            self.connection.close()

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _pass_on

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", proxy
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
