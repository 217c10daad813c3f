"""gs:// on a bad day: one request in ten fails, and for 30 s all of them; nothing is lost, doubled or reported wrongly.

The server is real (fake-gcs-server); the faults come from a proxy in front of it.
"""

import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data import storage
from tests.e2e.conftest import SmokeRun, pipelines
from tests.programs import credentials
from tests.programs.chaos_log import chaos_run
from tests.programs.faulty_proxy import FaultyProxy, faulty_proxy

SHARE = 0.1
OUTAGE_SECONDS = 30.0
BUCKET = "bad-day"


@pytest.fixture(scope="module")
def bad_day(gcs_server: str) -> Iterator[tuple[str, FaultyProxy]]:
    """(URL of the server as one sees it on a bad day, the proxy)."""
    ask = urllib.request.Request(
        f"{gcs_server}/storage/v1/b?project=test",
        data=b'{"name": "%s"}' % BUCKET.encode(),
        headers={"Content-Type": "application/json"},
    )
    urllib.request.urlopen(ask).close()
    with faulty_proxy(gcs_server, SHARE) as both:
        yield both


@pytest.mark.slow
def test_every_call_does_what_it_says_though_one_request_in_ten_fails(
    bad_day: tuple[str, FaultyProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, proxy = bad_day
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
    root = f"gs://{BUCKET}/calls"

    def use(number: int) -> None:
        content = b"%d " % number * 100
        storage.create_exclusive(f"{root}/made/{number}", content)  # a lost answer must not look like another driver
        with pytest.raises(FileExistsError):
            storage.create_exclusive(f"{root}/made/{number}", b"other")
        storage.write_bytes(f"{root}/_staging/{number}", content)
        storage.move(f"{root}/_staging/{number}", f"{root}/moved/{number}")
        assert storage.read_bytes(f"{root}/moved/{number}") == content
        storage.remove(f"{root}/moved/{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(24)))
    assert [name for name, _ in storage.list_files(root)] == sorted(f"made/{number}" for number in range(24))
    storage.remove_tree(root)
    assert storage.list_files(root) == []
    assert sum(proxy.counts[fault] for fault in ("429", "503", "reset before", "reset after")) > 10, proxy.counts


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_the_whole_smoke_recipe_in_a_bucket_on_a_bad_day(
    request: pytest.FixtureRequest, bad_day: tuple[str, FaultyProxy], tmp_path: Path
) -> None:
    """On which a credential of the user's lies about, in a file and in the environment: it gets into nothing."""
    url, proxy = bad_day
    planted = credentials.plant(tmp_path)
    with chaos_run("smoke on gs with faults and an outage", "smoke") as counts:
        smoke: SmokeRun = request.getfixturevalue("smoke")
        before = proxy.counts.total()
        # in the middle of the data stages, which make some 500 requests
        waiting = threading.Thread(target=_outage_after, args=(proxy, before + 300))
        waiting.start()
        done = pipelines(
            "run", "smoke", "--root", f"gs://{BUCKET}/runs", "--feed", "ray", timeout=1700, STORAGE_EMULATOR_HOST=url,
            **planted,
        )  # fmt: skip
        waiting.join()
        assert done.returncode == 0, done.stderr[-4000:]
        assert proxy.counts["outage"] > 0
        counts.kills = proxy.counts.total() - proxy.counts["passed on"]
        counts.compared, counts.lost = _differing(smoke.root)
        assert counts.lost == 0
        assert credentials.SENTINEL not in done.stdout + done.stderr
        assert credentials.written_in_bucket(f"gs://{BUCKET}/runs", credentials.SENTINEL) == []


def _outage_after(proxy: FaultyProxy, requests: int) -> None:
    pause = threading.Event()
    for _ in range(10_000):
        if proxy.counts.total() >= requests:
            proxy.outage(OUTAGE_SECONDS)
            return
        pause.wait(0.1)


def _differing(local: Path) -> tuple[int, int]:
    """Manifests of the local run, and how many of them the bucket lacks or has otherwise."""
    manifests = sorted(local.glob("*/*/_MANIFEST.json"))
    lost = 0
    for path in manifests:
        uri = f"gs://{BUCKET}/runs/{path.relative_to(local)}"
        lost += not storage.exists(uri) or storage.read_bytes(uri) != path.read_bytes()
    return len(manifests), lost
