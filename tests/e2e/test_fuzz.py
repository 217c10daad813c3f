"""A damaged file is never read silently and always named; a hostile value is refused in one line, by its name."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.programs import chaos_log, fuzz, fuzz_folders, fuzz_page, fuzz_runs, fuzz_values

SEEDS = range(2)
pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], fuzz.Fuzz]]:
    """The finished runs, made when the first part needs them."""
    yield functools.cache(lambda: fuzz.build(tmp_path_factory.mktemp("fuzz")))
    fuzz_runs.unregister()


@pytest.mark.parametrize("step", [*fuzz_runs.EXAMPLES, fuzz_runs.RECIPE])
@pytest.mark.parametrize("seed", SEEDS)
def test_no_damaged_file_is_read_silently(runs: Callable[[], fuzz.Fuzz], step: str, seed: int) -> None:
    with chaos_log.chaos_run("damaged files", f"{step} {seed}") as counts:
        by_change = fuzz.attack(runs(), [step], seed)
        counts.add(
            runs=sum(each.total() for each in by_change.values()) - 1,
            compared=sum(each[fuzz.SAME] + each[fuzz.SILENT] for each in by_change.values()),
            lost=sum(each[fault] for each in by_change.values() for fault in fuzz.FAULTS),
        )
        assert counts.lost == 0, "\n".join(fuzz_page.table_of_files(by_change))


@pytest.mark.parametrize("seed", SEEDS)
def test_no_hostile_value_is_nameless(runs: Callable[[], fuzz.Fuzz], tmp_path: Path, seed: int) -> None:
    with chaos_log.chaos_run("hostile values", seed) as counts:
        tasks = runs().tasks
        by_kind = fuzz_values.attack(tasks, seed, tmp_path) | fuzz_folders.attack(tmp_path, tasks, seed)
        counts.add(
            runs=sum(each.total() for each in by_kind.values()) - 1,
            lost=sum(each[fault] for each in by_kind.values() for fault in fuzz_values.FAULTS),
        )
        assert counts.lost == 0, "\n".join(fuzz_page.table_of_values(by_kind))
