"""The image and the Compute Engine cluster, as far as a machine without an engine or a cloud can check them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.programs.places import REPOSITORY

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
    assert "start-iap-tunnel %h" in config["auth"]["ssh_proxy_command"]
    assert config["auth"]["ssh_proxy_use_node_id"] is True, "%h is then the machine's name, which IAP asks for"
    assert "PJRT_DEVICE" not in " ".join(starts), "CPU workers have none"
    assert types["tpu"]["docker"]["worker_run_options"] == ["--privileged", "--env=PJRT_DEVICE=TPU"]
    assert any("docker.io" in line for line in config["initialization_commands"])
    wrong = {**config, "max_worker": 3}
    with pytest.raises(Exception, match="max_worker"):
        validate_config(fillout_defaults(wrong))


def test_no_machine_on_compute_engine_has_an_address_or_an_account_of_another() -> None:
    types = yaml.safe_load((REPOSITORY / "infra" / "gce" / "cluster.yaml").read_text())["available_node_types"]
    accounts = {name: node_type["node_config"]["serviceAccounts"][0]["email"] for name, node_type in types.items()}
    page = (REPOSITORY / "docs" / "security.md").read_text()
    assert {name: email.partition("@")[0] for name, email in accounts.items()} == {
        "head": "gemma2-head",
        "cpu": "gemma2-data",
        "tpu": "gemma2-train",
    }
    assert all(f"`{email.partition('@')[0]}`" in page for email in accounts.values())
    for name in ("head", "cpu"):
        assert [set(interface) for interface in types[name]["node_config"]["networkInterfaces"]] == [{"subnetwork"}]
    assert types["tpu"]["node_config"]["networkConfig"]["enableExternalIps"] is False


def test_rays_provider_knows_each_machine() -> None:
    """Its client is pinned, and it tells machines from TPUs."""
    assert "google-api-python-client==" in (REPOSITORY / "requirements.txt").read_text()
    pytest.importorskip(
        "googleapiclient", reason="an environment older than requirements.txt; make brings it up to date"
    )
    from ray.autoscaler._private.gcp import config as gcp
    from ray.autoscaler._private.providers import _get_node_provider_cls

    config = yaml.safe_load((REPOSITORY / "infra" / "gce" / "cluster.yaml").read_text())
    assert _get_node_provider_cls(config["provider"]).__name__ == "GCPNodeProvider"
    kinds = {
        name: gcp.get_node_type(node_type["node_config"]).name
        for name, node_type in config["available_node_types"].items()
    }
    assert kinds == {"head": "COMPUTE", "cpu": "COMPUTE", "tpu": "TPU"}
    assert gcp._configure_subnet(config, compute=None) == config, "the networks are ours"
