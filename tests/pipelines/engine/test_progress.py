import time

import pytest

from pipelines.engine import progress
from pipelines.engine.progress import Bar, Lines


def test_finished_shards_count_in_full() -> None:
    moved: list[int] = []
    bar = Bar(moved.append, {0: 3, 1: 4})
    bar.finish(1)
    bar.finish(0)
    assert moved == [4, 3]


def test_shards_of_an_earlier_attempt_are_not_counted_again() -> None:
    moved: list[int] = []
    Bar(moved.append, {0: 3, 1: 4}, before=[0]).finish(1)
    assert moved == [4]


def test_two_bars_do_not_hear_each_other() -> None:
    assert Bar(print, {}).prefix != Bar(print, {}).prefix


def test_a_bar_hears_what_was_told_until_the_block_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    monkeypatch.setattr(progress, "TELL_SECONDS", 0.01)
    monkeypatch.setattr(Bar, "hear", lambda bar: heard.append(bar.prefix))
    monkeypatch.setattr(Bar, "_forget", lambda bar: heard.append("forgotten"))
    bar = Bar(print, {})
    with bar.listening():
        time.sleep(0.1)
    assert heard.count(bar.prefix) >= 2
    assert heard[-1] == "forgotten"


def test_without_a_listener_nothing_is_told() -> None:
    with progress.shard(None, 0):
        progress.advance(1 << 30)
    progress.advance(1)


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = [100.0], []
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    lines = Lines(100, "shard", "tokenize", said.append)
    for _ in range(40):
        clock[0] += 0.5
        lines.advance(1)
    assert said == ["tokenize: 30 of 100 shards, 2 a second, 35 s left"]
    clock[0] += 15
    lines.advance(5, note="loss 3.2")
    assert said[1:] == ["tokenize: 45 of 100 shards, 1.29 a second, 43 s left, loss 3.2"]


def test_what_an_earlier_attempt_did_is_told_and_makes_this_one_no_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = [100.0], []
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    lines = Lines(100, "step", "train_model", said.append, before=40)
    clock[0] += 20
    lines.advance(20)
    assert said == [
        "train_model: resumed at 40 of 100 steps",
        "train_model: 60 of 100 steps, 1 a second, 40 s left",
    ]
