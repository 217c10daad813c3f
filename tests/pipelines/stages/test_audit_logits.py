"""The audit passes caches that are what they say, and none that is not, whichever of its checks is left to see it.

A few of each here; `python -m tests.benchmarks audit` prints the table of 20 of each.
"""

from pathlib import Path

import pytest

from data.manifest import read_manifest
from data.schema import VERDICT
from data.shards import read_table, write_table
from pipelines.__main__ import main
from pipelines.engine.resources import Resources
from pipelines.engine.runner import run_task
from pipelines.stages import audit_logits
from tests.programs.cached_runs import EARLIER, Runs, forge, make_runs
from tests.programs.forgeries import FAULTS, checks, forged, kinds_that_fail
from tests.programs.in_process import InProcess

ESTIMATORS = {"sample": {}, "topk": {"estimator": "topk", "top": 12}}
HONEST = ({}, ESTIMATORS["topk"], {"proposal": 0.8}, {"temperature": 1.5}, {"dtype": "bfloat16"})
TOO_LITTLE = "weights hash of a later teacher"
"""a fault that the statistics of 1,500 targets do not see: one step of training"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return make_runs(tmp_path_factory.mktemp("audited"))


@pytest.mark.parametrize("config", HONEST)
def test_an_honest_cache_passes(runs: Runs, config: dict) -> None:
    for seed in range(2):
        passed_by_check = checks(runs, runs.cache(seed=seed, **config), seed=seed)
        assert all(passed_by_check.values()), passed_by_check


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_forged_cache_fails_by_what_comes_out_again_and_by_its_statistics(
    runs: Runs, tmp_path: Path, fault: str, estimator: str
) -> None:
    passed_by_check = checks(
        runs, forged(fault, runs, runs.cache(**ESTIMATORS[estimator]), tmp_path / "forged", seed=1), seed=1
    )
    failed = kinds_that_fail(passed_by_check)
    assert "again" in failed or "hashes" in failed
    if fault != TOO_LITTLE:
        assert failed & {"numbers", "hashes"}


def test_a_sample_with_too_few_targets_is_made_larger(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_logits, "MARGIN", 0.01)  # as where the rows of the sample are nearly all padding
    cache = runs.cache()
    positions = {}
    for wanted in (1, 2000, 10**6):
        task = runs.task(
            "audit_logits",
            {"min_positions": wanted, "fraction": 1e-6},
            root=str(tmp_path / str(wanted)),
            logits=cache,
            sequences=runs.sequences,
            teacher=runs.teacher,
        )
        manifest = run_task(task, Resources(device="cpu"), InProcess(), say=lambda _: None)
        positions[wanted] = manifest.datasets["verdict"].facts["positions"]
    assert positions[1] < 2000 <= positions[2000] < positions[10**6]
    audited = read_manifest(cache)
    assert audited is not None
    assert positions[10**6] == audited.datasets["logits"].facts["targets"]


def test_a_file_that_is_not_the_one_of_the_manifest_is_told(runs: Runs, tmp_path: Path) -> None:
    cache = forge(runs.cache(), tmp_path / "cache")
    manifest = read_manifest(cache)
    assert manifest is not None
    name = manifest.datasets["logits"].shards[0].name
    table = read_table(f"{cache}/{name}")
    noted = table.replace_schema_metadata({**table.schema.metadata, b"note": b"the same rows, in another file"})
    write_table(cache, name, noted, row_group_rows=64)
    passed_by_check = checks(runs, cache)
    assert {check for check, passed in passed_by_check.items() if passed is False} == {"files"}


def test_on_another_device_the_statistics_decide(runs: Runs, tmp_path: Path) -> None:
    cache = runs.cache()
    passed_by_check = checks(runs, forge(cache, tmp_path / "a", setup={"device": "cuda"}))
    assert passed_by_check.pop("made again") is None
    assert all(passed_by_check.values())
    warmer = forge(
        forged("another temperature", runs, cache, tmp_path / "b", 0), tmp_path / "c", setup={"device": "cuda"}
    )
    assert kinds_that_fail(checks(runs, warmer)) == {"numbers"}


def test_another_teacher_and_other_hashes_are_told_by_name(runs: Runs, tmp_path: Path) -> None:
    cache = runs.cache()
    assert checks(runs, forge(cache, tmp_path / "a", facts={"teacher_sha256": "f" * 64}))["weights"] is False
    assert checks(runs, forge(cache, tmp_path / "b", tokenizer_sha256="f" * 64))["tokenizer"] is False
    assert checks(runs, forge(cache, tmp_path / "c", facts={"sequences_content": "content:0"}))["sequences"] is False
    assert checks(runs, forge(cache, tmp_path / "d", facts={"final_softcap": 50.0}))["soft cap"] is False


def test_the_command_ends_with_the_verdict_and_keeps_it(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.cli import commands
    from tests.programs.in_process import InProcess

    monkeypatch.setattr(commands, "RaySession", InProcess)
    cache = runs.cache()
    warmer = forged("another temperature", runs, cache, tmp_path / "forged", seed=0)
    for logits, code in ((cache, 0), (warmer, 1), (warmer, 1)):  # the last: done before, and still no
        words = ["run", "audit_logits", "--logits", logits, "--sequences", runs.sequences, "--teacher", runs.teacher]
        assert main([*words, "--root", str(tmp_path / Path(logits).name), "--device", "cpu"]) == code
    errors = capsys.readouterr().err
    assert "failed: audit_logits/" in errors
    assert "log p: mean of draws" in errors
    assert "done before" in errors
    verdicts = [read_table(str(path)) for path in tmp_path.glob("*/audit_logits/*/verdict/*.parquet")]
    assert [table.schema for table in verdicts] == [VERDICT, VERDICT]


def test_an_earlier_teacher_that_is_named_is_told(runs: Runs) -> None:
    task = runs.task("cache_logits", {}, sequences=runs.sequences, teacher=f"{runs.teacher}@{EARLIER}")
    manifest = runs.run("cache_logits", {}, sequences=runs.sequences, teacher=f"{runs.teacher}@{EARLIER}")
    assert manifest == read_manifest(task.directory)
    passed_by_check = checks(runs, task.directory)
    assert passed_by_check["weights"] is False
    assert passed_by_check["made again"] is False
