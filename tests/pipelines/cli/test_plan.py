import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from data import shards, storage
from data.manifest import RUN_NAME, Dataset, Manifest, publish_manifest
from pipelines.__main__ import main
from pipelines.cli.arguments import parse_recipe
from pipelines.cli.plan import last_of_stage, plan_lines
from pipelines.engine import code_digest
from pipelines.engine import config as configs
from pipelines.engine.code_digest import code_sha256
from pipelines.engine.stage import load_stage
from pipelines.engine.task import Task, resolve_texts
from pipelines.recipes.recipe import Output, Recipe, Step, last_run, save_recipe, tasks_of
from pipelines.recipes.registry import load
from pipelines.report.words import size
from pipelines.stages import collect_text, deduplicate_text, filter_text
from tests.programs import resealed
from tests.programs.places import REPOSITORY


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("text")
    steps = (
        Step(
            name="collect",
            stage="collect_text",
            config=collect_text.Config(),
            inputs={"input": (str(tmp_path / "in"),)},
        ),
        Step(
            name="filter",
            stage="filter_text",
            config=filter_text.Config(),
            inputs={"text": (Output(step="collect", dataset="text"),)},
        ),
        Step(
            name="dedup",
            stage="deduplicate_text",
            config=deduplicate_text.Config(),
            inputs={"text": (Output(step="filter", dataset="text"),)},
        ),
    )
    return Recipe(name="small", summary="Small.", steps=steps)


def finish(task: Task, code: str | None = None, **facts: object) -> None:
    """What the runner leaves of a finished task."""
    made = {
        name: Dataset(
            shards=(shards.write_file(task.directory, f"{name}/00000.parquet", b"12345", rows=1234),), facts=facts
        )
        for name in task.stage.writes
    }
    publish_manifest(
        task.directory,
        Manifest(
            stage=task.stage.name,
            version=task.stage.version,
            fingerprint=task.fingerprint,
            config=configs.to_dict(task.config),
            writer=task.writer,
            inputs={
                name: [{"reference": source.reference, "content": source.content()} for source in many]
                for name, many in task.inputs.items()
            },
            datasets=made,
        ),
    )
    run = {"code_sha256": code or code_sha256(task.stage), "started": "2024-07-31T00:00:00"}
    storage.write_bytes(storage.join(task.directory, RUN_NAME), json.dumps(run).encode())


def with_config(recipe: Recipe, name: str, config: object) -> Recipe:
    return replace(
        recipe, steps=tuple(replace(step, config=config) if step.name == name else step for step in recipe.steps)
    )


def planned(recipe: Recipe, root: Path) -> str:
    return "\n".join(plan_lines(tasks_of(recipe, str(root)), last_run(recipe, str(root))))


def test_before_the_first_run_every_step_never_ran(recipe: Recipe, tmp_path: Path) -> None:
    text = planned(recipe, tmp_path / "runs")
    assert text.startswith("3 steps: 0 done, 3 to run")
    assert text.count("never ran here") == 3
    assert not (tmp_path / "runs").exists()


