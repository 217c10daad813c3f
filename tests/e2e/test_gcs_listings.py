"""How often stages and training list objects of a bucket: so often a run, however many shards and checkpoints it has.

The work of the stages in this process, against a real server behind a proxy that sees each request.
"""

import dataclasses
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest

from data import schema, shards, storage
from data.manifest import Dataset, Manifest, publish_manifest, read_manifest
from pipelines.engine.resources import Resources
from pipelines.engine.runner import run_task
from pipelines.engine.task import Task
from tests.programs.corpora import mixed_corpus
from tests.programs.examples import DATASETS, example_job, write_sequences
from tests.programs.faulty_proxy import FaultyProxy, faulty_proxy
from tests.programs.in_process import InProcess, chain

pytestmark = pytest.mark.slow

BUCKET = "listings"
MOST_A_PHASE = 10
"""what an earlier attempt left, two requests; and after all of them what is to be cleaned up: in the run's folder, and
two requests for each dataset's"""


@pytest.fixture
def proxy(gcs_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """What gs:// goes through in this process; it fails never."""
    ask = urllib.request.Request(
        f"{gcs_server}/storage/v1/b?project=test",
        data=b'{"name": "%s"}' % BUCKET.encode(),
        headers={"Content-Type": "application/json"},
    )
    with suppress(urllib.error.HTTPError):  # an earlier test made it
        urllib.request.urlopen(ask).close()
    with faulty_proxy(gcs_server, 0.0) as (url, proxy):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        yield proxy


def listings(proxy: FaultyProxy, work: Callable[[], object]) -> list[str]:
    """What the work lists: the prefix of each request."""
    before = len(proxy.listings)
    work()
    return proxy.listings[before:]


def test_a_stage_lists_as_often_for_many_shards_as_for_few(proxy: FaultyProxy, tmp_path: Path) -> None:
    few, many = (listings_of_stages(proxy, tmp_path, documents) for documents in (8, 32))
    assert many.pop("shards") >= 3 * few.pop("shards"), "otherwise nothing was tested"
    assert many.keys() == few.keys()
    assert [name for name in many if many[name] > few[name]] == [], "it grew with the shards"
    for name, a_phase in many.items():
        assert a_phase <= MOST_A_PHASE, name


def listings_of_stages(proxy: FaultyProxy, folder: Path, documents: int) -> dict[str, float]:
    """Of each data stage over so many documents, by a phase (deduplicate_text has more for longer chains of copies);
    of a second run with nothing to do; and the most shards that one of them made."""
    local, corpus = folder / str(documents), f"gs://{BUCKET}/corpus-{documents}"
    local.mkdir()
    mixed_corpus(local, documents)
    for path in (path for path in local.rglob("*") if path.is_file()):
        storage.write_bytes(storage.join(corpus, str(path.relative_to(local))), path.read_bytes())
    small = {"collect_text": {"shard_bytes": 8_000}, "pack_sequences": {"shard_tokens": 8_000}}
    counts: dict[str, float] = {"shards": 0}
    tasks: dict[str, Task] = {}
    root, inputs = f"gs://{BUCKET}/runs-{documents}", ("documents", "evaluation")
    resolved = listings(proxy, lambda: tasks.update(chain(root, corpus, small)))
    counts["an input from outside"] = len(resolved) / len(inputs)
    for name, task in tasks.items():

        def run(task: Task = task) -> None:
            manifest = run_task(task, Resources(), InProcess(), say=lambda _: None)
            most = max(len(dataset.shards) for dataset in manifest.datasets.values())
            counts["shards"] = max(counts["shards"], most)

        made = listings(proxy, run)
        phases = {match[1] for prefix in made if (match := re.search("/_receipts/([^/]+)", prefix))}
        counts[name] = (len(made) - 1) // len(phases)
        counts[f"{name} again"] = len(listings(proxy, run))
    return counts


def test_to_read_a_manifest_or_a_shard_lists_nothing(proxy: FaultyProxy) -> None:
    run = f"gs://{BUCKET}/reading"
    made = [shards.write_table(run, f"text/{k:05d}.parquet", pa.Table.from_pylist([], schema.TEXT)) for k in range(3)]
    manifest = Manifest(
        stage="collect_text", version=1, fingerprint="0" * 16, config={}, inputs={},
        datasets={"text": Dataset(shards=tuple(made))},
    )  # fmt: skip
    assert publish_manifest(run, manifest)
    before = proxy.counts.total()

    def read() -> None:
        assert read_manifest(run) == manifest
        for shard in made:
            assert shards.read_table(f"{run}/{shard.name}").num_rows == 0
            with storage.open_input(f"{run}/{shard.name}") as file:
                assert file.read(4) == b"PAR1"

    assert listings(proxy, read) == []
    assert proxy.counts.total() > before, "it did not go through the proxy"
    assert listings(proxy, lambda: read_manifest(f"gs://{BUCKET}/none")) == []


def test_training_lists_once_a_checkpoint_and_never_for_a_shard(proxy: FaultyProxy, tmp_path: Path) -> None:
    few = trained(proxy, tmp_path / "few", shards=1, checkpoints=2)
    assert few == trained(proxy, tmp_path / "shards", shards=6, checkpoints=2)
    many = trained(proxy, tmp_path / "checkpoints", shards=1, checkpoints=8)
    assert many - few == 6, "one for each of its checkpoints: whether it is there already"


def trained(proxy: FaultyProxy, folder: Path, *, shards: int, checkpoints: int) -> int:
    """Listings of a training on gs:// that reads `shards` shards a source and writes so many checkpoints."""
    from training.backends.torch_backend import TorchBackend
    from training.feed import direct_feed
    from training.loop import run_training

    root = f"gs://{BUCKET}/training/{folder.name}"
    datasets = [dataclasses.replace(dataset, shard_rows=dataset.shard_rows[:1] * shards) for dataset in DATASETS]
    job = example_job(
        folder,
        config={"steps": 8, "checkpoint_every_steps": 8 // checkpoints},
        checkpoints_uri=f"{root}/checkpoints",
        sequences=tuple((dataset, ("unread",) * shards) for dataset in datasets),
    )
    job = write_sequences(folder, job)
    uris = tuple((dataset, tuple(f"{root}/{Path(uri).name}" for uri in local)) for dataset, local in job.sequences)
    for _, local in job.sequences:
        for uri in local:
            storage.write_bytes(f"{root}/{Path(uri).name}", Path(uri).read_bytes())
    job = dataclasses.replace(job, sequences=uris)
    return len(listings(proxy, lambda: run_training(job, TorchBackend("cpu"), direct_feed(job))))
