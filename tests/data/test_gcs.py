"""gs:// against a real server on this machine, first by our storage calls, then by stages on Ray."""

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pyarrow as pa
import pytest

from data import schema, shards, sources, storage
from data.manifest import Dataset, Manifest, Shard, listed, publish_manifest, read_manifest
from data.tokenizer import train_tokenizer
from infra.ray_session import RaySession
from model import hf_files
from pipelines.engine.inputs import external_input
from pipelines.engine.resources import Resources
from pipelines.engine.runner import run_task
from pipelines.engine.stage import load_stage
from pipelines.engine.task import Task, resolve_inputs
from pipelines.stages import collect_text
from tests.programs import credentials
from tests.programs.places import REPOSITORY

pytestmark = pytest.mark.slow
SECRET = re.compile(r"private_key|\btoken\b|_token\b|authorization|bearer|password|refresh", re.IGNORECASE)
"""words of credentials; `tokens` are ours"""
CREATE = """
import sys
from data import storage
assert not storage.exists(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
try:
    storage.create_exclusive(sys.argv[1], sys.argv[2].encode() * 100_000)
    print("won")
except FileExistsError:
    print("lost")
"""


@pytest.fixture
def bucket(gcs_server: str, request: pytest.FixtureRequest) -> str:
    """URI of a new bucket."""
    name = f"bucket-{abs(hash(request.node.name)):x}"[:40]
    ask = urllib.request.Request(
        f"{gcs_server}/storage/v1/b?project=test",
        data=b'{"name": "%s"}' % name.encode(),
        headers={"Content-Type": "application/json"},
    )
    urllib.request.urlopen(ask).close()
    return f"gs://{name}"


def manifest(stage: str = "filter_text") -> Manifest:
    shard = Shard(name="text/00000.parquet", rows=1, bytes=2, sha256="0" * 64)
    return Manifest(
        stage=stage, version=1, fingerprint="0" * 16, config={}, inputs={}, datasets={"text": Dataset(shards=(shard,))}
    )


def test_a_pinned_object_is_read_as_it_was_or_refused(bucket: str, tmp_path: Path) -> None:
    """Each request names the generation, so bytes of another one never arrive."""
    uri = f"{bucket}/folder/a.jsonl"
    storage.write_bytes(uri, b'{"text": "before"}\n' * 9)
    pinned = storage.Pinned(uri, storage.content(uri))
    reads = (
        lambda: storage.read_bytes(pinned),
        lambda: storage.read_range(pinned, 3, 9),
        lambda: storage.download(pinned, tmp_path / "a"),
        lambda: [batch.text["text"].to_pylist() for batch in collect_source(pinned)],
    )
    before = [read() for read in reads]
    assert before[3] == [["before"] * 9]
    storage.write_bytes(uri, b'{"text": "after"}\n' * 9)
    for read in reads:
        with pytest.raises(ValueError, match=r"a\.jsonl changed after the run began .that generation is gone"):
            read()
    assert b"after" in storage.read_bytes(uri)


def test_listed_shards_are_compared_in_a_bucket_too(bucket: str) -> None:
    table = pa.table({"a": list(range(99)), "b": ["x"] * 99})
    first, second = (shards.write_table(bucket, f"text/{k}.parquet", table.slice(k, 90)) for k in (0, 1))
    for columns in (["a"], ["a", "b"]):
        assert shards.read_table(listed(bucket, first), columns).num_rows == 90
        for wrong in (replace(second, name=first.name), replace(first, bytes=first.bytes + 9), replace(first, bytes=9)):
            with pytest.raises(ValueError, match=r"text/0\.parquet is not the file that its manifest lists"):
                shards.read_table(listed(bucket, wrong), columns)
        far = replace(first, bytes=1 << 30)
        with pytest.raises(ValueError, match="its size is not 1,073,741,824 bytes"):
            shards.read_table(listed(bucket, far), columns)


def collect_source(uri: str) -> Iterator[sources.Batch]:
    return sources.collect("s", [("a.jsonl", uri)], sources.Options(), 1 << 20)