def test_a_finished_step_tells_what_it_holds(recipe: Recipe, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    tasks = tasks_of(recipe, str(root))
    finish(tasks["collect"])
    text = planned(recipe, root)
    assert text.startswith("3 steps: 1 done, 2 to run")
    assert f"collect_text/{tasks['collect'].fingerprint}: rejects: 1,234 rows, 5 B; text: 1,234 rows, 5 B" in text


def test_a_changed_field_is_named_and_so_is_what_follows_from_it(recipe: Recipe, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    tasks = tasks_of(recipe, str(root))
    for task in tasks.values():
        finish(task)
    save_recipe(recipe, tasks, str(root))
    assert planned(recipe, root).startswith("3 steps: 3 done, 0 to run")

    text = planned(with_config(recipe, "filter", filter_text.Config(max_characters=7)), root)
    assert text.startswith("3 steps: 1 done, 2 to run")
    assert "because max_characters 1000000 -> 7" in text
    assert "because it reads filter, which changes" in text


def test_changed_files_are_named(recipe: Recipe, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    tasks = tasks_of(recipe, str(root))
    for task in tasks.values():
        finish(task)
    save_recipe(recipe, tasks, str(root))
    (tmp_path / "in" / "b.txt").write_text("more")
    text = planned(recipe, root)
    assert "because the files of input changed" in text
    assert "because it reads collect, which changes" in text


def test_an_interrupted_step_did_not_finish(recipe: Recipe, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    tasks = tasks_of(recipe, str(root))
    finish(tasks["collect"])
    save_recipe(recipe, tasks, str(root))
    text = planned(recipe, root)
    assert "because its output is not there\n" in text
    assert "because its output is not there; it waits for filter" in text
    storage.write_bytes(storage.join(tasks["filter"].directory, "_CONFIG.json"), b"{}")
    assert "it did not finish" in planned(recipe, root)


def test_a_stage_alone_is_compared_with_its_newest_run(recipe: Recipe, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    tasks = tasks_of(recipe, str(root))
    assert last_of_stage(tasks["filter"]) == {}
    finish(tasks["collect"])
    finish(tasks["filter"])
    changed = replace(tasks["filter"], config=filter_text.Config(max_characters=7))
    alone = {"filter_text": changed}
    text = "\n".join(plan_lines(alone, last_of_stage(changed)))
    assert "because max_characters 1000000 -> 7" in text
    other = {
        **tasks["filter"].inputs,
        "text": (replace(tasks["filter"].inputs["text"][0], reference="other/run:text"),),
    }
    moved = replace(tasks["filter"], inputs=other)
    text = "\n".join(plan_lines({"filter_text": moved}, last_of_stage(moved)))
    assert f"because --text was collect_text/{tasks['collect'].fingerprint}:text and is other/run:text" in text


def test_changed_code_with_the_old_version_is_a_warning(recipe: Recipe, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    tasks = tasks_of(recipe, str(root))
    finish(tasks["collect"])
    finish(tasks["filter"], code="0123456789abcdef")
    (warning,) = [line for line in planned(recipe, root).splitlines() if line.startswith("warning")]
    assert f"the code of filter_text (VERSION {filter_text.VERSION}) changed since filter ran" in warning
    assert "raise VERSION" in warning


def test_a_new_version_runs_again(recipe: Recipe, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    tasks = tasks_of(recipe, str(root))
    finish(tasks["collect"])
    save_recipe(recipe, tasks, str(root))
    newer = {**tasks, "collect": replace(tasks["collect"], stage=replace(tasks["collect"].stage, version=99))}
    text = "\n".join(plan_lines(newer, last_run(recipe, str(root))))
    assert f"because VERSION {tasks['collect'].stage.version} -> 99" in text


def made_before(task: Task) -> dict[str, object]:
    """What was hashed of the task, and kept of it, before options could be absent and the writer was taken in."""
    hashed = {name: value for name, value in task.hashed().items() if name != "writer"}
    hashed["config"] = configs.to_dict(task.config)
    return hashed | {"fingerprint": configs.digest(hashed)}


def test_runs_from_before_fingerprints_changed_are_explained_once(recipe: Recipe, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    tasks = tasks_of(recipe, str(root))
    before: dict[str, dict[str, object]] = {}
    for name, task in tasks.items():
        old = made_before(task)
        if name != "collect":
            source = "collect" if name == "filter" else "filter"
            old["inputs"] = {"text": [f"{recipe_stage(source)}/{before[source]['fingerprint']}:text"]}
            del old["fingerprint"]
            old["fingerprint"] = configs.digest(old)
        before[name] = old
    text = "\n".join(plan_lines(tasks, before))
    assert "because its fingerprint is made differently (see the note)" in text
    assert "because it reads collect, which changes" in text
    (note,) = [line for line in text.splitlines() if line.startswith("note")]
    assert "(without absent options, with the Parquet writer), so 3 of 3 steps run again" in note
    assert "null" not in text, "an option that the new fingerprint leaves out did not change"

    changed = tasks_of(with_config(recipe, "collect", collect_text.Config(exclude=("*.md",))), str(root))
    text = "\n".join(plan_lines(changed, before))
    assert 'because exclude [] -> ["*.md"]' in text
    assert text.count("note: ") == 1

    save_recipe(recipe, tasks, str(root))
    assert "note: " not in planned(recipe, root), "what ran since then is compared as ever"


def recipe_stage(step: str) -> str:
    return {"collect": "collect_text", "filter": "filter_text"}[step]


def test_a_run_of_a_stage_alone_from_before_fingerprints_changed_is_explained(recipe: Recipe, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    task = tasks_of(recipe, str(root))["collect"]
    old = made_before(task)
    finish(task)
    present = Path(task.directory)
    before = {"writer": None, "fingerprint": str(old["fingerprint"])}
    resealed.edit(present / "_MANIFEST.json", lambda manifest: manifest.update(before))
    present.rename(present.with_name(str(old["fingerprint"])))
    text = "\n".join(plan_lines({"collect_text": task}, last_of_stage(task)))
    assert "because its fingerprint is made differently (see the note)" in text
    assert text.count("note: ") == 1
    reference = f"collect_text/{old['fingerprint']}"
    read = filter_text.READS["text"]
    (resolved,) = resolve_texts(read, filter_text.Config(), [reference], str(root))
    assert resolved.reference == f"{reference}:text", "the old run is an input as before"


def test_a_raised_writer_is_named(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "runs"
    tasks = tasks_of(recipe, str(root))
    finish(tasks["collect"])
    save_recipe(recipe, tasks, str(root))
    monkeypatch.setattr(collect_text, "WRITER", 99)
    text = planned(recipe, root)
    assert f"because the Parquet writer {shards.WRITER} -> 99" in text
    assert "note: " not in text
    alone = tasks_of(recipe, str(root))["collect"]
    assert "because the Parquet writer" in "\n".join(plan_lines({"collect_text": alone}, last_of_stage(alone)))


def test_the_code_of_a_stage_is_its_file_and_what_that_imports(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a copy of the sources: an edit of the rules counts, one of a module that it does not use does not."""
    for name in ("data/filters.py", "data/packing.py", "data/schema.py", "data/shards.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((REPOSITORY / name).read_bytes())
    monkeypatch.setattr(code_digest, "REPOSITORY", tmp_path)
    stage = tasks_of(recipe, str(tmp_path))["filter"].stage
    before = code_sha256(stage)
    (tmp_path / "data/packing.py").write_text("edited = True\n")
    assert code_sha256(stage) == before
    (tmp_path / "data/filters.py").write_text("edited = True\n")
    assert code_sha256(stage) != before


def test_the_sections_of_the_model_card_are_code_of_an_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """The card asks the stages for them, and imports none."""
    stage = load_stage("export_model")
    before = code_sha256(stage)
    monkeypatch.setattr(code_digest, "DECLARED", {})
    code_digest._imported.cache_clear()
    assert code_sha256(stage) != before
    code_digest._imported.cache_clear()


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e9, "2.5 GB"), (7e15, "7000.0 TB")]
)
def test_sizes_are_for_people(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.slow
def test_a_plan_never_imports_ray(tmp_path: Path) -> None:
    script = "import sys; sys.modules['ray'] = None\nfrom pipelines.__main__ import main\nsys.exit(main(sys.argv[1:]))"
    words = ["plan", "smoke", "--root", str(tmp_path / "runs")]
    done = subprocess.run(
        [sys.executable, "-c", script, *words], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "never ran here" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_a_step_alone_needs_only_the_inputs_that_it_rests_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it leaves as recipe.json is completed by flags of later steps."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "one.txt").write_text("A text.")
    (tmp_path / "items.txt").write_text("An item of an evaluation set.")
    saved = str(tmp_path / "runs" / "gemma2_2b_distill" / "recipe.json")
    run = ["run", "gemma2_2b_distill", "--root", str(tmp_path / "runs")]

    assert main([*run, "--only", "filter"]) == 2
    assert "got no --input for gemma2_2b_distill --only filter;" in capsys.readouterr().err
    assert main([*run, "--only", "filter", "--input", str(tmp_path / "text")]) == 2
    assert "that run has not finished" in capsys.readouterr().err, "it would have run: nothing is missing"
    assert set(last_run(load("gemma2_2b_distill"), str(tmp_path / "runs"))) == {"collect", "filter", "deduplicate"}

    assert main(["status", "--root", str(tmp_path / "runs")]) == 0
    output = capsys.readouterr().out
    assert "gemma2_2b_distill: 0 of 10 steps done" in output
    assert output.count("for an input from outside") == 7
    assert main(["plan", *run[1:], "--config", saved]) == 0
    output = capsys.readouterr().out
    assert "decontaminate-evaluation, --tokenize-tokenizer, --teacher-weights" in output

    assert main([*run, "--only", "decontaminate", "--config", saved]) == 2
    assert "got no --decontaminate-evaluation for" in capsys.readouterr().err
    evaluation = ["--decontaminate-evaluation", str(tmp_path / "items.txt")]
    assert main([*run, "--only", "decontaminate", "--config", saved, *evaluation]) == 2
    assert "that run has not finished" in capsys.readouterr().err
    command = parse_recipe(load("gemma2_2b_distill"), ["--config", saved])
    assert command.recipe.not_given() == ["--tokenize-tokenizer", "--teacher-weights"]
    assert command.recipe.not_given(["decontaminate"]) == []
    assert command.recipe.not_given(["cache"]) == ["--tokenize-tokenizer", "--teacher-weights"]
    assert command.recipe.not_given(["teacher"]) == ["--teacher-weights"]
