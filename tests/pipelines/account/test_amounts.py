"""What the paper's recipes take, what a run took, and when cached logits pay."""

import dataclasses
import json
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from data import storage
from data.manifest import RUN_NAME
from infra.chips import Constant
from infra.prices import CONSTANTS, Cost, Prices, priced_as, read_prices
from infra.slices import check_mesh, parse_topology
from model.flops import forward_flops_per_token, train_flops_per_token
from model.sharding import MeshShape
from pipelines.__main__ import main
from pipelines.account.amounts import Amount, caches, estimate, measured
from pipelines.account.table import break_even_lines, estimate_lines
from pipelines.recipes import registry as recipes
from pipelines.recipes.gemma2 import PUBLISHED
from pipelines.recipes.recipe import tasks_of
from tests.pipelines.cli.test_plan import finish
from tests.programs.places import REPOSITORY

PRICES = Prices(constants=CONSTANTS)
TOKENS = {"gemma2_27b_pretrain": 13e12, "gemma2_9b_distill": 8e12, "gemma2_2b_distill": 2e12}
CHIPS = {"gemma2_27b_pretrain": 6144, "gemma2_9b_distill": 4096, "gemma2_2b_distill": 512}


def amounts_of(name: str) -> dict:
    return {amount.step: amount for amount in estimate(recipes.load(name), PRICES)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_page_on_costs_says_what_the_plan_says(name: str) -> None:
    page = (REPOSITORY / "docs" / "costs.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    mwh, tonnes = (float(cell.replace(",", "")) for cell in row.split("|")[9:11])
    cost = sum((amount.cost(PRICES) for amount in amounts_of(name).values()), Cost())
    assert mwh == float(f"{cost.kwh / 1000:.3g}")
    assert tonnes == round(cost.kg_co2e / 1000)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_of_the_report_trains_on_its_tokens_on_its_chips(name: str) -> None:
    train = amounts_of(name)["train"]
    assert 0 <= train.tokens - TOKENS[name] < 1024 * 8192, "a step more at most"
    assert train.place.chips == CHIPS[name]
    config = next(step.config for step in recipes.load(name).steps if step.name == "train")
    assert train.flops == train.tokens * train_flops_per_token(config.model, 8192)
    by_hand = train.flops / (train.place.chip.peak_flops * PRICES["mfu"]) / 3600
    assert train.chip_hours == pytest.approx(by_hand)


@pytest.mark.parametrize("name", PUBLISHED)
def test_its_mesh_covers_its_slices(name: str) -> None:
    for step in recipes.load(name).steps:
        if step.stage == "train_model":
            place = parse_topology(step.place.topology, step.place.slices)
            model, rows = step.config.model, step.config.global_batch
            check_mesh(
                MeshShape.parse(step.place.mesh).sizes, place, heads=model.heads, kv_heads=model.kv_heads, batch=rows
            )


def test_a_cache_holds_three_bytes_an_id_and_pays_from_the_second_student_on() -> None:
    recipe = recipes.load("gemma2_2b_distill")
    amounts = estimate(recipe, PRICES)
    (cache,) = caches(recipe, amounts, PRICES)
    passed = next(amount for amount in amounts if amount.step == "cache")
    assert passed.stored["logits"] == pytest.approx(passed.tokens * 12 * 1.6)
    teacher = next(step.config for step in recipes.load("gemma2_27b_pretrain").steps if step.name == "train").model
    assert passed.flops == passed.tokens * forward_flops_per_token(teacher, 8192)
    assert "cheaper from 2 students" in " ".join(break_even_lines(cache, PRICES))


def test_storage_dearer_than_the_pass_moves_the_break_even() -> None:
    dear = {
        **CONSTANTS,
        "storage.usd_per_gb_month": dataclasses.replace(CONSTANTS["storage.usd_per_gb_month"], value=5),
    }
    prices = Prices(constants=dear)
    recipe = recipes.load("gemma2_2b_distill")
    (cache,) = caches(recipe, estimate(recipe, prices), prices)
    first = 1 + 5 * cache.stored_bytes / 1e9 * 3 / cache.work.usd
    assert f"cheaper from {int(first) + 1} students" in " ".join(break_even_lines(cache, prices))


def test_a_recipe_without_slices_is_reckoned_on_cores() -> None:
    amounts = amounts_of("demo")
    assert amounts["teacher"].core_hours > 0
    assert all(amount.chip_hours == 0 and amount.place is None for amount in amounts.values())
    configs = {step.name: step.config for step in recipes.load("demo").steps}
    for name, trained in (("teacher", "teacher"), ("cache", "distilled")):  # the cache has the student's rows
        rows = configs[trained].steps * configs[trained].global_batch
        assert amounts[name].tokens == rows * configs["pack"].sequence_length


def test_a_plan_tells_totals_constants_and_the_published_figure(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "prices.json"
    path.write_text('{"v5e.usd_per_chip_hour": 0.5}')
    assert main(["plan", "gemma2_2b_distill", "--root", str(tmp_path), "--prices", str(path)]) == 0
    output = capsys.readouterr().out
    assert "476,838 steps of 512 rows" in output
    assert "1,247.61 tCO2eq published" in output
    assert f"v5e.usd_per_chip_hour = 0.5 USD  ({path}; as given)" in output
    assert "`run` also needs: --input, --decontaminate-evaluation, --tokenize-tokenizer, --teacher-weights" in output
    assert not list(tmp_path.glob("*/*"))


def test_a_plan_says_what_reading_from_elsewhere_would_cost(tmp_path: Path) -> None:
    recipe = recipes.load("gemma2_2b_distill")
    read = sum(amount.stored.get(kind, 0.0) for amount in estimate(recipe, PRICES) for kind in ("sequences", "logits"))
    assert read > 2e12 * 12 * 1.6
    (line,) = [printed for printed in estimate_lines(recipe, PRICES) if printed.startswith("egress")]
    assert "none if bucket and slice are in one region" in line
    assert f"in another cloud would cost ${PRICES.egress(read).usd:,.0f} (" in line
    (tmp_path / "prices.json").write_text('{"egress.usd_per_gb": 0}')
    free = read_prices(str(tmp_path / "prices.json"))
    (line,) = [printed for printed in estimate_lines(recipe, free) if printed.startswith("egress")]
    assert "would cost $0 (" in line


def test_carbon_follows_the_grid() -> None:
    clean = {name: Constant(value=0, unit="", source="", date="") for name in CONSTANTS if "grid" in name}
    prices = Prices(constants={**CONSTANTS, **clean})
    (line,) = [
        printed for printed in estimate_lines(recipes.load("gemma2_27b_pretrain"), prices) if "tCO2eq" in printed
    ]
    assert line.startswith("The paper's three models: 0 tCO2e here")


def test_a_run_without_what_it_needs_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["run", "gemma2_2b_distill", "--root", str(tmp_path)]) == 2
    assert "got no --input, --decontaminate-evaluation" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_given_for_a_recipe_reaches_its_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "set.jsonl").write_text('{"q": "a b c"}\n')
    words = ["plan", "gemma2_27b_pretrain", "--root", str(tmp_path / "runs")]
    assert main([*words, "--decontaminate-evaluation", str(tmp_path / "set.jsonl")]) == 0
    assert "`run` also needs: --input, --tokenize-tokenizer\n" in capsys.readouterr().out
    assert main([*words, "--decontaminate-evaluation", str(tmp_path / "none.jsonl")]) == 2


def test_nothing_finished_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["account", "smoke", "--root", str(tmp_path)]) == 2
    assert "no step of smoke has finished" in capsys.readouterr().err
    assert measured(tasks_of(recipes.load("smoke"), str(tmp_path))) == []
    assert main(["account", "collect_text"]) == 2


