"""Kubernetes objects for one stage on Google Kubernetes Engine: from the slice table to YAML.

    Request -> ServiceAccount, NetworkPolicy, RayJob (or RayCluster)

Each job has a short-lived cluster: a head node that does not compute, a CPU group that grows and shrinks with the data
stages, and, for stages with a model, a TPU group in which a replica is a slice of hosts x 4 chips. Pods run as user
1000 without capabilities. Workload identity gives them an account of Google Cloud, without any key. A token from a
Secret and a NetworkPolicy decide who can connect to them. Nothing here has run on a cluster: the tests check every
object against Kubernetes' schemas and `infra/kuberay.py`.

Accelerator labels, topologies and machines come from infra/chips.py. Other sources:
cloud.google.com/kubernetes-engine/docs/concepts/workload-identity (metadata server), /docs/concepts/spot-vms;
docs.ray.io, Ray on GKE with TPUs: the Ray add-on of GKE sets TPU_WORKER_ID and TPU_WORKER_HOSTNAMES, which
`training/worker/` reads.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from infra.errors import UserError
from infra.kuberay import (
    NAME,
    AuthOptions,
    AutoscalerOptions,
    HeadGroupSpec,
    RayCluster,
    RayClusterSpec,
    RayJob,
    RayJobSpec,
    WorkerGroupSpec,
)
from infra.slices import Topology, parse_topology

HOST_SHARE = 0.85
"""share of a host that a pod requests; the system has the rest"""
USER = 1000
PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080}
AGENT_PORT = 52365
HEALTH_PAGES = {"/api/gcs_healthz": PORTS["dashboard"], "/api/local_raylet_healthz": AGENT_PORT}
"""page of Ray without a token -> its port: for the head node's store of state, and for the raylet of every node"""
SCRAPING_NAMESPACES = ("gmp-system", "monitoring")
"""namespaces of Prometheus: Google's managed one, and the usual one of your own"""
PART_OF = "gemma2-on-ray"
GRACE_SECONDS = 25
"""seconds to end a pod; a spot machine is lost 30 s after the notice"""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A stage, and the cluster that it needs."""

    name: str
    """name of the job, its ServiceAccount and its NetworkPolicy"""
    namespace: str
    entrypoint: str
    image: str
    ray_version: str
    kind: Literal["RayJob", "RayCluster"] = "RayJob"
    topology: Topology | None = None
    """slices for the stage; None: only CPUs"""
    cpu_workers: tuple[int, int] = (0, 16)
    """smallest and largest number of CPU pods"""
    cpus: int = 16
    """CPUs of a CPU pod, with 4 GB each"""
    head_gigabytes: int = 16
    """memory of the head node, on which the driver runs, in GB"""
    spot: bool = False
    """whether workers run on spot machines; after a preemption the job resumes from its newest checkpoint or receipt"""
    google_service_account: str = ""
    """service account of the pods in Google Cloud; empty: that of the node, which GKE advises against"""
    token_secret: str = "ray-token"
    deadline_hours: int = 24 * 14
    keep_seconds: int = 600
    """seconds from the end of the job to the end of its cluster, to read logs"""
    retries: int = 2

    def __post_init__(self) -> None:
        for label, name in (("name", self.name), ("namespace", self.namespace), ("token secret", self.token_secret)):
            if not NAME.fullmatch(name):
                raise UserError(
                    f"got the {label} {name!r}; it has at most 47 of a-z, 0-9 and -, a letter first: choose another"
                )
        fewest, most = self.cpu_workers
        if not 0 <= fewest <= most or most < 1:
            raise UserError(
                f"got cpu workers {fewest}:{most}; give the smallest and the largest number, as in 0:16, the largest "
                "at least 1"
            )


def rented_slice(text: str, slices: int = 1) -> Topology:
    """The topology of a text such as `v5e:16x16`. Raises UserError for a slice that Kubernetes Engine lacks."""
    place = parse_topology(text, slices)
    shape = text.partition(":")[2]
    chip = place.chip
    rising = all(side % 4 == 0 for side in place.shape) and list(place.shape) == sorted(place.shape)
    if not (shape in chip.gke_topologies or (chip.dimensions == 3 and rising)):
        more = "" if chip.dimensions == 2 else ", and others of rising multiples of 4"
        raise UserError(
            f"got topology {shape}, which no {chip.name} slice has; there are {', '.join(chip.gke_topologies)}{more}"
        )
    return place


def kubernetes_objects(request: Request) -> list[dict[str, Any]]:
    """The objects, in the order in which they have to be created."""
    cluster = _cluster(request)
    labels = _labels(request)
    if request.kind == "RayCluster":
        made: RayCluster | RayJob = RayCluster(
            name=request.name, namespace=request.namespace, labels=labels, spec=cluster
        )
    else:
        made = RayJob(
            name=request.name,
            namespace=request.namespace,
            labels=labels,
            spec=RayJobSpec(
                entrypoint=request.entrypoint,
                ttl_seconds_after_finished=request.keep_seconds,
                active_deadline_seconds=request.deadline_hours * 3600,
                backoff_limit=request.retries,
                submitter_pod_template=_pod(request, "submitter", {"cpu": "1", "memory": "2Gi"}, spot=False),
                ray_cluster_spec=cluster,
            ),
        )
    return [_service_account(request), _network_policy(request), made.to_object()]


def _cluster(request: Request) -> RayClusterSpec:
    fewest, most = request.cpu_workers
    groups = [
        WorkerGroupSpec(
            group_name="cpu",
            replicas=fewest,
            min_replicas=fewest,
            max_replicas=most,
            ray_start_params={"num-cpus": str(request.cpus)},
            template=_pod(
                request, "worker", {"cpu": str(request.cpus), "memory": f"{4 * request.cpus}Gi"}, spot=request.spot
            ),
        )
    ]
    if request.topology is not None:
        place = request.topology
        groups.append(
            WorkerGroupSpec(
                group_name="tpu",
                replicas=place.slices,
                min_replicas=place.slices,
                max_replicas=place.slices,  # a part of a slice is useless, so there is nothing to scale
                num_of_hosts=place.hosts // place.slices,
                ray_start_params={},
                template=_tpu_pod(request, place),
            )
        )
    return RayClusterSpec(
        ray_version=request.ray_version,
        auth_options=AuthOptions(secret_name=request.token_secret),
        enable_in_tree_autoscaling=True,
        autoscaler_options=AutoscalerOptions(),
        head_group_spec=HeadGroupSpec(
            ray_start_params={"num-cpus": "0", "dashboard-host": "0.0.0.0"},  # in the pod, behind the NetworkPolicy
            template=_pod(request, "head", {"cpu": "4", "memory": f"{request.head_gigabytes}Gi"}, spot=False),
        ),
        worker_group_specs=tuple(groups),
    )


def _tpu_pod(request: Request, place: Topology) -> dict[str, Any]:
    machine = place.chip.machine
    cpus, gigabytes = (int(HOST_SHARE * amount) for amount in (machine.vcpus, machine.gigabytes))
    chips = min(place.chip.chips_per_host, place.chips_per_slice)
    resources = {"cpu": str(cpus), "memory": f"{gigabytes}G", "google.com/tpu": str(chips)}
    pod = _pod(request, "worker", resources, spot=request.spot)
    pod["spec"]["nodeSelector"] |= {
        "cloud.google.com/gke-tpu-accelerator": place.chip.gke_accelerator,
        "cloud.google.com/gke-tpu-topology": "x".join(map(str, place.shape)),
    }
    pod["spec"]["tolerations"].append({"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"})
    pod["spec"]["containers"][0]["env"].append({"name": "PJRT_DEVICE", "value": "TPU"})
    return pod


def _pod(request: Request, role: str, resources: Mapping[str, str], *, spot: bool) -> dict[str, Any]:
    """A pod template without root, capabilities and keys, with room for Ray's sockets and objects."""
    container: dict[str, Any] = {
        "name": f"ray-{role}",
        "image": request.image,
        "imagePullPolicy": "IfNotPresent",
        "env": [
            {"name": "RAY_AUTH_MODE", "value": "token"},
            {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
            {"name": "CI", "value": "true"},  # logs instead of bars
        ],
        "resources": {"requests": dict(resources), "limits": dict(resources)},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "objects", "mountPath": "/dev/shm"}],
    }
    if role != "submitter":
        container["lifecycle"] = {"preStop": {"exec": {"command": ["ray", "stop"]}}}
        container |= _probes(role)
    if role == "head":
        container["ports"] = [{"name": name, "containerPort": port} for name, port in PORTS.items()]
    return {
        "metadata": {"labels": _labels(request)},
        "spec": {
            "serviceAccountName": request.name,
            "automountServiceAccountToken": role == "head",  # the autoscaler on it asks Kubernetes for pods
            "restartPolicy": "Never",  # the autoscaler v2 replaces a dead pod; a Job retries its own pod
            "terminationGracePeriodSeconds": GRACE_SECONDS,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "nodeSelector": {"cloud.google.com/gke-spot": "true"} if spot else {},
            "tolerations": [
                {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
            ]
            if spot
            else [],
            "containers": [container],
            "volumes": [
                {"name": "tmp", "emptyDir": {}},
                {"name": "objects", "emptyDir": {"medium": "Memory"}},
            ],
        },
    }


def _probes(role: str) -> dict[str, Any]:
    """Probes of the raylet on every node, and of the store of state on the head node."""
    state, raylet = ({"httpGet": {"path": path, "port": port}} for path, port in HEALTH_PAGES.items())
    alive = {**(state if role == "head" else raylet), "periodSeconds": 10, "timeoutSeconds": 5}
    return {
        "startupProbe": {**raylet, "periodSeconds": 5, "failureThreshold": 60},
        "readinessProbe": {**alive, "failureThreshold": 3},
        "livenessProbe": {**alive, "failureThreshold": 12},
    }


def _labels(request: Request) -> dict[str, str]:
    return {"app.kubernetes.io/part-of": PART_OF, "app.kubernetes.io/instance": request.name}


def _service_account(request: Request) -> dict[str, Any]:
    whom = request.google_service_account
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {
            "name": request.name,
            "namespace": request.namespace,
            "labels": _labels(request),
            "annotations": {"iam.gke.io/gcp-service-account": whom} if whom else {},
        },
    }


