"""Kubernetes objects: schemas of Kubernetes, fields of KubeRay, and the slice table behind them."""

import copy
from dataclasses import replace
from typing import Any

import kubernetes_validate
import pytest

from infra.chips import TPUS
from infra.kuberay import RayCluster, RayJob, read_object
from infra.kubernetes import HEALTH_PAGES, Request, kubernetes_objects, rented_slice

VERSION = "1.34"
CPU = Request(
    name="demo-filter", namespace="ray", entrypoint="python -m pipelines list", image="image:1", ray_version="2.60.0"
)
TPU = replace(
    CPU, topology=rented_slice("v5e:16x16", 2), spot=True, google_service_account="a@b.iam.gserviceaccount.com"
)


HEAD = ("rayClusterSpec", "headGroupSpec", "template")
WORKER = ("rayClusterSpec", "workerGroupSpecs", 1, "template")


def pods(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Role or group -> pod template of a RayJob."""
    cluster = document["spec"]["rayClusterSpec"]
    groups = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    head, submitter = cluster["headGroupSpec"]["template"], document["spec"]["submitterPodTemplate"]
    return {"head": head, "submitter": submitter, **groups}


@pytest.mark.parametrize("request_", [CPU, TPU], ids=["cpu", "tpu"])
def test_every_object_is_one_that_kubernetes_takes(request_: Request) -> None:
    account, policy, job = kubernetes_objects(request_)
    for document in (account, policy):
        kubernetes_validate.validate(document, VERSION, strict=True)
    for name, template in pods(job).items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **template["metadata"]}, **template}
        pod["metadata"] = {"name": name, **template["metadata"]}
        kubernetes_validate.validate(pod, VERSION, strict=True)


def test_a_pod_with_a_wrong_field_would_be_refused() -> None:
    template = copy.deepcopy(pods(kubernetes_objects(TPU)[2])["tpu"])
    template["spec"]["nodeSelectors"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": template["spec"]},
            VERSION,
            strict=True,
        )


@pytest.mark.parametrize(("kind", "made"), [("RayJob", RayJob), ("RayCluster", RayCluster)])
def test_what_is_written_is_read_by_the_model(kind: str, made: type) -> None:
    document = kubernetes_objects(replace(TPU, kind=kind))[2]
    read = read_object(document)
    assert isinstance(read, made)
    assert read.to_object() == document


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("shutdownAfterJobFinish",), True, "RayJobSpec has no such field"),
        (("ttlSecondsAfterFinished",), "600", "spec.ttlSecondsAfterFinished is '600'"),
        (("activeDeadlineSeconds",), 0, "must be positive"),
        (("shutdownAfterJobFinishes",), False, "only with shutdownAfterJobFinishes"),
        (("rayClusterSpec", "workerGroupSpecs", 1, "numOfHost"), 4, "WorkerGroupSpec has no such field"),
        (("rayClusterSpec", "workerGroupSpecs", 1, "replicas"), 9, "replicas is 9, but must be from minReplicas"),
        (("rayClusterSpec", "authOptions", "mode"), "disabled", "allowed: .'token',"),
        (("rayClusterSpec", "headGroupSpec", "serviceType"), "LoadBalancer", "ClusterIP"),
        ((*HEAD, "spec", "restartPolicy"), "Always", "group head: restartPolicy is Always.*only Never"),
        ((*WORKER, "spec", "restartPolicy"), "OnFailure", "group tpu: restartPolicy is OnFailure.*only Never"),
        ((*HEAD, "spec", "containers"), [], "group head: its pods have no container"),
        ((*WORKER, "spec", "containers"), [], "group tpu: its pods have no container"),
        (
            (*HEAD[:-1], "rayStartParams", "labels"),
            "a=b",
            "group head: rayStartParams has 'labels', which the operator refuses",
        ),
        (
            (*HEAD, "spec", "containers", 0, "env", 0),
            {"name": "RAY_enable_autoscaler_v2", "value": "1"},
            "its container sets RAY_enable_autoscaler_v2, which the operator refuses",
        ),
        (("rayClusterSpec", "rayVersion"), "2.51.9", "token needs 2.52.0 or later"),
        (("rayClusterSpec", "rayVersion"), "", "token needs 2.52.0 or later"),
        (("rayClusterSpec", "autoscalerOptions", "idleTimeoutSeconds"), -1, "idleTimeoutSeconds is -1"),
        (("backoffLimit",), -1, "backoffLimit is -1"),
        (("ttlSecondsAfterFinished",), -1, "ttlSecondsAfterFinished is -1"),
        (("submissionMode",), "SidecarMode", "submissionMode is 'SidecarMode'"),
    ],
)
def test_a_field_that_kuberay_has_not_or_refuses_is_refused(
    place: tuple[Any, ...], value: object, message: str
) -> None:
    document = copy.deepcopy(kubernetes_objects(TPU)[2])
    inner: Any = document["spec"]
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(ValueError, match=message):
        read_object(document)


LISTED = [
    (f"{chip.name}:{shape}", slices) for chip in TPUS.values() for shape in chip.gke_topologies for slices in (1, 2)
]


@pytest.mark.parametrize(("text", "slices"), LISTED)
def test_hosts_times_chips_are_the_topology(text: str, slices: int) -> None:
    place = rented_slice(text, slices)
    job = kubernetes_objects(replace(CPU, topology=place))[2]
    cpu, tpu = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    spec = tpu["template"]["spec"]
    chips = int(spec["containers"][0]["resources"]["limits"]["google.com/tpu"])
    assert tpu["replicas"] == tpu["minReplicas"] == tpu["maxReplicas"] == slices
    assert tpu["numOfHosts"] * chips == place.chips_per_slice
    assert tpu["replicas"] * tpu["numOfHosts"] * chips == place.chips
    assert spec["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == text.partition(":")[2]
    assert spec["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == place.chip.gke_accelerator
    assert (cpu["minReplicas"], cpu["maxReplicas"]) == (0, 16), "the CPU group grows and shrinks"


def test_no_pod_is_root_or_has_a_key() -> None:
    account, _, job = kubernetes_objects(TPU)
    assert account["metadata"]["annotations"] == {"iam.gke.io/gcp-service-account": "a@b.iam.gserviceaccount.com"}
    for name, template in pods(job).items():
        spec = template["spec"]
        (container,) = spec["containers"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] != 0
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert spec["automountServiceAccountToken"] is (name == "head"), "the autoscaler's, and nobody else's"
        assert not any("hostPath" in volume or "secret" in volume for volume in spec["volumes"])
        assert {"name": "RAY_AUTH_MODE", "value": "token"} in container["env"]
        assert "hostNetwork" not in spec


def test_the_policy_lets_in_the_jobs_own_pods_and_the_operator() -> None:
    _, policy, job = kubernetes_objects(TPU)
    labels = policy["spec"]["podSelector"]["matchLabels"]
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    own, operator, scrapers = policy["spec"]["ingress"]
    assert own == {"from": [{"podSelector": {"matchLabels": labels}}]}
    assert operator["ports"] == [{"port": 8265, "protocol": "TCP"}]
    assert scrapers["ports"] == [{"port": 8080, "protocol": "TCP"}]
    assert all(labels.items() <= template["metadata"]["labels"].items() for template in pods(job).values())
    assert job["spec"]["rayClusterSpec"]["headGroupSpec"]["serviceType"] == "ClusterIP"


def test_a_job_ends_with_its_cluster_and_a_preempted_worker_comes_back() -> None:
    job = kubernetes_objects(TPU)[2]["spec"]
    assert (job["shutdownAfterJobFinishes"], job["ttlSecondsAfterFinished"], job["backoffLimit"]) == (True, 600, 2)
    specs = {name: template["spec"] for name, template in pods(kubernetes_objects(TPU)[2]).items()}
    for name, spot in {"head": False, "submitter": False, "cpu": True, "tpu": True}.items():
        assert ("cloud.google.com/gke-spot" in specs[name]["nodeSelector"]) is spot
        assert (
            any(toleration["key"] == "cloud.google.com/gke-spot" for toleration in specs[name]["tolerations"]) is spot
        )
    assert specs["tpu"]["terminationGracePeriodSeconds"] < 30
    assert {spec["restartPolicy"] for spec in specs.values()} == {"Never"}, "the autoscaler v2 makes new pods"


PROBES = {"startupProbe", "readinessProbe", "livenessProbe"}


def test_every_pod_of_the_cluster_is_probed_and_says_goodbye() -> None:
    """tests/e2e/test_smoke.py asks a real Ray for these pages."""
    job = kubernetes_objects(TPU)[2]
    for name, template in pods(job).items():
        (container,) = template["spec"]["containers"]
        if name == "submitter":  # its end is the job's
            assert not PROBES & set(container)
            continue
        assert set(container) >= PROBES, name
        for probe in PROBES:
            page = container[probe]["httpGet"]
            assert (page["path"], page["port"]) in HEALTH_PAGES.items(), (name, probe)
            assert container[probe]["periodSeconds"] > container[probe].get("timeoutSeconds", 1)
        assert container["livenessProbe"]["failureThreshold"] > container["readinessProbe"]["failureThreshold"]
        assert container["lifecycle"]["preStop"]["exec"]["command"] == ["ray", "stop"]
    head, cpu, tpu = (pods(job)[name]["spec"]["containers"][0] for name in ("head", "cpu", "tpu"))
    assert head["livenessProbe"]["httpGet"]["path"] == "/api/gcs_healthz", "the store of state is what a head is for"
    assert cpu["livenessProbe"]["httpGet"]["path"] == "/api/local_raylet_healthz"
    assert tpu["livenessProbe"] == cpu["livenessProbe"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5e:2x8", "got topology 2x8, which no v5e slice has; there are 2x2, 2x4, 4x4"),
        ("v5p:8x4x4", "got topology 8x4x4, which no v5p slice has; there are 2x2x1.*rising multiples of 4"),
        ("v4:16x16", "a v4 slice has 3 dimensions"),
        ("v7:4x4", "unknown chip 'v7'"),
    ],
)
def test_a_slice_that_nobody_offers_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rented_slice(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "Demo_1"}, "got the name 'Demo_1'; it has at most 47"),
        ({"cpu_workers": (3, 1)}, "the smallest and the largest number"),
        ({"namespace": ""}, "namespace"),
    ],
)
def test_a_name_or_number_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CPU, **change)