def test_an_account_is_of_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(tmp_path)
    tasks = tasks_of(recipes.load("smoke"), root)
    finish(tasks["collect"])
    run = {"seconds": 1800.0, "machine": "x86_64, 4 cores", "resources": {"cpus": None}, "log": {}}
    storage.write_bytes(storage.join(tasks["collect"].directory, RUN_NAME), json.dumps(run).encode())
    (amount,) = measured(tasks)
    assert (amount.step, amount.core_hours, amount.seconds) == ("collect", 2.0, 1800.0)
    assert amount.stored == {"text": 5.0, "rejects": 5.0}
    assert main(["account", "smoke", "--root", root]) == 0
    output = capsys.readouterr().out
    assert "(1 of 14 steps finished)" in output
    assert "0.0972" in output, "two core-hours at 0.0486"
    assert "core-hours count all cores of a machine; no chip was used." in output
    assert "egress" not in output, "nothing is trained yet"


HOUR = {"seconds": 3600.0, "machine": "x86_64, 16 cores", "log": {"steps": 10, "first_step": 0}}
PLAIN = {"device": "auto", "topology": "", "slices": 1, "cpus": None}


def trained(root: str, **run: Any) -> Amount:
    """What the account says of a step that trained, whose `_RUN.json` says so besides."""
    tasks = tasks_of(recipes.load("smoke"), root)
    for name in takewhile(lambda step: step != "cache", tasks):
        finish(tasks[name], sequence_length=128)
    document = {**HOUR, "resources": PLAIN, **run}
    storage.write_bytes(storage.join(tasks["teacher"].directory, RUN_NAME), json.dumps(document).encode())
    (amount,) = [candidate for candidate in measured(tasks) if candidate.step == "teacher"]
    return amount


