"""A damaged file of an earlier run is never read silently, and always named, whichever stage reads it."""

from pathlib import Path

import pytest

from tests.programs import chaos_log, fuzz


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(3))
def test_no_damaged_file_is_read_silently(tmp_path: Path, seed: int) -> None:
    with chaos_log.chaos_run("damaged files", seed) as counts:
        runs = fuzz.build(tmp_path)
        by_change = fuzz.attack(runs, [name for name in runs.tasks if list(runs.readers(name))], seed)
        counts.add(
            runs=sum(each.total() for each in by_change.values()) - 1,
            compared=sum(each["same"] + each["SILENT"] for each in by_change.values()),
            lost=sum(each["SILENT"] + each["NAMELESS"] for each in by_change.values()),
        )
        assert counts.lost == 0, "\n".join(fuzz.table(by_change))
