import os
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from data import shards, storage
from data.manifest import Dataset, Manifest, publish_manifest
from pipelines.engine.inputs import Input, Read, external_input, left_out_line, left_out_lines, resolve
from pipelines.engine.stage import load_stage
from pipelines.engine.task import Task, resolve_inputs
from pipelines.stages import collect_text

TEXT = Read(help="documents", dataset="text")
TOKENIZER = Read(help="tokenizer", dataset="tokenizer", file_allowed=True)
FINGERPRINT = "0123456789abcdef"


def finished_run(root: Path, stage: str, *datasets: str, steps: tuple[int, ...] = ()) -> Path:
    """A run's directory with its manifest; each dataset holds one small file."""
    directory = root / stage / FINGERPRINT
    made = {
        name: Dataset(
            shards=(shards.write_file(str(directory), f"{name}/00000", name.encode()),), facts={"steps": list(steps)}
        )
        for name in datasets
    }
    manifest = Manifest(stage=stage, version=1, fingerprint=FINGERPRINT, config={}, inputs={}, datasets=made)
    publish_manifest(str(directory), manifest)
    return directory


def corpus(folder: Path) -> Path:
    for name, content in {"a.txt": "one", "b/c.txt": "two", "b/d.md": "three"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def test_a_reference_names_a_dataset_of_a_run_under_the_root(tmp_path: Path) -> None:
    directory = finished_run(tmp_path, "filter_text", "text", "rejects")
    dataset = resolve(f"filter_text/{FINGERPRINT}", TEXT, str(tmp_path))
    assert dataset.reference == f"filter_text/{FINGERPRINT}:text"
    assert dataset.uris() == [f"{directory}/text/00000"]
    assert resolve(f"filter_text/{FINGERPRINT}:text", TEXT, str(tmp_path)).reference == dataset.reference


@pytest.mark.parametrize("suffix", ["", ":text"])
def test_the_path_of_a_run_means_the_same_as_its_reference(tmp_path: Path, suffix: str) -> None:
    directory = finished_run(tmp_path, "filter_text", "text")
    by_path = resolve(f"{directory}{suffix}", TEXT, "elsewhere")
    assert by_path.reference == f"filter_text/{FINGERPRINT}:text"
    assert by_path.given == f"{directory}{suffix}"


def test_a_relative_path_is_remembered_as_an_absolute_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = finished_run(tmp_path, "filter_text", "text")
    monkeypatch.chdir(directory.parent)
    assert resolve(f"./{FINGERPRINT}", TEXT, "elsewhere").given == str(directory)


def test_a_checkpoint_is_named_by_its_step(tmp_path: Path) -> None:
    directory = finished_run(tmp_path, "train_model", "checkpoints", steps=(10, 20))
    read = Read(help="checkpoint", dataset="checkpoints")
    for text in (f"train_model/{FINGERPRINT}@10", f"{directory}@10", f"train_model/{FINGERPRINT}@10:checkpoints"):
        checkpoint = resolve(text, read, str(tmp_path))
        assert (checkpoint.step, checkpoint.reference) == (10, f"train_model/{FINGERPRINT}@10:checkpoints")
    with pytest.raises(ValueError, match="no checkpoint of step 15; the checkpoints are of steps: 10, 20"):
        resolve(f"train_model/{FINGERPRINT}@15", read, str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"filter_texts/{FINGERPRINT}", "no stage 'filter_texts'; did you mean 'filter_text'?"),
        (f"filter_text/{FINGERPRINT[::-1]}", "has no _MANIFEST.json and is no finished run"),
        (f"filter_text/{FINGERPRINT}:txet", "no dataset 'txet'; did you mean 'text'?"),
        (f"filter_text/{FINGERPRINT}:rejects", "the dataset 'rejects'; this input takes the dataset 'text'"),
        (f"tokenize_text/{FINGERPRINT}", "no dataset 'text'; allowed: tokens"),
        (f"tokenize_text/{FINGERPRINT}:tokens", "the dataset 'tokens'; this input takes the dataset 'text'"),
        ("somewhere/else", "got 'somewhere/else', which is no run and no path; give stage/fingerprint[:dataset]"),
    ],
)
def test_a_reference_that_leads_nowhere_says_what_would(tmp_path: Path, text: str, message: str) -> None:
    finished_run(tmp_path, "filter_text", "text", "rejects")
    finished_run(tmp_path, "tokenize_text", "tokens")
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve(text, TEXT, str(tmp_path))


