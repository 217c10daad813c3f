"""The image and the Compute Engine cluster, as far as a machine without an engine or a cloud can check them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.e2e.cluster import REPOSITORY

DOCKERFILE = (REPOSITORY / "infra" / "Dockerfile").read_text()
FIT = (REPOSITORY / "requirements-fit.txt").read_text()


def test_the_dockerfile_passes_its_linter() -> None:
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([linter, REPOSITORY / "infra" / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    bad = subprocess.run(
        [linter, "-"], input="FROM python:latest\nRUN sudo pip install x\n", capture_output=True, text=True, check=False
    )
    assert bad.returncode == 1, "it finds what is wrong"


def test_the_image_is_pinned_hashed_and_not_root() -> None:
    assert re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE) == ["python:3.12.12-slim-bookworm"] * 2
    assert len(re.findall("--require-hashes", DOCKERFILE)) == 2
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE) == ["1000:1000"]
    (version,) = re.findall(r"uv==(\S+)", DOCKERFILE)
    assert f"UV_VERSION := {version}\n" in (REPOSITORY / "Makefile").read_text()


def test_it_holds_our_packages_and_nothing_else() -> None:
    copied = re.findall(r"^COPY (\w+) /opt/gemma2/(\w+)$", DOCKERFILE, re.MULTILINE)
    assert [source for source, _ in copied] == ["data", "infra", "model", "pipelines", "training"]
    shipped = (REPOSITORY / ".dockerignore").read_text().split("\n")
    assert shipped[1] == "*"
    assert all(f"!{source}" in shipped for source, _ in copied)


def test_its_libtpu_is_the_one_that_compiles_the_fit_table() -> None:
    wanted = (REPOSITORY / "infra" / "requirements-tpu.txt").read_text().split("\n", 1)[1]
    assert wanted.strip() in FIT


def test_the_cluster_on_compute_engine_fits_rays_schema() -> None:
    from ray._private.accelerators import TPUAcceleratorManager
    from ray.autoscaler._private.util import fillout_defaults, validate_config

    config = yaml.safe_load((REPOSITORY / "infra" / "gce" / "cluster.yaml").read_text())
    validate_config(fillout_defaults(config))
    types = config["available_node_types"]
    assert TPUAcceleratorManager.is_valid_tpu_accelerator_type(types["tpu"]["node_config"]["acceleratorType"])
    assert config["provider"]["use_internal_ips"] is True
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in line for line in starts if "ray start" in line)
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    wrong = {**config, "max_worker": 3}
    with pytest.raises(Exception, match="max_worker"):
        validate_config(fillout_defaults(wrong))
