from pipelines import progress
from pipelines.progress import Bar


def test_finished_shards_count_in_full() -> None:
    moved: list[int] = []
    bar = Bar(moved.append, {0: 3, 1: 4})
    bar.finish(1)
    bar.finish(0)
    assert moved == [4, 3]


def test_two_bars_do_not_hear_each_other() -> None:
    assert Bar(print, {}).prefix != Bar(print, {}).prefix


def test_without_a_listener_nothing_is_told() -> None:
    with progress.shard(None, 0):
        progress.advance(1 << 30)
    progress.advance(1)
