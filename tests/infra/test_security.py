"""Nobody from outside is let in: sockets, tokens, open clusters, and the audit of dependencies."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from infra.advisories import NOT_RUN, judge
from infra.ray_session import CHECK_ALIVE, RaySession, protect_token_file, refuse_open_cluster
from tests.programs.places import REPOSITORY
from tests.programs.sockets import descendants, listening, open_to_others


@pytest.mark.slow
def test_the_embedded_ray_listens_on_loopback_only(ray_session: RaySession) -> None:
    ray_session.start()
    sockets = listening(descendants())
    assert len(sockets) >= 4, "raylet, store of state, agent, driver"
    assert open_to_others(sockets) == {}
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


def test_a_cluster_that_others_reach_without_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match=r"10\.0\.0\.3:6379 is reached over the network and no token is in use"):
        refuse_open_cluster({"RAY_ADDRESS": "10.0.0.3:6379"})
    for there in ("ray://head.example:10001", "ray://10.0.0.3", "127.evil.com:6379", "head:6379", "[fd00::1]:6379"):
        with pytest.raises(ValueError, match="RAY_AUTH_MODE"):
            refuse_open_cluster({"RAY_ADDRESS": there, "RAY_AUTH_MODE": "disabled"})
    refuse_open_cluster({"RAY_ADDRESS": "10.0.0.3:6379", "RAY_AUTH_MODE": "token"})
    for here in ("127.0.0.1:6379", "127.0.0.2:6379", "ray://127.0.0.1", "auto", "localhost:6379", "[::1]:6379", ""):
        refuse_open_cluster({"RAY_ADDRESS": here})


@pytest.mark.parametrize("address", ["10.0.0.3", "host", "127.0.0.1:port", "http://127.0.0.1:8265", "ray://", "[::1"])
def test_an_address_that_is_none_is_told(address: str) -> None:
    with pytest.raises(ValueError, match="give HOST:PORT, ray://HOST:PORT or auto, or unset it"):
        refuse_open_cluster({"RAY_ADDRESS": address})


def test_the_cluster_that_auto_finds_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import services

    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(services, "get_ray_address_from_environment", lambda *_: "10.255.255.1:6379")
    with pytest.raises(ValueError, match=r"10\.255\.255\.1:6379 is reached over the network and no token"):
        RaySession().start()


def test_a_cluster_that_does_not_answer_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ValueError, match=r"no cluster answers at 127\.0\.0\.1:1 .*set RAY_ADDRESS to .*or unset it"):
        RaySession().start()


def test_the_session_refuses_before_it_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.255.255.1:6379")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ValueError, match="anyone there could run code as you"):
        RaySession().start()


@contextmanager
def cluster_that_wants(token: str | None) -> Iterator[str]:
    """The address of what answers as a cluster's store of state does (tests/e2e/test_jobs.py has real ones)."""

    def alive(request: bytes, context: grpc.ServicerContext) -> bytes:
        brought = dict(context.invocation_metadata()).get("authorization")
        if token is not None and brought != f"Bearer {token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return request

    service, method = CHECK_ALIVE.strip("/").split("/")
    handlers = {method: grpc.unary_unary_rpc_method_handler(alive)}
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool, handlers=[grpc.method_handlers_generic_handler(service, handlers)])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()


@pytest.mark.parametrize(
    ("theirs", "ours", "refusal"),
    [
        (None, "a" * 32, "asks for no token: anyone who reaches it could run code as you; start it with"),
        ("b" * 32, "a" * 32, "refuses this process; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"),
        ("b" * 32, None, "refuses this process; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"),
    ],
)
def test_a_cluster_for_everybody_or_not_for_us_is_told_before_ray_connects(
    theirs: str | None, ours: str | None, refusal: str
) -> None:
    """In a process of its own: Ray reads mode and token once."""
    with cluster_that_wants(theirs) as address:
        mode = {"RAY_AUTH_MODE": "disabled"} if ours is None else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": ours}
        done = subprocess.run(
            [sys.executable, "-c", "from infra.ray_session import RaySession; RaySession().start()"],
            cwd=REPOSITORY,
            env={**os.environ, **mode, "RAY_ADDRESS": address},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.stderr.splitlines()[-1].startswith(f"infra.errors.UserError: the cluster at {address} {refusal}"), (
        done.stderr
    )


def test_a_token_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("0" * 64)
    token.chmod(0o644)  # what Ray leaves
    protect_token_file({"HOME": str(tmp_path)})
    assert token.stat().st_mode & 0o777 == 0o600
    token.chmod(0o640)
    protect_token_file({"HOME": "/nowhere", "RAY_AUTH_TOKEN_PATH": str(token)})
    assert token.stat().st_mode & 0o777 == 0o600
    protect_token_file({"HOME": str(tmp_path / "none")})


def test_everything_pinned_is_audited() -> None:

    (line,) = [
        printed for printed in (REPOSITORY / "Makefile").read_text().splitlines() if "infra/advisories.py" in printed
    ]
    pinned = [*REPOSITORY.glob("requirements*.txt"), *(REPOSITORY / "infra").glob("requirements*.txt")]
    assert sorted(line.partition("pip-audit ")[2].split()) == sorted(
        path.relative_to(REPOSITORY).as_posix() for path in pinned
    )


def test_an_audit_says_what_it_found_or_that_it_did_not_run() -> None:
    clean = {"name": "a", "version": "1", "vulns": []}
    bad = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
    assert judge(json.dumps({"dependencies": [clean]}), "") == (0, "nothing known of 1 packages")
    code, verdict = judge(json.dumps({"dependencies": [clean, bad]}), "")
    assert (code, verdict) == (1, "1 known in 2 packages\n  b 2: CVE-1, fixed in 3")
    assert judge("", "requests.exceptions.ConnectionError: ...") == (0, NOT_RUN)
    code, verdict = judge("", "requirements.txt: no hash")
    assert code == 1, "a failure that is no missing network is one"