def test_held_out_rows_are_no_rows_to_train_on(tmp_path: Path) -> None:
    finished_run(tmp_path, "pack_sequences", "sequences", "heldout")
    with pytest.raises(ValueError, match="the dataset 'heldout'; this input takes the dataset 'sequences'"):
        resolve(f"pack_sequences/{FINGERPRINT}:heldout", Read(help="rows", dataset="sequences"), str(tmp_path))


def test_a_file_stands_in_where_it_may(tmp_path: Path) -> None:
    (tmp_path / "my.model").write_bytes(b"pieces")
    tokenizer = resolve(str(tmp_path / "my.model"), TOKENIZER, str(tmp_path))
    assert tokenizer.external
    assert tokenizer.uris() == [str(tmp_path / "my.model")]
    with pytest.raises(
        ValueError, match=r"got the file '.*my\.model'; this input takes the dataset 'text' of a finished run"
    ):
        resolve(str(tmp_path / "my.model"), TEXT, str(tmp_path))


def test_files_are_named_by_content_whatever_their_place_time_and_spelling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = corpus(tmp_path / "here")
    there = tmp_path / "some" / "where"
    shutil.copytree(here, there)
    os.utime(there / "a.txt", (1, 1))
    monkeypatch.chdir(tmp_path)
    spellings = [[str(here)], [str(there)], ["here"], ["here/"], [f"{here}/**/*"], ["here/**/*"]]
    references = {external_input(paths, None).reference for paths in spellings}
    assert len(references) == 1
    assert references.pop().startswith("content:")


def edit(folder: Path) -> None:
    (folder / "a.txt").write_text("0ne")


def rename(folder: Path) -> None:
    (folder / "a.txt").rename(folder / "z.txt")


def add(folder: Path) -> None:
    (folder / "new.txt").write_text("")


def remove(folder: Path) -> None:
    (folder / "b" / "d.md").unlink()


