"""The study at its smallest: pairs are pairs, threads change nothing, what is done is kept, the report says what is."""

import dataclasses
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from data import storage
from data.shards import read_table
from model import Gemma2, parameter_count
from pipelines.study.__main__ import main
from pipelines.study.ablations import shapes
from pipelines.study.arms import Arm, arms, with_tails
from pipelines.study.lockstep import read_trial, run_trials, trials
from pipelines.study.report import write_report
from pipelines.study.sizes import standard, tiny
from pipelines.study.storage_cost import read_costs
from pipelines.study.teacher import load_teacher
from pipelines.study.text import Text, load_text
from tests.programs.places import REPOSITORY

SIZES = tiny()
TIMES = ("step_cpu_seconds", "teacher_cpu_seconds")


def ignored(message: str) -> None:
    pass


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A finished study of two seeds."""
    threads = torch.get_num_threads()
    root = str(tmp_path_factory.mktemp("study"))
    assert main(["run", "--size", "tiny", "--root", root, "--threads", "1"]) == 0
    yield root
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def text(root: str) -> Text:
    return load_text(SIZES, root)


@pytest.fixture(scope="module")
def teacher(root: str, text: Text) -> Gemma2:
    return load_teacher(SIZES, text, root, ignored, 1)


@pytest.fixture
def run(text: Text, teacher: Gemma2, tmp_path: Path) -> Callable[..., list[Any]]:
    """Runs some arms of the first seed elsewhere; their metrics without times."""

    def run(chosen: tuple[Arm, ...], threads: int = 1) -> list[Any]:
        one_seed = dataclasses.replace(SIZES, seeds=SIZES.seeds[:1])
        directory = str(tmp_path / f"{threads}")
        chosen_trials = trials(one_seed, chosen)
        run_trials(chosen_trials, one_seed, text, teacher, directory, ignored, threads)
        return [without_times(read_trial(directory, trial.name)) for trial in chosen_trials]

    return run


def without_times(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


@pytest.mark.slow
def test_teacher_students_and_judges_read_different_text(root: str, text: Text) -> None:
    tables = [
        read_table(storage.join(SIZES.teacher_directory(root), "text", f"{part}.parquet"), ["documents"])
        for part in ("train", "heldout")
    ]
    of_train, of_heldout = (
        {span["id"] for spans in table["documents"].to_pylist() for span in spans} for table in tables
    )
    assert of_train.isdisjoint(of_heldout)
    assert len(text.teacher) + len(text.students) == tables[0].num_rows
    assert len(text.teacher) == SIZES.teacher_steps * SIZES.batch_rows
    assert len(text.order(0, 8)) == len(set(text.order(0, 8).tolist())) == 8
    assert text.order(0, 8).tolist() != text.order(1, 8).tolist()
    with pytest.raises(ValueError, match="set fewer student_steps or teacher_steps"):
        text.order(0, 10**6)


@pytest.mark.slow
def test_arms_that_learn_the_same_come_out_the_same(run: Callable[..., list[Any]]) -> None:
    """Same initial weights, same rows in the same order: only what is learned from can tell two arms apart."""
    first, other, third = run((Arm(name="one", draws=5), Arm(name="other", draws=5), Arm(name="third", draws=6)))
    for line in (first[-1], other[-1], third[-1]):
        for name in ("trial", "arm", "learns_from"):
            del line[name]
    assert first == other
    assert first[-1]["loss_of_rows"] != third[-1]["loss_of_rows"]


@pytest.mark.slow
def test_threads_and_company_change_no_figure(run: Callable[..., list[Any]], root: str) -> None:
    chosen = (Arm(name="sample12", draws=12), Arm(name="scratch"))
    alone, together = run(chosen, threads=1), run(chosen, threads=3)
    assert alone == together
    in_the_study = [read_trial(SIZES.directory(root), f"{arm.name}-0") for arm in chosen]
    assert alone == [without_times(lines) for lines in in_the_study]


@pytest.mark.slow
def test_what_is_done_is_kept_and_what_is_missing_is_made_again(
    root: str, text: Text, teacher: Gemma2, tmp_path: Path
) -> None:
    directory = str(tmp_path / "copy")
    shutil.copytree(SIZES.directory(root), directory)
    gone, kept = (Path(directory) / "metrics" / f"{name}-1.jsonl" for name in ("full", "scratch"))
    before = gone.read_text(), kept.stat().st_mtime_ns
    gone.unlink()
    lines: list[str] = []
    run_trials(trials(SIZES, arms(SIZES.alpha)), SIZES, text, teacher, directory, lines.append, 1)
    again = without_times([json.loads(line) for line in gone.read_text().splitlines()])
    assert again == without_times([json.loads(line) for line in before[0].splitlines()])
    assert kept.stat().st_mtime_ns == before[1]
    assert lines
    assert all("full-1" in line and "scratch" not in line for line in lines)


@pytest.mark.slow
def test_the_report_has_every_arm_and_its_plots_are_pictures(root: str, tmp_path: Path) -> None:
    written = write_report(SIZES, root, str(tmp_path), "a command")
    page = (tmp_path / "distillation.md").read_text()
    for arm in (*arms(SIZES.alpha), *with_tails()):
        assert f"| {arm.name} | {arm.learns_from} |" in page
    pictures = [Path(path) for path in written if path.endswith(".svg")]
    assert {picture.stem for picture in pictures} == {"curves", "differences", "calibration", "bytes"}
    for picture in pictures:
        assert f"(distillation/{picture.name})" in page
        assert ElementTree.fromstring(picture.read_text()).tag == "{http://www.w3.org/2000/svg}svg"
    again = write_report(SIZES, root, str(tmp_path / "again"), "a command")
    assert [Path(path).read_text() for path in again] == [Path(path).read_text() for path in written]


@pytest.mark.slow
def test_a_sample_costs_what_its_ids_cost(root: str) -> None:
    costs = read_costs(SIZES.directory(root))
    assert costs["sample12"].bytes < costs["sample50"].bytes == costs["sample50+next"].bytes
    assert costs["topk12"].bytes < costs["topk50"].bytes
    assert (costs["topk12"].ids, costs["topk50"].ids) == (12, 50)
    assert costs["topk12"].tail > costs["topk50"].tail > costs["sample50"].tail == 0
    assert "scratch" not in costs
    assert "full" not in costs


@pytest.mark.slow
def test_the_ablations_are_in_the_report_when_they_are_done(root: str, tmp_path: Path) -> None:
    """All of `--full` at its smallest, then the page; before, the page says nothing of them."""
    full = str(tmp_path / "runs")
    shutil.copytree(root, full)
    write_report(SIZES, full, str(tmp_path / "before"), "a command")
    assert "ablations, at this size" not in (tmp_path / "before" / "distillation.md").read_text()
    assert main(["run", "--full", "--size", "tiny", "--root", full, "--threads", "2"]) == 0
    page = (Path(SIZES.directory(full)) / "distillation.md").read_text()
    part = page[page.index("## The paper's ablations") :]
    assert [line for line in part.splitlines() if line.startswith("### ")] == [
        "### Students of other sizes (table 7)",
        "### Grouped queries against a key head a query (table 8)",
        "### Deep against wide (table 9)",
        "### The window at inference (table 10)",
        "### The temperature of full distillation",
    ]
    rows = [line for line in part.splitlines() if line.startswith("| ")]
    assert len(rows) == (2 + 3) + (2 + 2) + (2 + 2) + (2 + 4) + (2 + 4)
    assert words_of(page) == words_of((REPOSITORY / "docs" / "distillation.md").read_text()), "but for its figures"
    of_window = json.loads(storage.read_bytes(storage.join(SIZES.directory(full), "windows.json")))
    assert of_window["16"] == [
        read_trial(SIZES.directory(full), f"sample50-{seed}")[-1]["loss"] for seed in SIZES.seeds
    ]


def words_of(page: str) -> list[str]:
    """The lines of a report without tables, figures, verdicts, line ends, and the machine and command that made it."""
    page = re.sub(r"(?m)^(Machine|Written by|\|).*(\n(?=.)[^|].*)*", "", page)
    page = re.sub(r"\n(?=[^\n#!-])", " ", page)
    page = re.sub(r"\*\*[a-z ]*(seen|decided)[a-z ]*\*\*(, an interval[^.]*)?", "VERDICT", page)
    return [" ".join(line.split()) for line in re.sub(r"[-+]?\d[\d.,]*\d|\d", "N", page).splitlines() if line.strip()]


def test_deep_and_wide_have_equal_parameters() -> None:
    named = shapes(standard().student)
    wide, deep = (sum(parameter_count(named[name])) for name in ("wide", "deep"))
    assert abs(wide - deep) / wide < 0.01
    assert named["deep"].layers == 2 * named["wide"].layers


def test_a_report_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no seed has finished metrics of scratch.*`make study` makes them"):
        write_report(SIZES, str(tmp_path), str(tmp_path), "a command")
    assert not storage.exists(str(tmp_path / "distillation.md"))


@pytest.mark.parametrize("wrong", [(), (1, 1)])
def test_seeds_that_are_no_seeds_are_refused(wrong: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one seed, and no seed twice"):
        dataclasses.replace(SIZES, seeds=wrong)
