"""The report: its sentences, its figures, what it does with text that it must not trust."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data import storage
from data.manifest import MANIFEST_NAME, RUN_NAME
from pipelines.engine.printed import visible
from pipelines.report import charts
from pipelines.report import write as report
from pipelines.report.figures import read_curve, read_figures
from pipelines.report.page import page
from pipelines.report.tables import headline, rejects_table
from tests.programs.fake_runs import FakeRuns, add_evaluation, add_text_path, add_training, falling, whole_path


def written(runs: FakeRuns, name: str = "demo") -> str:
    uri = report.write(name, runs.tasks, runs.root)
    assert uri == storage.join(runs.root, name, "report.html")
    return storage.read_bytes(uri).decode()


def row_of(text: str, first: str) -> list[str]:
    """Cells of a table's row on the page, by its first cell."""
    match = re.search(rf'<tr><th scope="row">{re.escape(first)}</th>(.*?)</tr>', text)
    assert match is not None, first
    return re.findall(r"<td(?: class=number)?>([^<]*)</td>", match[1])


@pytest.mark.parametrize(
    ("distilled", "scratch", "verdict"),
    [
        (4.5, 4.75, "0.250 better than scratch (4.750)"),
        (4.75, 4.5, "0.250 worse than scratch (4.500)"),
        (4.5, 4.5001, "to three decimals equal to scratch (4.500)"),
    ],
)
def test_the_headline_says_how_distilled_and_scratch_came_out(
    tmp_path: Path, distilled: float, scratch: float, verdict: str
) -> None:
    runs = whole_path(str(tmp_path), distilled=distilled, scratch=scratch)
    (sentence,) = headline(read_figures("demo", runs.tasks))
    assert sentence == (
        f"After 40 steps, distilled predicts held-out text at {distilled:.3f} nats/token: {6.25 - distilled:.3f} below "
        f"the unigram baseline (6.250), and {verdict}, the same model that learned from the text alone."
    )
    assert sentence in written(runs)


def test_students_that_differ_in_more_than_the_objective_are_not_compared(tmp_path: Path) -> None:
    runs = whole_path(str(tmp_path))
    del runs.tasks["scratch"], runs.tasks["evaluate_scratch"]
    add_training(runs, "other", objective="next_token", width=32, losses=falling(40, 7.6, 4.7), seed=1)
    add_evaluation(runs, "other", 4.0, 40)
    (sentence,) = headline(read_figures("demo", runs.tasks))
    assert "distilled" not in sentence
    assert sentence.startswith("After 40 steps, other predicts held-out text at 4.000 nats/token: 2.250 below")


def test_a_model_above_the_baseline_is_said_to_be(tmp_path: Path) -> None:
    runs = whole_path(str(tmp_path), distilled=7.0)
    assert "0.750 above the unigram baseline (6.250)" in headline(read_figures("demo", runs.tasks))[0]


def test_the_page_shows_models_amounts_speeds_and_the_cost_of_the_cache(tmp_path: Path) -> None:
    text = written(whole_path(str(tmp_path)))
    models, _, rest = text.partition("Learning curves")
    assert row_of(models, "teacher") == ["4.250", "70.1", "1.533", "40", "131,072", "the text"]
    assert row_of(models, "unigram")[:3] == ["6.250", "518.0", "2.254"]
    assert row_of(rest, "tokenizer") == ["2.0 MB", "-", "90.0 kB", "2,048 pieces"]
    assert row_of(rest, "pack") == ["1.9 MB", "488,000", "608.0 kB", "6,400 rows, 64 held-out rows"]
    assert row_of(rest, "scratch")[1::2] == ["4,000", "40 steps, 2 checkpoints"]
    cache = rest.partition("cached logits</h2>")[2]
    assert row_of(cache, "cache") == [
        "50", "10,000", "30.0 (at most 44)", "90.0 B", "3.00 B", "900.0 kB", "1.10 %",
    ]  # fmt: skip
    times = rest.partition("Wall time and speed</h2>")[2]
    assert row_of(times, "collect")[:2] == ["4.0 s", "0.50 MB/s"]
    assert row_of(times, "pack")[1] == "250,000 tokens/s"  # of what it read: rows over the limit are work too
    assert row_of(times, "teacher") == ["30.0 s", "12,300 tokens/s", "train_model", "cpu"]
    assert row_of(times, "cache")[1] == "48,000 tokens/s"
    assert row_of(times, "generate")[1] == "48.0 tokens/s"


