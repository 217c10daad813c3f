"""`python -m pipelines manifests`: from a recipe's step to YAML."""

from pathlib import Path

import pytest
import yaml

from infra.kuberay import RayJob, read_manifest
from pipelines import recipes
from pipelines.__main__ import main

WORDS = ["--root", "gs://bucket/runs", "--image", "registry/gemma2@sha256:0"]


def objects(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict]:
    assert main(["manifests", *words, *WORDS]) == 0
    return list(yaml.safe_load_all(capsys.readouterr().out))


def test_a_recipe_on_its_own_slices(capsys: pytest.CaptureFixture[str]) -> None:
    *_, job = objects(capsys, "train_model", "--recipe", "gemma2_2b_distill")
    read = read_manifest(job)
    assert isinstance(read, RayJob)
    assert read.name == "gemma2-2b-distill-train"
    entrypoint = (
        "python -m pipelines run gemma2_2b_distill --only train --root gs://bucket/runs --device xla --workers 128"
    )
    assert read.spec.entrypoint == entrypoint
    (group,) = [one for one in read.spec.ray_cluster_spec.worker_group_specs if one.group_name == "tpu"]
    assert (group.replicas, group.num_of_hosts) == (2, 64)


@pytest.mark.parametrize(
    ("stage", "further", "mesh"),
    [
        ("teacher", (), " --workers 1 --mesh data=4"),
        ("teacher", ("--", "--mesh", "model=4"), " --workers 1 --mesh model=4"),
        ("generate", (), " --workers 1"),
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
def test_every_step_of_a_recipe_has_manifests(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    for step in recipes.load(recipe).steps:
        small = step.stage in ("train_model", "cache_logits", "evaluate_model", "generate_text") and step.place is None
        *_, job = objects(capsys, step.name, "--recipe", recipe, *(["--topology", "v5e:4x4"] if small else []))
        groups = {group["groupName"] for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
        assert groups == ({"cpu", "tpu"} if small or step.place else {"cpu"})


def test_a_stage_that_holds_the_model_in_its_driver_has_a_large_head(capsys: pytest.CaptureFixture[str]) -> None:
    memory = {}
    for step in ("teacher", "collect"):
        *_, job = objects(capsys, step, "--recipe", "gemma2_2b_distill")
        (container,) = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
        memory[step] = container["resources"]["limits"]["memory"]
    assert memory == {"teacher": "160Gi", "collect": "16Gi"}


def test_yaml_has_no_anchors_and_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["manifests", "filter_text", "--recipe", "demo", *WORDS]) == 0
    told = capsys.readouterr().out
    assert "&id" not in told
    assert "kind: Secret" not in told
    assert "create secret generic ray-token" in told


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("train_modle --recipe demo", "no stage or step 'train_modle'; did you mean"),
        (
            "train_model --recipe demo",
            "several steps of train_model; name one of them instead: teacher, distilled, scratch",
        ),
        ("teacher --recipe demo", "teacher has no slice of its own in demo; give --topology, as in v5e:4x4"),
        ("teacher --recipe demo --topology v5e:16x15", "sides are 1, 2 or multiples of 4"),
        ("teacher --recipe demo --topology v5p:4x4", "a v5p slice has 3 dimensions, as in v5p:4x4x4"),
        ("collect --recipe demo --topology v5e:4x4", "runs no model, so --topology v5e:4x4 would stand idle"),
        ("collect --recipe demo --cpu-workers many", "is not FEWEST:MOST"),
        ("collect --recipe demo --topologie v5e:4x4", "no field 'topologie'; did you mean 'topology'?"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(line: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["manifests", *line.split(), *WORDS]) == 2
    assert sentence in capsys.readouterr().err


def test_a_root_that_pods_do_not_share_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["manifests", "collect", "--recipe", "demo", "--root", "runs", "--image", "i"]) == 2
    assert "is not seen by all pods; give gs://bucket/path" in capsys.readouterr().err


def test_a_job_runs_one_step_and_needs_those_before_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["run", "smoke", "--root", str(tmp_path)]
    assert main([*run, "--only", "teachr"]) == 2
    assert "no step 'teachr'; did you mean 'teacher'?" in capsys.readouterr().err
    assert main([*run, "--only", "filter"]) == 2
    assert "that run has not finished; run it (again) first" in capsys.readouterr().err
