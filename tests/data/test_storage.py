from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data import storage


def test_bytes_written_are_bytes_read(tmp_path: Path) -> None:
    uri = storage.join(str(tmp_path), "a", "b", "c.bin")
    storage.write_bytes(uri, b"one")
    storage.write_bytes(uri, b"two")
    assert storage.read_bytes(uri) == b"two"
    with storage.open_input(uri) as file:
        file.seek(1)
        assert file.read() == b"wo"


def test_a_write_leaves_no_other_file(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "a"), b"1")
    storage.create_exclusive(str(tmp_path / "b"), b"22")
    with pytest.raises(FileExistsError):
        storage.create_exclusive(str(tmp_path / "b"), b"333")
    assert storage.list_files(str(tmp_path)) == [("a", 1), ("b", 2)]


def test_of_many_exclusive_creates_one_wins_with_its_whole_content(tmp_path: Path) -> None:
    uri = str(tmp_path / "lock")
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


def test_a_reader_never_sees_part_of_a_write(tmp_path: Path) -> None:
    uri = str(tmp_path / "file")
    storage.write_bytes(uri, b"0" * 1_000_000)
    with ThreadPoolExecutor(1) as pool:
        writes = pool.submit(lambda: [storage.write_bytes(uri, digit * 1_000_000) for digit in (b"1", b"2", b"3")])
        seen = set()
        while not writes.done():
            content = storage.read_bytes(uri)
            seen.add((len(content), len(set(content))))
    assert seen == {(1_000_000, 1)}


def test_files_are_listed_by_relative_name_in_order(tmp_path: Path) -> None:
    for name in ("b/x", "a", "b/a/y"):
        storage.write_bytes(str(tmp_path / name), name.encode())
    assert storage.list_files(f"{tmp_path}/") == [("a", 1), ("b/a/y", 5), ("b/x", 3)]
    assert storage.list_files(str(tmp_path / "missing")) == []


def test_what_is_not_there_is_said_so(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    assert not storage.exists(missing)
    assert not storage.is_directory(missing)
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(missing)
    storage.remove(missing)
    storage.remove_tree(missing)


def test_moving_and_uploading_replace_what_is_there(tmp_path: Path) -> None:
    target = str(tmp_path / "new" / "target")
    for publish, content in ((storage.move, b"moved"), (storage.upload, b"uploaded"), (storage.move, b"again")):
        source = str(tmp_path / "source")
        storage.write_bytes(source, content)
        publish(source, target)
        assert storage.read_bytes(target) == content
        assert not storage.exists(source)


def test_removing_a_tree_removes_nothing_beside_it(tmp_path: Path) -> None:
    for name in ("run/a/b", "run2/c"):
        storage.write_bytes(str(tmp_path / name), b"x")
    storage.remove_tree(str(tmp_path / "run"))
    assert storage.list_files(str(tmp_path)) == [("run2/c", 1)]


@pytest.mark.parametrize("uri", ["s3://bucket/key", "https://host/path", "hdfs://a"])
def test_a_protocol_that_is_not_known_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="allowed are local paths and gs://"):
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