def test_the_terminal_says_the_same_in_plain_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(whole_path(str(tmp_path)))
    out = capsys.readouterr().out
    assert "0.250 better than scratch (4.750)" in out
    assert re.search(r"scratch +4\.750 +115\.6 +1\.713 +40 +65,536 +the text", out)
    assert re.search(r"cache +50 +10,000 +30\.0 \(at most 44\) +90\.0 B +3\.00 B +900\.0 kB", out)
    assert "distilled continues 'def f(' with\n  self):" in out
    assert out.endswith(f"report: {tmp_path}/demo/report.html\n")
    assert "\x1b" not in out  # no colour into a pipe, and no escape from a text


def test_nothing_from_a_run_is_markup_on_the_page(tmp_path: Path) -> None:
    runs = whole_path(str(tmp_path))
    text = written(runs, 'demo"><b>')
    assert "<b>bad" not in text
    assert "&lt;b&gt;bad&lt;/b&gt;" in text
    assert "<script" not in text
    assert "<b>def f(</b>self):\n    return &lt;script&gt;alert(1)&lt;/script&gt;\\x1b[31m &amp; so on" in text
    assert "Recipe demo&quot;&gt;&lt;b&gt;" in text


def test_the_page_asks_nobody_for_anything(tmp_path: Path) -> None:
    text = written(whole_path(str(tmp_path)))
    assert not re.search(r"https?:|//|@import|url\(|\bsrc=|\bhref=|<link|<iframe|<img", text)
    assert "default-src 'none'" in text


def test_the_chart_has_three_curves_a_baseline_and_words_for_those_who_do_not_see_it(tmp_path: Path) -> None:
    text = written(whole_path(str(tmp_path)))
    wide, narrow = re.findall(r"<svg class=\"chart \w+\".*?</svg>", text, flags=re.DOTALL)
    for picture in (wide, narrow):
        assert picture.count('class="line ') == picture.count('class="dots ') == 3
        assert picture.count('class="baseline"') == 1
        assert "distilled goes from 7.60 to 4.90 nats/token" in picture
        assert "the unigram baseline is 6.25 nats/token" in picture
        assert "training loss, nats/token" in picture
    ids = re.findall(r'id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert "do not compare curves of different objectives" in text


def test_without_a_distilled_student_the_warning_about_its_loss_is_left_out(tmp_path: Path) -> None:
    runs = FakeRuns(root=str(tmp_path))
    add_text_path(runs, dropped={})
    add_training(runs, "base", objective="next_token", width=32, losses=falling(10, 7.6, 5.0))
    add_evaluation(runs, "base", 5.0, 10, unigram=None)
    text = written(runs, "base")
    assert "After 10 steps, base predicts held-out text at 5.000 nats/token." in text
    assert "different objectives" not in text
    assert "unigram baseline on" not in text
    assert "Nothing was left out." in text
    assert "cached logits" not in text


def test_a_recipe_that_trains_nothing_has_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = FakeRuns(root=str(tmp_path))
    add_text_path(runs, dropped={"empty": 2})
    text = written(runs, "text")
    assert "4 stages finished in 10.0 s; none of them evaluates a model." in text
    assert "<svg" not in text
    assert "4 stages finished" in capsys.readouterr().out


def test_where_no_step_has_finished_there_is_no_report(tmp_path: Path) -> None:
    runs = FakeRuns(root=str(tmp_path))
    runs.task("collect", "collect_text", ("text",), {})
    assert report.write("text", runs.tasks, runs.root) is None
    assert not (tmp_path / "text").exists()


def test_a_step_that_has_not_finished_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = whole_path(str(tmp_path))
    written(runs)
    assert "not finished" not in capsys.readouterr().out
    storage.remove(storage.join(runs.tasks["generate"].directory, MANIFEST_NAME))
    written(runs)
    assert "\nnot finished: generate\n" in capsys.readouterr().out


def test_a_run_whose_log_was_lost_is_reported_without_its_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = whole_path(str(tmp_path))
    directory = runs.tasks["scratch"].directory
    storage.remove(storage.join(directory, RUN_NAME))
    times = written(runs).partition("Wall time and speed</h2>")[2]
    assert row_of(times, "scratch")[:2] == ["-", "-"]
    assert f"no log: {directory} has no {RUN_NAME}, so the time of scratch is not known\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"shape": [2048,', b'"shape": [2148,'),
        (b'"dtype": "F32"', b'"dtype": "F99"'),
        (b"{", b"["),
        (b"\0\0\0", b"\1"),
    ],
)
def test_a_damaged_header_of_weights_is_named(tmp_path: Path, before: bytes, after: bytes) -> None:
    runs = whole_path(str(tmp_path))
    path = Path(runs.tasks["scratch"].directory, "checkpoints", "step-00000040", "model.safetensors")
    path.write_bytes(path.read_bytes().replace(before, after, 1))
    with pytest.raises(ValueError, match=rf"{path} is damaged .*; remove the run that wrote it"):
        report.write("demo", runs.tasks, runs.root)