def _network_policy(request: Request) -> dict[str, Any]:
    """Limits the connections of the pods.

    Incoming: from the job's own pods, from the operator to the dashboard, and from Prometheus to the metrics.
    Outgoing: to the job's own pods, to DNS, to the metadata server, and by HTTPS.
    """
    own = {"podSelector": {"matchLabels": _labels(request)}}
    operator = {
        "namespaceSelector": {},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
    }
    scrapers = {
        "namespaceSelector": {
            "matchExpressions": [
                {"key": "kubernetes.io/metadata.name", "operator": "In", "values": list(SCRAPING_NAMESPACES)}
            ]
        }
    }
    metadata = [{"ipBlock": {"cidr": f"169.254.169.{last}/32"}} for last in (252, 254)]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": request.name, "namespace": request.namespace, "labels": _labels(request)},
        "spec": {
            "podSelector": {"matchLabels": _labels(request)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"from": [own]},
                {"from": [operator], "ports": [{"port": PORTS["dashboard"], "protocol": "TCP"}]},
                {"from": [scrapers], "ports": [{"port": PORTS["metrics"], "protocol": "TCP"}]},
            ],
            "egress": [
                {"to": [own]},
                {"ports": [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]},
                {"to": metadata, "ports": [{"port": port, "protocol": "TCP"} for port in (80, 987, 988, 8080)]},
                {"ports": [{"port": 443, "protocol": "TCP"}]},
            ],
        },
    }
