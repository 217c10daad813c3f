"""What the report's recipes take, what a run took, and when cached logits pay."""

import dataclasses
import json
from pathlib import Path

import pytest

from data import storage
from data.manifest import RUN_NAME
from infra.prices import CONSTANTS, Constant, Cost, Prices
from infra.slices import check_mesh, parse_topology
from model.flops import forward_flops_per_token, train_flops_per_token
from model.sharding import MeshShape
from pipelines import recipes
from pipelines.__main__ import main
from pipelines.account import caches, estimate, measured
from pipelines.account_text import break_even_lines, estimate_lines
from pipelines.full_recipes import PUBLISHED
from pipelines.recipe import tasks_of
from tests.chaos_log import REPOSITORY
from tests.pipelines.test_plan import finish

PRICES = Prices(constants=CONSTANTS)
TOKENS = {"gemma2_27b_pretrain": 13e12, "gemma2_9b_distill": 8e12, "gemma2_2b_distill": 2e12}
CHIPS = {"gemma2_27b_pretrain": 6144, "gemma2_9b_distill": 4096, "gemma2_2b_distill": 512}


def amounts_of(name: str) -> dict:
    return {one.step: one for one in estimate(recipes.load(name), PRICES)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_page_on_costs_says_what_the_plan_says(name: str) -> None:
    page = (REPOSITORY / "docs" / "costs.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    mwh, tonnes = (float(cell.replace(",", "")) for cell in row.split("|")[9:11])
    cost = sum((one.cost(PRICES) for one in amounts_of(name).values()), Cost())
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
    passed = next(one for one in amounts if one.step == "cache")
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
    assert all(one.chip_hours == 0 and one.place is None for one in amounts.values())
    assert amounts["teacher"].tokens == 280 * 16 * 128
    assert amounts["cache"].tokens == 224 * 16 * 128


def test_a_plan_tells_totals_constants_and_the_published_figure(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "prices.json"
    path.write_text('{"v5e.usd_per_chip_hour": 0.5}')
    assert main(["plan", "gemma2_2b_distill", "--root", str(tmp_path), "--prices", str(path)]) == 0
    told = capsys.readouterr().out
    assert "476,838 steps of 512 rows" in told
    assert "1,247.61 tCO2eq published" in told
    assert f"v5e.usd_per_chip_hour = 0.5 USD  ({path}; as given)" in told
    assert "`run` needs, besides: --input, --decontaminate-evaluation, --tokenize-tokenizer, --teacher-weights" in told
    assert not list(tmp_path.glob("*/*"))


def test_carbon_follows_the_grid() -> None:
    clean = {name: Constant(value=0, unit="", source="", date="") for name in CONSTANTS if "grid" in name}
    prices = Prices(constants={**CONSTANTS, **clean})
    (line,) = [one for one in estimate_lines(recipes.load("gemma2_27b_pretrain"), prices) if "tCO2eq" in one]
    assert line.startswith("The report's three models: 0 tCO2e here")


def test_a_run_without_what_it_needs_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["run", "gemma2_2b_distill", "--root", str(tmp_path)]) == 2
    assert "gemma2_2b_distill needs --input, --decontaminate-evaluation" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_given_for_a_recipe_reaches_its_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "set.jsonl").write_text('{"q": "a b c"}\n')
    words = ["plan", "gemma2_27b_pretrain", "--root", str(tmp_path / "runs")]
    assert main([*words, "--decontaminate-evaluation", str(tmp_path / "set.jsonl")]) == 0
    assert "`run` needs, besides: --input, --tokenize-tokenizer\n" in capsys.readouterr().out
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
    told = capsys.readouterr().out
    assert "(1 of 14 steps finished)" in told
    assert "0.0972" in told, "two core-hours at 0.0486"