def test_the_page_is_a_function_of_the_runs_and_is_not_written_again(tmp_path: Path) -> None:
    runs = whole_path(str(tmp_path))
    written(runs)
    place = tmp_path / "demo" / "report.html"
    first, stamp = place.read_bytes(), place.stat().st_mtime_ns
    written(runs)
    assert place.stat().st_mtime_ns == stamp
    place.write_bytes(b"of another run")
    written(runs)
    assert place.read_bytes() == first
    log = Path(runs.tasks["scratch"].directory) / RUN_NAME
    log.write_text(log.read_text().replace("30.0", "31.0"))
    written(runs)
    assert b"31.0 s" in place.read_bytes()


def test_the_page_of_a_long_run_stays_small(tmp_path: Path) -> None:
    runs = whole_path(str(tmp_path), steps=5_000, noise=0.1)
    assert len(page(read_figures("demo", runs.tasks), "origin")) < 200_000


def test_a_curve_is_sorted_by_step_and_leaves_out_what_is_no_number(tmp_path: Path) -> None:
    runs = FakeRuns(root=str(tmp_path))
    add_text_path(runs, dropped={})
    losses = falling(10, 7.0, 5.0)
    losses[3] = np.nan
    add_training(runs, "base", objective="next_token", width=32, losses=losses)
    curve = read_curve(runs.tasks["base"])
    assert curve is not None
    assert curve.steps.tolist() == [1, 2, 3, 5, 6, 7, 8, 9, 10]
    assert np.allclose(curve.losses, losses[np.isfinite(losses)])


def test_a_smoothed_point_is_the_mean_over_a_25th_of_the_steps(tmp_path: Path) -> None:
    runs = FakeRuns(root=str(tmp_path))
    add_text_path(runs, dropped={})
    losses = falling(100, 7.0, 5.0, noise=0.5)
    add_training(runs, "base", objective="next_token", width=32, losses=losses)
    curve = read_curve(runs.tasks["base"])
    assert curve is not None
    assert curve.smoothed[50] == pytest.approx(losses[48:53].mean())
    assert curve.smoothed[[0, -1]] == pytest.approx([losses[0], losses[97:].mean()])


def test_reasons_that_dropped_nothing_are_not_listed(tmp_path: Path) -> None:
    runs = FakeRuns(root=str(tmp_path))
    add_text_path(runs, dropped={"empty": 2, "too_long": 0})
    assert rejects_table(read_figures("text", runs.tasks)).rows == (("collect", "empty", "2"),)


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (4.2, 7.6, 4, [4, 5, 6, 7, 8]),
        (0, 400, 4, [0, 100, 200, 300, 400]),
        (0, 0.03, 3, [0, 0.01, 0.02, 0.03]),
        (5, 5, 3, [4, 6]),
    ],
)
def test_ticks_are_round_and_hold_the_range(low: float, high: float, count: int, expected: list[float]) -> None:
    assert charts.ticks(low, high, count) == pytest.approx(expected)


def test_labels_that_would_overlap_are_moved_apart_and_stay_inside() -> None:
    moved = charts.spread([10.0, 11.0, 90.0, 99.0], 0, 100, gap=16)
    assert moved == [10, 26, 84, 100]


def test_what_a_terminal_would_obey_is_spelled_out() -> None:
    assert visible("a\x1b[2Jb\r\x07\ud800\u202e\n\tπ") == "a\\x1b[2Jb\\r\\x07\\ud800\\u202e\n\tπ"


def test_a_report_needs_no_torch_and_no_ray() -> None:
    code = "import sys; from pipelines import report; assert not {'torch', 'ray', 'torch_xla'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