@pytest.mark.parametrize("change", [edit, rename, add, remove])
def test_any_change_of_names_or_contents_changes_the_fingerprint(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    folder = corpus(tmp_path)
    before = external_input([str(folder)], None)
    change(folder)
    assert external_input([str(folder)], None).reference != before.reference


def test_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = corpus(tmp_path)
    folder_input = external_input([str(folder)], lambda name: name.endswith(".txt"))
    assert [file.name for file in folder_input.files] == ["a.txt", "b/c.txt"]
    assert [file.bytes for file in folder_input.files] == [3, 3]


def test_patterns_may_leave_nothing_and_that_is_said(tmp_path: Path) -> None:
    folder = corpus(tmp_path)
    with pytest.raises(ValueError, match=r"does not read any of the 3 files there, such as 'a\.txt'; `show` of"):
        external_input([str(folder)], lambda _: False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no file is there"):
        external_input([str(tmp_path / "empty")], None)
    with pytest.raises(ValueError, match="no file or directory '/nowhere'"):
        external_input(["/nowhere"], None)
    with pytest.raises(ValueError, match="no file or directory"):
        external_input([f"{folder}/*.nothing"], None)


def test_paths_that_end_alike_are_told_apart_by_the_folders_above(tmp_path: Path) -> None:
    for folder in ("mmlu", "arc", "deep/mmlu"):
        corpus(tmp_path / folder)

    def names(*paths: str) -> list[str]:
        return [file.name for file in external_input([str(tmp_path / path) for path in paths], None).files]

    assert names("mmlu/a.txt", "arc/a.txt") == names("arc/a.txt", "mmlu/a.txt") == ["arc/a.txt", "mmlu/a.txt"]
    assert names("mmlu/a.txt", "deep/mmlu/a.txt", "arc/b/c.txt") == [
        "c.txt", "deep/mmlu/a.txt", f"{tmp_path.name}/mmlu/a.txt",
    ]  # fmt: skip
    assert names("arc/b", "mmlu/b") == ["arc/b/c.txt", "arc/b/d.md", "mmlu/b/c.txt", "mmlu/b/d.md"]
    assert names("mmlu/a.txt", "mmlu/./a.txt", "mmlu") == ["mmlu/a.txt", "mmlu/b/c.txt", "mmlu/b/d.md"]
    with pytest.raises(ValueError, match=r"with the same name 'a\.txt'; give the folder above both"):
        names("mmlu/*.txt", "arc/*.txt")


def test_of_several_directories_each_puts_its_name_before_its_files(tmp_path: Path) -> None:
    corpus(tmp_path / "x")
    corpus(tmp_path / "y")
    names = [file.name for file in external_input([str(tmp_path / "x"), str(tmp_path / "y")], None).files]
    assert "x/a.txt" in names
    assert "y/a.txt" in names


def test_a_file_whose_name_is_not_utf8_is_told_so(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("x")
    with pytest.raises(ValueError, match="is not UTF-8; rename it"):
        external_input([str(tmp_path)], None)


def test_regular_files_are_read_and_the_rest_is_counted_by_kind(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "in")
    corpus(tmp_path / "far")
    os.mkfifo(folder / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(folder / "s.txt"))
    (folder / "broken.txt").symlink_to("nowhere")
    (folder / "loop.txt").symlink_to("loop.txt")
    (folder / "linked").symlink_to(tmp_path / "far")
    (folder / "around").symlink_to(folder)
    (folder / "null.txt").symlink_to("/dev/null")
    (folder / "to_far.txt").symlink_to(tmp_path / "far" / "a.txt")
    (folder / "to_a.txt").symlink_to("a.txt")
    expected = (
        "left out 2 broken links (), 1 device (), 1 file given twice (), 2 linked folders (), 1 pipe (), 1 socket ()"
    )
    for spelling in (str(folder), f"file://{folder}", f"{folder}/**/*", f"file://{folder}/**"):
        given = external_input([spelling], None)
        assert [file.name for file in given.files] == ["a.txt", "b/c.txt", "b/d.md", "to_far.txt"], spelling
        assert re.sub(r"\(.*?\)", "()", left_out_line(given.left_out)) == expected, spelling
    assert left_out_lines({"input": [given]}) == [f"--input: {left_out_line(given.left_out)}"]


def test_what_is_excluded_is_not_entered_and_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = corpus(tmp_path)
    (folder / "b" / "picture.png").write_bytes(b"")
    (folder / "sound.wav").write_bytes(b"")

    def texts(name: str) -> bool:
        return name.endswith((".txt", ".md"))

    assert [kind for kind, _ in external_input([str(folder)], texts).left_out] == [".png file", ".wav file"]
    plain, entered = os.scandir, []

    def seen(path: str) -> object:
        entered.append(Path(path).name)
        return plain(path)

    monkeypatch.setattr(os, "scandir", seen)
    given = external_input([str(folder)], texts, exclude=lambda name: name.startswith("b/"))
    assert [file.name for file in given.files] == ["a.txt"]
    assert [kind for kind, _ in given.left_out] == [".wav file"]
    assert "b" not in entered


def test_of_many_kinds_of_files_the_most_frequent_are_named() -> None:
    """The standard library has about 150 kinds beside its own, which were a line of 9,000 characters."""
    left_out = [(f".{letter} file", f"a.{letter}") for letter in "abcde" for _ in range(ord("f") - ord(letter))]
    assert left_out_line([*left_out, ("pipe", "p")]) == (
        "left out 1 pipe (p), 5 .a files (a.a), 4 .b files (a.b), 3 .c files (a.c), 3 files of 2 other kinds"
    )
    assert left_out_line([("file given twice", "a"), ("file given twice", "b")]) == "left out 2 files given twice (a)"
    assert left_out_line(left_out[:-3]) == "left out 5 .a files (a.a), 4 .b files (a.b), 3 .c files (a.c)"
    assert left_out_line([*left_out[:-3], (".d file", "a.d")]).endswith(", 1 file of 1 other kind")


@pytest.mark.parametrize(("name", "kind"), [("pipe", "1 pipe"), ("broken", "1 broken link"), ("null", "1 device")])
def test_what_is_no_regular_file_is_refused_by_name_and_by_glob(tmp_path: Path, name: str, kind: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "null").symlink_to("/dev/null")
    for path in (f"{tmp_path}/{name}", f"{tmp_path}/{name[:2]}*", f"file://{tmp_path}/{name}"):
        with pytest.raises(ValueError, match=f"no file to read in .*: left out {kind} .*; give regular files"):
            external_input([path], None)


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = corpus(tmp_path)
    plain = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError, match="/b"):
        external_input([str(folder)], None)


def test_a_file_that_is_given_twice_counts_once_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    d = corpus(tmp_path / "d")
    (tmp_path / "link").symlink_to("d")
    monkeypatch.chdir(tmp_path)
    given = [
        [str(d), str(d / "a.txt")],
        [str(d / "a.txt"), str(d)],
        ["d", "./d/a.txt"],
        ["d/a.txt", "d/"],
        ["d", "d/*.txt"],
        ["d", "link/a.txt"],
        ["d", f"file://{d}/a.txt"],
    ]
    inputs = [external_input(paths, None) for paths in given]
    assert {tuple(file.name for file in given.files) for given in inputs} == {("d/a.txt", "d/b/c.txt", "d/b/d.md")}
    assert len({given.reference for given in inputs}) == 1
    assert all([kind for kind, _ in given.left_out] == ["file given twice"] for given in inputs)


def test_two_hard_links_are_two_files_as_their_copies_are(tmp_path: Path) -> None:
    """A copy of the folder has two files, and must have the same fingerprint."""
    linked, copied = tmp_path / "linked" / "d", tmp_path / "copied" / "d"
    for folder in (linked, copied):
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text("a")
    os.link(linked / "a.txt", linked / "b.txt")
    (copied / "b.txt").write_text("a")
    first, second = (external_input([str(folder)], None) for folder in (linked, copied))
    assert [file.name for file in first.files] == ["a.txt", "b.txt"]
    assert first.reference == second.reference


def test_a_root_above_a_link_means_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`link/..` is the folder above the link's target, for whoever opens it and for whoever writes its name."""
    (tmp_path / "far" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "below")
    monkeypatch.chdir(tmp_path)
    for root in ("link/../x", f"{tmp_path}/link/../x", f"file://{tmp_path}/link/../x", "./link/.././x/"):
        assert storage.absolute(root) == str(tmp_path / "far" / "x")
        assert storage.filesystem(root)[1] == str(tmp_path / "far" / "x")
        assert storage.local_path(root) == tmp_path / "far" / "x"
    storage.write_bytes("link/../x/a", b"1")
    assert (tmp_path / "far" / "x" / "a").read_bytes() == storage.read_bytes(storage.absolute("link/../x/a")) == b"1"
    assert storage.absolute("a/../b") == str(tmp_path / "b")


def task(root: Path, *inputs: str, **config: object) -> Task:
    stage = load_stage("collect_text")
    chosen = collect_text.Config(**config)  # type: ignore[arg-type]
    return Task(
        stage=stage, config=chosen, inputs=resolve_inputs(stage, chosen, {"input": inputs}, str(root)), root=str(root)
    )


def test_a_fingerprint_follows_inputs_and_config_and_not_the_root(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "in")
    first = task(tmp_path / "runs", str(folder))
    assert first.fingerprint == task(tmp_path / "other", str(folder)).fingerprint
    assert first.directory == str(tmp_path / "runs" / "collect_text" / first.fingerprint)
    assert first.fingerprint != task(tmp_path / "runs", str(folder), source="wiki").fingerprint
    assert first.fingerprint != task(tmp_path / "runs", str(folder), exclude=("*.md",)).fingerprint
    edit(folder)
    assert first.fingerprint != task(tmp_path / "runs", str(folder)).fingerprint


def test_inputs_that_are_missing_unknown_or_too_many_are_told(tmp_path: Path) -> None:
    stage = load_stage("filter_text")
    config = stage.config()
    with pytest.raises(ValueError, match=r"filter_text needs --text \(documents\)"):
        resolve_inputs(stage, config, {}, str(tmp_path))
    with pytest.raises(ValueError, match="no input 'txet'; did you mean 'text'"):
        resolve_inputs(stage, config, {"txet": ["a"]}, str(tmp_path))
    with pytest.raises(ValueError, match=r"got 2 inputs for --text \(a, b\): filter_text takes one"):
        resolve_inputs(stage, config, {"text": ["a", "b"]}, str(tmp_path))


def test_an_input_that_has_not_finished_cannot_be_read(tmp_path: Path) -> None:
    unfinished = Input(reference="x", given="x", directory=str(tmp_path), dataset="text")
    with pytest.raises(ValueError, match="that run has not finished"):
        unfinished.uris()


def test_a_hidden_folder_or_file_that_is_given_is_read(tmp_path: Path) -> None:
    names = ("a/b.txt", ".wiki/c.txt", ".wiki/.git/d.txt", ".e.txt")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    config = collect_text.Config()

    def read(*given: str) -> list[str]:
        paths = [str(tmp_path / name) for name in given]
        return [file.name for file in external_input(paths, lambda name: collect_text.selected(config, name)).files]

    assert read("a", ".wiki") == [".wiki/c.txt", "a/b.txt"]
    assert read(".wiki") == ["c.txt"]
    assert read("a", ".e.txt") == [".e.txt", "a/b.txt"]
