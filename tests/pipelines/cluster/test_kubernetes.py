"""`python -m pipelines manifests`: from a recipe's step to YAML."""

import shlex
from pathlib import Path

import pytest
import yaml

from infra.kuberay import RayJob, read_object
from pipelines.__main__ import main
from pipelines.recipes import registry as recipes

WORDS = ["--root", "gs://bucket/runs", "--image", "registry/gemma2@sha256:0"]


GIVEN = ["--", "--input", "gs://b/text", "--decontaminate-evaluation", "gs://b/items", "--tokenize-tokenizer",
         "gs://b/tokenizer.model", "--teacher-weights", "gs://b/27b"]  # fmt: skip


def objects(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict]:
    place = words.index("--") if "--" in words else len(words)
    assert main(["manifests", *words[:place], *WORDS, *words[place:]]) == 0
    return list(yaml.safe_load_all(capsys.readouterr().out))


def test_a_recipe_on_its_own_slices(capsys: pytest.CaptureFixture[str]) -> None:
    *_, job = objects(capsys, "train_model", "--recipe", "gemma2_2b_distill", *GIVEN)
    read = read_object(job)
    assert isinstance(read, RayJob)
    assert read.name == "gemma2-2b-distill-train"
    entrypoint = (
        "python -m pipelines run gemma2_2b_distill --only train --root gs://bucket/runs --device xla "
        "--topology v5e:16x16 --slices 2 --mesh replica=2,data=256"
    )
    assert read.spec.entrypoint == shlex.join([*entrypoint.split(), *GIVEN[1:]])
    (group,) = [spec for spec in read.spec.ray_cluster_spec.worker_group_specs if spec.group_name == "tpu"]
    assert (group.replicas, group.num_of_hosts) == (2, 64)