def test_training_on_a_cpu_takes_the_cores_of_its_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    amount = trained(str(tmp_path), chip_seconds={})
    assert (amount.chip_hours, amount.core_hours) == (0.0, 16.0)
    assert main(["account", "smoke", "--root", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "no chip was used." in output
    assert "one pass over sequences and logits in another cloud would cost" in output


def test_training_on_gpus_takes_their_hours_and_their_hosts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    amount = trained(str(tmp_path), chip_seconds={"NVIDIA H200": 4 * 3600.0})
    assert (amount.chip_hours, amount.core_hours) == (4.0, 0.0)
    cost = amount.work(PRICES)
    assert cost.usd == pytest.approx(4 * CONSTANTS["h200.usd_per_chip_hour"].value)
    assert cost.kwh == pytest.approx(4 * (700 + 28 * 2.5) / 1000 * 1.10)
    assert cost.kg_co2e == pytest.approx(cost.kwh * 0.41272)
    assert main(["account", "smoke", "--root", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "Chips: 4 hours of NVIDIA H200;" in output
    assert "no chip" not in output
    (line,) = [printed for printed in output.splitlines() if printed.startswith("teacher")]
    assert f"  {cost.usd:.1f}  " in line


def test_training_on_a_slice_takes_its_chip_hours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    amount = trained(str(tmp_path), chip_seconds={"v5e": 16 * 3600.0, "v5litepod": 16 * 3600.0})  # of old runs, of new
    assert amount.chips == {"v5e": 32.0}
    assert amount.work(PRICES).usd == pytest.approx(32 * 1.20)
    assert amount.work(PRICES).kwh == pytest.approx(32 * (138 + 28 * 2.5) / 1000 * 1.10)
    assert main(["account", "smoke", "--root", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "Chips: 32 hours of v5e;" in output
    assert "no chip" not in output


@pytest.mark.parametrize(
    ("resources", "expected"),
    [(PLAIN, {}), ({**PLAIN, "device": "xla", "topology": "v5e:4x4", "slices": 2}, {"v5e": 32.0})],
)
def test_a_record_that_does_not_say_its_chips_has_those_of_its_slices(
    resources: dict[str, Any], expected: dict[str, float], tmp_path: Path
) -> None:
    assert trained(str(tmp_path), resources=resources).chips == expected


def test_a_chip_without_a_price_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    amount = trained(str(tmp_path), chip_seconds={"NVIDIA GeForce RTX 4090": 3600.0})
    assert (amount.chip_hours, amount.work(PRICES).usd) == (1.0, 0.0)
    assert main(["account", "smoke", "--root", str(tmp_path)]) == 0
    assert "NVIDIA GeForce RTX 4090 has no price and counts as free: give other.usd" in capsys.readouterr().out
    (tmp_path / "prices.json").write_text('{"other.usd_per_chip_hour": 0.5}')
    words = ["account", "smoke", "--root", str(tmp_path), "--prices", str(tmp_path / "prices.json")]
    assert main(words) == 0
    assert "has no price" not in capsys.readouterr().out
    assert amount.work(read_prices(words[-1])).usd == 0.5


@pytest.mark.parametrize(
    ("kind", "chip"),
    [("v5e", "v5e"), ("v5litepod", "v5e"), ("v4", "v4"), ("NVIDIA H100 80GB HBM3", "h100"),
     ("NVIDIA A100-SXM4-80GB", "a100"), ("NVIDIA H200", "h200"), ("TPU", "other"), ("Tesla T4", "other")],
)  # fmt: skip
def test_a_chip_is_found_by_its_own_name(kind: str, chip: str) -> None:
    assert priced_as(kind) == chip