def test_bytes_are_written_read_listed_moved_and_removed(bucket: str) -> None:
    run = storage.join(bucket, "runs", "one")
    for name, content in {"b/x": b"123", "a": b"1", "b/y/z": b"12345"}.items():
        storage.write_bytes(storage.join(run, name), content)
    storage.write_bytes(storage.join(bucket, "runs", "one-more", "c"), b"")
    assert storage.list_files(run) == [("a", 1), ("b/x", 3), ("b/y/z", 5)]
    assert storage.is_directory(run)
    assert storage.exists(f"{run}/a")
    with storage.open_input(f"{run}/b/y/z") as file:
        file.seek(2)
        assert file.read() == b"345"

    storage.write_bytes(f"{run}/a", b"replaced")
    storage.move(f"{run}/b/x", f"{run}/a")
    assert storage.read_bytes(f"{run}/a") == b"123"
    assert not storage.exists(f"{run}/b/x")

    storage.remove_tree(run)
    assert storage.list_files(run) == []
    assert storage.list_files(f"{bucket}/runs") == [("one-more/c", 0)]
    storage.remove(f"{run}/a")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(f"{run}/a")


def test_of_many_threads_that_publish_at_once_one_is_first(bucket: str) -> None:
    barrier = Barrier(4)

    def publish(_: int) -> bool:
        barrier.wait()
        return publish_manifest(f"{bucket}/run", manifest())

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(publish, range(4))) == [False, False, False, True]
    assert read_manifest(f"{bucket}/run") == manifest()
    with pytest.raises(RuntimeError, match="not deterministic"):
        publish_manifest(f"{bucket}/run", manifest("collect_text"))
    assert read_manifest(f"{bucket}/run") == manifest()


def test_of_two_processes_that_create_at_once_one_wins_with_its_whole_content(bucket: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CREATE, f"{bucket}/lock", digit],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for digit in "12"
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert sorted(said) == ["lost", "won"]
    assert storage.read_bytes(f"{bucket}/lock") == (b"1" if said[0] == "won" else b"2") * 100_000