@pytest.mark.parametrize(
    ("stage", "further", "mesh"),
    [
        ("teacher", (), " --topology v5e:2x2 --slices 1"),
        ("teacher", ("--", "--mesh", "model=4"), " --slices 1 --mesh model=4"),
        ("cache", (), " --device xla --mesh data=4"),
        ("generate", (), " --device xla"),
    ],
)
def test_a_slice_of_one_host_is_one_mesh(
    stage: str, further: tuple[str, ...], mesh: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["manifests", stage, "--recipe", "demo", "--topology", "v5e:2x2", *WORDS, *further]
    assert main(words) == 0
    *_, job = yaml.safe_load_all(capsys.readouterr().out)
    assert job["spec"]["entrypoint"].endswith(mesh)


@pytest.mark.parametrize("recipe", ["gemma2_2b_distill", "smoke"])
def test_every_step_of_a_recipe_has_objects(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    for step in recipes.load(recipe).steps:
        model = step.stage in ("train_model", "cache_logits", "evaluate_model", "generate_text")
        small = model and not (step.stage == "train_model" and step.place)
        words = [*(["--topology", "v5e:2x2"] if small else []), *(GIVEN if recipe == "gemma2_2b_distill" else [])]
        *_, job = objects(capsys, step.name, "--recipe", recipe, *words)
        groups = {group["groupName"] for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
        assert groups == ({"cpu", "tpu"} if model else {"cpu"})


def test_a_stage_that_holds_the_model_in_its_driver_has_a_large_head(capsys: pytest.CaptureFixture[str]) -> None:
    memory = {}
    for step in ("teacher", "collect"):
        *_, job = objects(capsys, step, "--recipe", "gemma2_2b_distill", *GIVEN)
        (container,) = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
        memory[step] = container["resources"]["limits"]["memory"]
    assert memory == {"teacher": "160Gi", "collect": "16Gi"}


def test_yaml_has_no_anchors_and_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["manifests", "filter_text", "--recipe", "demo", *WORDS]) == 0
    output = capsys.readouterr().out
    assert "&id" not in output
    assert "kind: Secret" not in output
    assert "create secret generic ray-token" in output


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("train_modle --recipe demo", "no stage or step 'train_modle'; did you mean"),
        (
            "train_model --recipe demo",
            "got 'train_model', the stage of several steps of demo; give one of the steps: teacher, distilled, scratch",
        ),
        (
            "teacher --recipe demo",
            "got no --topology for teacher, which has no slice of its own in demo; give --topology, such as v5e:2x2",
        ),
        ("teacher --recipe demo --topology v5e:16x15", "sides are 1, 2 or multiples of 4"),
        ("teacher --recipe demo --topology v5p:4x4", "a v5p slice has 3 dimensions: write it as in v5p:4x4x4"),
        ("collect --recipe demo --topology v5e:4x4", "got --topology v5e:4x4 for collect_text, which runs no model"),
        ("collect --recipe demo --slices 3", "got --slices 3 for collect_text, which runs no model"),
        (
            "evaluate_distilled --recipe demo --topology v5e:4x4",
            "got 1 x v5e:4x4 of 4 hosts for evaluate_model, which is one process on one host; give one slice of one "
            "host, such as --topology v5e:2x2",
        ),
        ("cache --recipe gemma2_9b_distill", "got 1 x v4:8x16x32 of 1024 hosts for cache_logits"),
        ("cache --recipe demo --topology v5p:2x2x1 --slices 2", "of 2 hosts"),
        ("collect --recipe gemma2_2b_distill", "got no --input for gemma2_2b_distill --only collect;"),
        ("collect --recipe demo -- --bogus 3", "no field 'bogus'"),
        ("collect --recipe demo -- --only filter", "no field 'only'"),
        ("collect --recipe demo -- --help", "got --help after --, with which a job runs nothing"),
        ("collect --recipe demo -- --root gs://other/runs", "got --root 'gs://other/runs' after --"),
        ("collect --recipe demo -- --input notes", "got input 'notes', which not all pods see; copy it to a bucket"),
        ("collect --recipe demo -- --config runs/demo/recipe.json", "give the recipe.json in a bucket"),
        ("collect --recipe demo --deadline-hours 0", "activeDeadlineSeconds is 0"),
        (
            "collect --recipe demo --kind RayCluster -- --input gs://b/text",
            "for a RayCluster, which runs no line of its own",
        ),
        ("collect --recipe demo --cpu-workers many", "got --cpu-workers 'many'; give FEWEST:MOST"),
        ("collect --recipe demo --topologie v5e:4x4", "no field 'topologie'; did you mean 'topology'?"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(line: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    before, *after = line.split(" -- ")
    words = ["manifests", *before.split(), *WORDS, *(["--", *after[0].split()] if after else [])]
    assert main(words) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.out == "", "nothing in train.yaml"


@pytest.mark.parametrize("root", ["runs", "/data/runs", "s3://bucket/runs", "gs://", "gs:///runs"])
def test_a_root_that_pods_do_not_share_is_refused(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["manifests", "collect", "--recipe", "demo", "--root", root, "--image", "i"]) == 2
    assert "which not all pods see; give gs://bucket/path" in capsys.readouterr().err


def test_a_config_in_a_bucket_is_the_jobs_to_read(capsys: pytest.CaptureFixture[str]) -> None:
    further = ["--", "--config", "gs://bucket/runs/gemma2_2b_distill/recipe.json"]
    *_, job = objects(capsys, "pack", "--recipe", "gemma2_2b_distill", *further)
    assert job["spec"]["entrypoint"].endswith(shlex.join(further[1:]))


def test_a_cluster_says_what_to_submit_to_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["manifests", "collect", "--recipe", "demo", "--kind", "RayCluster", *WORDS]) == 0
    output = capsys.readouterr().out
    assert "-- python -m pipelines run demo --only collect --root gs://bucket/runs\n" in output
    assert "kind: RayCluster" in output


def test_a_job_runs_one_step_and_needs_those_before_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["run", "smoke", "--root", str(tmp_path)]
    assert main([*run, "--only", "teachr"]) == 2
    assert "no step 'teachr'; did you mean 'teacher'?" in capsys.readouterr().err
    assert main([*run, "--only", "filter"]) == 2
    assert "so that run has not finished; run it to its end first" in capsys.readouterr().err
