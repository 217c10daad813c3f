import hashlib
import json
import os
import pickle
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from data import shards, storage
from tests.programs.places import REPOSITORY


@pytest.fixture(params=["local", "memory", pytest.param("gs", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URI of an empty folder, of each kind in turn."""
    name = f"place-{uuid.uuid4().hex}"
    if request.param == "local":
        yield str(tmp_path)
    elif request.param == "memory":
        yield f"memory://{name}/folder"
        storage.remove_tree(f"memory://{name}")
    else:
        ask = urllib.request.Request(
            f"{request.getfixturevalue('gcs_server')}/storage/v1/b?project=test",
            data=b'{"name": "%s"}' % name.encode(),
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(ask).close()
        yield f"gs://{name}/folder"


def test_bytes_written_are_bytes_read(place: str) -> None:
    uri = storage.join(place, "a", "b", "c.bin")
    storage.write_bytes(uri, b"one")
    storage.write_bytes(uri, b"two")
    assert storage.read_bytes(uri) == b"two"
    with storage.open_input(uri) as file:
        file.seek(1)
        assert file.read() == b"wo"


def test_a_write_leaves_no_other_file(place: str) -> None:
    storage.write_bytes(storage.join(place, "a"), b"1")
    storage.create_exclusive(storage.join(place, "b"), b"22")
    with pytest.raises(FileExistsError):
        storage.create_exclusive(storage.join(place, "b"), b"333")
    assert storage.list_files(place) == [("a", 1), ("b", 2)]


def test_of_many_exclusive_creates_one_wins_with_its_whole_content(place: str) -> None:
    uri = storage.join(place, "lock")
    contents = [bytes([number]) * 300_000 for number in range(8)]

    def create(content: bytes) -> bool:
        try:
            storage.create_exclusive(uri, content)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, contents))
    assert sum(won) == 1
    assert storage.read_bytes(uri) == contents[won.index(True)]


def test_a_reader_never_sees_part_of_a_write(place: str) -> None:
    uri = storage.join(place, "file")
    storage.write_bytes(uri, b"0" * 1_000_000)
    with ThreadPoolExecutor(1) as pool:
        writes = pool.submit(lambda: [storage.write_bytes(uri, digit * 1_000_000) for digit in (b"1", b"2", b"3")])
        seen = set()
        while not seen or not writes.done():
            content = storage.read_bytes(uri)
            seen.add((len(content), len(set(content))))
    assert seen == {(1_000_000, 1)}


def test_files_are_listed_by_relative_name_in_order(place: str) -> None:
    for name in ("b/x", "a", "b/a/y"):
        storage.write_bytes(storage.join(place, name), name.encode())
    assert storage.list_files(f"{place}/") == [("a", 1), ("b/a/y", 5), ("b/x", 3)]
    assert storage.list_files(storage.join(place, "missing")) == []


def test_what_is_not_there_is_said_so(place: str) -> None:
    missing = storage.join(place, "missing")
    assert not storage.exists(missing)
    assert not storage.is_directory(missing)
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(missing)
    storage.remove(missing)
    storage.remove_tree(missing)


def test_moving_replaces_what_is_there(place: str, tmp_path: Path) -> None:
    source, target = storage.join(place, "source"), storage.join(place, "new", "target")
    for content in (b"moved", b"again"):
        storage.write_bytes(source, content)
        storage.move(source, target)
        assert storage.read_bytes(target) == content
        assert not storage.exists(source)
    storage.download(target, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"again"
    assert storage.read_range(target, 1, 3) == b"ga"


def test_an_exclusive_move_replaces_nothing(place: str) -> None:
    storage.write_bytes(f"{place}/a/1", b"1")
    storage.move(f"{place}/a/1", f"{place}/b/1", exclusive=True)
    storage.write_bytes(f"{place}/a/2", b"2")
    with pytest.raises(FileExistsError, match="1 exists"):
        storage.move(f"{place}/a/2", f"{place}/b/1", exclusive=True)
    assert storage.list_files(place) == [("a/2", 1), ("b/1", 1)]
    assert storage.read_bytes(f"{place}/b/1") == b"1"


def test_what_is_taken_away_is_gone_and_a_failed_check_takes_nothing(place: str) -> None:
    def refuse() -> None:
        raise RuntimeError("not ours")

    for name in ("a/b/1", "a/2", "a2"):
        storage.write_bytes(f"{place}/{name}", b"1")
    for name in ("a", "a2"):
        with pytest.raises(RuntimeError, match="not ours"):
            storage.take_away(f"{place}/{name}", f"{place}/own/of-{name}", refuse, is_folder=name == "a")
    assert len(storage.list_files(place)) == 3
    storage.take_away(f"{place}/a2", f"{place}/own/2", lambda: None)
    assert [name for name, _ in storage.list_files(place)] == ["a/2", "a/b/1"]
    storage.take_away(f"{place}/a", f"{place}/own/3", lambda: None, is_folder=True)
    storage.take_away(f"{place}/missing", f"{place}/own/4", lambda: None)
    assert storage.list_files(place) == []


def test_the_same_files_have_the_same_names_from_a_folder_and_from_a_glob(place: str) -> None:
    for name in ("b/x.txt", "a.txt", "c.bin"):
        storage.write_bytes(storage.join(place, name), b"12")
    below = [(name, storage.join(place, name), 2) for name in ("a.txt", "b/x.txt", "c.bin")]
    assert storage.find_files(place).files == below
    assert sorted(storage.find_files(storage.join(place, "**", "*.txt")).files) == below[:2]
    assert storage.find_files(storage.join(place, "a.txt")).files == below[:1]
    assert not storage.find_files(storage.join(place, "missing")).files
    assert not storage.find_files(storage.join(place, "*.md")).files
    if "://" in place:  # fsspec's globs; Python's take it
        with pytest.raises(ValueError, match=r"the glob .* is not valid .*; write \*\* between slashes"):
            storage.find_files(storage.join(place, "**.md"))


def test_the_content_of_an_object_is_its_bytes(place: str) -> None:
    first, equal, other = (storage.join(place, name) for name in ("one", "equal", "other"))
    for uri, data in ((first, b"1"), (equal, b"1"), (other, b"2")):
        storage.write_bytes(uri, data)
    if place.startswith("gs://"):
        assert len({storage.content(uri) for uri in (first, equal, other)}) == 3  # a generation each
    else:
        assert storage.content(first) == storage.content(equal) == hashlib.sha256(b"1").hexdigest()
        assert storage.content(other) != storage.content(first)
    assert storage.content(first) == storage.content(first)


def test_a_store_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.local_path("a/b") == storage.local_path(f"file://{tmp_path}/a/b") == tmp_path / "a" / "b"
    assert storage.absolute("a/../b") == storage.absolute(f"file://{tmp_path}/b") == f"{tmp_path}/b"
    for uri in ("gs://bucket/a", "memory://a"):
        assert (storage.local_path(uri), storage.absolute(uri), storage.is_relative(uri)) == (None, uri, False)
    assert [storage.is_relative(uri) for uri in ("a", "/a", "file:///a")] == [True, False, False]
    assert [storage.is_shared(uri) for uri in ("a", "gs://bucket/a", "memory://a")] == [True, True, False]


def test_one_level_is_listed_with_folders_and_times(place: str) -> None:
    began = time.time()
    for name in ("b/x", "a", "b/a/y"):
        storage.write_bytes(storage.join(place, name), name.encode())
    assert storage.list_folders(place) == ["b"]
    (a, when), (b, _) = storage.list_level(place)
    assert (a, b) == ("a", "b")
    assert abs(when - began) < 60
    assert storage.list_level(storage.join(place, "missing")) == []


def test_readers_of_one_file_do_not_move_each_other(place: str) -> None:
    uri = storage.join(place, "file")
    storage.write_bytes(uri, b"abc")
    with storage.open_input(uri) as first, storage.open_input(uri) as other:
        assert (first.read(1), other.read(2), first.read(1)) == (b"a", b"ab", b"b")


def test_a_table_is_read_back_from_any_place(place: str) -> None:
    table = pa.table({"n": pa.array(range(100), pa.int32())})
    shard = shards.write_table(place, "text/00000.parquet", table)
    uri = storage.join(place, shard.name)
    assert shards.read_table(uri).equals(table)
    storage.write_bytes(uri, storage.read_bytes(uri)[:-1])
    with pytest.raises(ValueError, match="damaged"):
        shards.read_table(uri)


def test_removing_a_tree_removes_nothing_beside_it(place: str) -> None:
    for name in ("run/a/b", "run2/c"):
        storage.write_bytes(storage.join(place, name), b"x")
    storage.remove_tree(storage.join(place, "run"))
    assert storage.list_files(place) == [("run2/c", 1)]


@pytest.mark.parametrize("uri", ["s3://bucket/key", "https://host/path", "hdfs://a"])
def test_a_protocol_that_is_not_known_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="allowed are local paths, gs://bucket/path and memory://path"):
        storage.exists(uri)


def test_file_urls_and_paths_name_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage.write_bytes(f"file://{tmp_path}/name", b"x")
    assert storage.read_bytes("name") == b"x"
    assert storage.is_remote("gs://b/x")
    assert not storage.is_remote(f"file://{tmp_path}/name")


@pytest.mark.parametrize(
    ("parts", "joined"),
    [(("a/", "/b/", "c"), "a/b/c"), (("gs://b", "x"), "gs://b/x"), (("/a", "b"), "/a/b")],
)
def test_parts_are_joined_by_one_slash(parts: tuple[str, ...], joined: str) -> None:
    assert storage.join(*parts) == joined


def test_a_key_of_a_service_account_is_refused_and_a_login_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, login = tmp_path / "key.json", tmp_path / "login.json"
    key.write_text(json.dumps({"type": "service_account", "private_key": "secret"}))
    login.write_text(json.dumps({"type": "authorized_user"}))
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
    with pytest.raises(ValueError, match=r"key\.json\), and no key is read here; unset it: on a cluster") as refused:
        storage.exists("gs://bucket/x")
    assert "secret" not in str(refused.value)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(login))
    assert storage.filesystem("gs://bucket/x")[1] == "bucket/x"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FSSPEC_GCS_TOKEN", "ya29.secret"),
        ("FSSPEC_GS_TOKEN", "/keys/secret.json"),
        ("FSSPEC_GS", '{"token": "ya29.secret"}'),
        ("FSSPEC_GCS", '{"token": {"type": "service_account", "private_key": "secret"}}'),
    ],
)
def test_a_token_in_the_environment_is_refused_and_not_told(name: str, value: str) -> None:
    """In a process of its own: fsspec reads them when it is imported."""
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "list", "--runs", "--root", "gs://bucket/runs"],
        cwd=REPOSITORY,
        env={**os.environ, "STORAGE_EMULATOR_HOST": "http://127.0.0.1:1", name: value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert f"(by {name.removesuffix('_TOKEN')} or" in done.stderr
    assert "secret" not in done.stdout + done.stderr


class Trap:
    """Unpickled, it leaves a file in the working directory."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("sprung", "w")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["gcsfs", "data.storage"])
def test_the_tokens_that_gcsfs_pickles_are_not_loaded(way: str, tmp_path: Path) -> None:
    """gcsfs alone loads them as it is imported, which is why."""
    (tmp_path / ".gcs_tokens").write_bytes(pickle.dumps(Trap()))
    use = "from data import storage; storage.exists('gs://bucket/x')" if way == "data.storage" else "import gcsfs"
    done = subprocess.run(
        [sys.executable, "-c", use],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (tmp_path / "sprung").exists() == (way == "gcsfs")
    refusal = f"data.errors.UserError: {tmp_path}/.gcs_tokens is a pickle that gcsfs would load"
    assert (refusal in done.stderr) == (way == "data.storage"), done.stderr


@pytest.mark.parametrize(
    ("code", "message", "advice"),
    [
        (401, "Anonymous caller does not have storage.objects.list", "nobody is logged in"),
        (401, "Invalid Credentials", "nobody is logged in"),
        (None, "Forbidden: b/x\nAnonymous caller does not have access", "nobody is logged in"),
        (None, "Forbidden: b/x\nthe account has no access", "grant roles/storage.objectUser"),
        (403, "no", "grant roles/storage.objectUser"),
        (400, "no", None),
        (503, "later", "the bucket cannot be reached"),
    ],
)
def test_an_error_of_the_store_is_told_with_what_to_do(
    code: int | None, message: str, advice: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
    storage.filesystem("gs://bucket/x")  # imports gcsfs as it has to be
    from gcsfs.retry import HttpError

    said = storage.what_failed(OSError(message) if code is None else HttpError({"code": code, "message": message}))
    assert said is None if advice is None else advice in str(said)
    if advice == "nobody is logged in":
        assert "on a cluster use workload identity, on a laptop `gcloud auth application-default login`" in str(said)


@pytest.mark.parametrize("uri", ["runs", "/runs", "memory://runs", "file:///runs"])
def test_only_gs_has_buckets_to_check(uri: str) -> None:
    storage.check_bucket(uri)


def test_a_bucket_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="names no bucket"):
        storage.check_bucket("gs://")