def test_a_table_is_read_back_with_its_checksums(bucket: str) -> None:
    rows = [
        {"id": f"{n:032x}", "source": "s", "tokens": [2, *range(1000), 1], "text_bytes": n, "masked": []}
        for n in range(50)
    ]
    table = pa.Table.from_pylist(rows, schema.TOKENS)
    shard = shards.write_table(bucket, "tokens/00000.parquet", table, tokens=50 * 1002)
    uri = f"{bucket}/{shard.name}"
    assert shards.read_table(uri).equals(table)
    assert shards.read_table(uri).schema.equals(schema.TOKENS, check_metadata=True)
    damaged = bytearray(storage.read_bytes(uri))
    damaged[len(damaged) // 3] ^= 1
    storage.write_bytes(uri, bytes(damaged))
    with pytest.raises(ValueError, match="is damaged"):
        shards.read_table(uri)


def test_files_are_named_by_generation_and_checksum(bucket: str) -> None:
    storage.write_bytes(f"{bucket}/in/a.txt", b"one")
    storage.write_bytes(f"{bucket}/in/b/c.txt", b"two")
    spellings = [f"{bucket}/in", f"{bucket}/in/", f"{bucket}/in/**/*.txt"]
    inputs = [external_input([path], None) for path in spellings]
    assert len({resolved.reference for resolved in inputs}) == 1
    assert [file.name for file in inputs[0].files] == ["a.txt", "b/c.txt"]
    storage.write_bytes(f"{bucket}/in/a.txt", b"0ne")
    assert external_input([f"{bucket}/in"], None).reference != inputs[0].reference


def test_stages_run_with_their_root_in_a_bucket(
    bucket: str,
    ray_session: RaySession,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name, value in credentials.plant(tmp_path).items():  # the workers have it from tests/conftest.py
        monkeypatch.setenv(name, value)
    storage.write_bytes(f"{bucket}/in/a.jsonl", b'{"text": "keep"}\n{"text": "  "}\n{"text": "\xff"}\n')
    storage.write_bytes(f"{bucket}/in/b.txt", b"and this")
    root, said = f"{bucket}/runs", list[str]()

    def run(name: str, config: object, **inputs: str) -> tuple[Task, Manifest]:
        stage = load_stage(name)
        given = {key: [text] for key, text in inputs.items()}
        task = Task(stage=stage, config=config, inputs=resolve_inputs(stage, config, given, root), root=root)
        return task, run_task(task, Resources(), ray_session, said.append)

    collect, collected = run("collect_text", collect_text.Config(shard_bytes=1), input=f"{bucket}/in")
    assert collected.dropped == {"invalid_utf8": 1}
    reference = f"collect_text/{collect.fingerprint}"
    filtered_task, filtered = run("filter_text", load_stage("filter_text").config(), text=reference)
    assert filtered.dropped == {"empty": 1}
    texts = [
        text
        for shard in filtered.datasets["text"].shards
        for text in shards.read_table(f"{filtered_task.directory}/{shard.name}")["text"].to_pylist()
    ]
    assert texts == ["keep", "and this"]
    names = [name for name, _ in storage.list_files(filtered_task.directory)]
    listed = [shard.name for dataset in filtered.datasets.values() for shard in dataset.shards]
    assert sorted(names) == sorted([*listed, "_CONFIG.json", "_MANIFEST.json", "_RUN.json"])

    run("filter_text", load_stage("filter_text").config(), text=reference)
    assert said[-1].endswith("done before, nothing to do")

    logs = "\n".join([*said, *capfd.readouterr()])
    files = [name for name, _ in storage.list_files(root) if name.endswith(".json")]
    assert sum(name.endswith(("_MANIFEST.json", "_RUN.json")) for name in files) == 4
    for where, text in [("logs", logs), *((name, storage.read_bytes(f"{root}/{name}").decode()) for name in files)]:
        assert not SECRET.search(text), where

    secrets = (credentials.SENTINEL, os.environ["RAY_AUTH_TOKEN"])
    assert not [secret for secret in secrets if secret in logs]
    assert credentials.written_in_bucket(bucket, *secrets) == []
    assert worker_variable("GOOGLE_OAUTH_ACCESS_TOKEN") == credentials.SENTINEL, "otherwise nothing was tested"
    rays_own = Path(ray_logs())
    assert list(rays_own.glob("*")), "there should be some"
    assert list(credentials.written_in_folder(rays_own, *secrets)) == []


def worker_variable(name: str) -> str | None:
    """Of the environment of a Ray worker."""
    import ray

    value: str | None = ray.get(ray.remote(lambda: os.environ.get(name)).remote())
    return value


def ray_logs() -> str:
    """The folder where the running Ray writes what it logs."""
    from ray._private import worker

    folder: str = worker._global_node.get_logs_dir_path()
    return folder


def test_a_model_is_imported_from_a_bucket_and_exported_to_it(bucket: str, tmp_path: Path) -> None:
    from pipelines.stages import export_model, import_model
    from tests.programs.reference import lively_model

    def run(name: str, config: object, root: str, **inputs: str) -> tuple[str, Manifest]:
        stage = load_stage(name)
        resolved = resolve_inputs(stage, config, {key: (text,) for key, text in inputs.items()}, root)
        task = Task(stage=stage, config=config, inputs=resolved, root=root)
        return task.directory, run_task(task, Resources(), RaySession(), lambda _: None)

    source, root = storage.join(bucket, "hf"), storage.join(bucket, "runs")
    for name, data in hf_files(lively_model(layers=1), shard_bytes=60_000):
        storage.write_bytes(storage.join(source, name), data)
    model = train_tokenizer([Path(__file__).read_text() * 9], 1024)
    storage.write_bytes(storage.join(source, "tokenizer.model"), model)

    directory, there = run("import_model", import_model.Config(), root, weights=source)
    exported, written = run("export_model", export_model.Config(), root, checkpoint=directory, tokenizer=directory)
    assert storage.exists(storage.join(exported, "model", "model.safetensors"))
    for shard in written.datasets["model"].shards:
        (tmp_path / Path(shard.name).name).write_bytes(storage.read_bytes(storage.join(exported, shard.name)))
    _, here = run("import_model", import_model.Config(), str(tmp_path / "runs"), weights=str(tmp_path))
    assert here.datasets == there.datasets
