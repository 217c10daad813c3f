"""KubeRay's RayJob and RayCluster (ray.io/v1) as dataclasses, with only the fields that we write.

Names and types are those of the public CRD reference (ray-project/kuberay, ray-operator/apis/ray/v1/raycluster_types.go
and rayjob_types.go, v1.6.0, the first version with `authOptions.secretName`). The checks are those by which the
operator refuses an object (controllers/ray/utils/validation.go: ValidateRayClusterSpec, ValidateRayJobSpec), for the
fields that we write. Pod templates are plain Kubernetes objects, which the tests check against Kubernetes' own schemas.

    RayJob(...).to_object() -> dict for YAML          read_object(dict) -> RayJob | RayCluster, or UserError
"""

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from infra.errors import UserError

API_VERSION = "ray.io/v1"
NAME = re.compile(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?")
"""label of DNS of at most 47 characters, KubeRay's limit for a RayJob, to whose name the operator appends"""
TOKEN_SINCE = (2, 52, 0)
"""first version of Ray with which the operator accepts authOptions.mode `token`"""
OPERATOR_ENV = ("RAY_enable_autoscaler_v2", "RAY_REDIS_ADDRESS", "REDIS_USERNAME")
"""variables of the head node that the operator refuses, because fields of the spec replace them"""
OPERATOR_PARAMS = ("labels", "redis-username")
"""parameters of `ray start` that the operator refuses for the same reason"""


@dataclass(frozen=True, kw_only=True)
class AuthOptions:
    """Authentication of the cluster's clients."""

    mode: Literal["token"] = "token"
    """way of authentication; KubeRay's other mode, `disabled`, is an open cluster, which we do not start"""
    secret_name: str
    """name of the Secret that holds the token as `auth_token`"""


@dataclass(frozen=True, kw_only=True)
class AutoscalerOptions:
    """How the CPU groups grow and shrink."""

    idle_timeout_seconds: int = 60
    upscaling_mode: Literal["Default", "Aggressive", "Conservative"] = "Default"
    version: Literal["v1", "v2"] = "v2"

    def __post_init__(self) -> None:
        if self.idle_timeout_seconds < 0:
            raise UserError(
                f"idleTimeoutSeconds is {self.idle_timeout_seconds}, but must not be negative; set it to 0 or more"
            )


@dataclass(frozen=True, kw_only=True)
class HeadGroupSpec:
    """The head node, which schedules and does not compute."""

    ray_start_params: Mapping[str, str]
    template: Mapping[str, Any]
    service_type: Literal["ClusterIP"] = "ClusterIP"


@dataclass(frozen=True, kw_only=True)
class WorkerGroupSpec:
    """Replicas of `num_of_hosts` pods each. For TPUs, a replica is a slice."""

    group_name: str
    replicas: int
    min_replicas: int
    max_replicas: int
    num_of_hosts: int = 1
    ray_start_params: Mapping[str, str]
    template: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.replicas <= self.max_replicas:
            raise UserError(
                f"group {self.group_name}: replicas is {self.replicas}, but must be from minReplicas "
                f"({self.min_replicas}) to maxReplicas ({self.max_replicas}); change one of the three"
            )
        if self.num_of_hosts < 1:
            raise UserError(
                f"group {self.group_name}: numOfHosts is {self.num_of_hosts}, but must be at least 1; set 1 or more"
            )


@dataclass(frozen=True, kw_only=True)
class RayClusterSpec:
    """A cluster of a head node and groups of workers."""

    ray_version: str
    auth_options: AuthOptions
    enable_in_tree_autoscaling: bool = False
    autoscaler_options: AutoscalerOptions | None = None
    head_group_spec: HeadGroupSpec
    worker_group_specs: tuple[WorkerGroupSpec, ...]

    def __post_init__(self) -> None:
        if self.autoscaler_options is not None and not self.enable_in_tree_autoscaling:
            raise UserError("autoscalerOptions without enableInTreeAutoscaling does nothing; set both or neither")
        # Like the operator, this compares only the numbers in front, not a suffix such as -dev.
        version = re.match(r"(\d+)\.(\d+)\.(\d+)", self.ray_version)
        if version is None or tuple(map(int, version.groups())) < TOKEN_SINCE:
            since = ".".join(map(str, TOKEN_SINCE))
            raise UserError(
                f"rayVersion is {self.ray_version!r}, but authOptions.mode token needs {since} or later; upgrade Ray"
            )
        self._check_group("head", self.head_group_spec)
        for group in self.worker_group_specs:
            self._check_group(group.group_name, group)

    def _check_group(self, where: str, group: HeadGroupSpec | WorkerGroupSpec) -> None:
        pod = group.template.get("spec", {})
        containers = pod.get("containers", [])
        if not containers:
            raise UserError(f"group {where}: its pods have no container; add one")
        if refused := [name for name in OPERATOR_PARAMS if name in group.ray_start_params]:
            raise UserError(
                f"group {where}: rayStartParams has {refused[0]!r}, which the operator refuses; leave it out"
            )
        names = {variable["name"] for variable in containers[0].get("env", ())}
        if where == "head" and (refused := [name for name in OPERATOR_ENV if name in names]):
            raise UserError(f"group head: its container sets {refused[0]}, which the operator refuses; leave it out")
        second = self.autoscaler_options is not None and self.autoscaler_options.version == "v2"
        if second and pod.get("restartPolicy", "Never") != "Never":  # a dead node is replaced, never restarted
            raise UserError(
                f"group {where}: restartPolicy is {pod['restartPolicy']}, but the autoscaler v2 allows only Never; set "
                "it to Never"
            )


@dataclass(frozen=True, kw_only=True)
class RayJobSpec:
    """One command on a cluster of its own, which ends with the command."""

    entrypoint: str
    submission_mode: Literal["K8sJobMode"] = "K8sJobMode"
    """way of submission, by a pod of its own; SidecarMode takes no template for that pod, and HTTPMode has none"""
    shutdown_after_job_finishes: bool = True
    ttl_seconds_after_finished: int
    active_deadline_seconds: int
    backoff_limit: int = 0
    """number of new clusters that may follow a failed one"""
    submitter_pod_template: Mapping[str, Any]
    ray_cluster_spec: RayClusterSpec

    def __post_init__(self) -> None:
        if self.ttl_seconds_after_finished and not self.shutdown_after_job_finishes:
            raise UserError(
                f"ttlSecondsAfterFinished is {self.ttl_seconds_after_finished}, but works only with "
                "shutdownAfterJobFinishes; set both or neither"
            )
        if self.active_deadline_seconds < 1:
            raise UserError(
                f"activeDeadlineSeconds is {self.active_deadline_seconds}, but must be positive; set 1 or more"
            )
        if self.ttl_seconds_after_finished < 0:
            raise UserError(
                f"ttlSecondsAfterFinished is {self.ttl_seconds_after_finished}, but must not be negative; set 0 or more"
            )
        if self.backoff_limit < 0:
            raise UserError(f"backoffLimit is {self.backoff_limit}, but must not be negative; set 0 or more")


@dataclass(frozen=True, kw_only=True)
class _Resource:
    name: str
    namespace: str
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UserError(
                f"got the name {self.name!r} for a {type(self).__name__}; it has at most 47 of a-z, 0-9 and -, with a "
                "letter first: choose another"
            )

    def to_object(self) -> dict[str, Any]:
        """The object as Kubernetes takes it."""
        return {
            "apiVersion": API_VERSION,
            "kind": type(self).__name__,
            "metadata": {"name": self.name, "namespace": self.namespace, "labels": dict(self.labels)},
            "spec": _written(getattr(self, "spec")),  # noqa: B009 - each kind has its own
        }


@dataclass(frozen=True, kw_only=True)
class RayJob(_Resource):
    """A short-lived cluster for one stage."""

    spec: RayJobSpec


@dataclass(frozen=True, kw_only=True)
class RayCluster(_Resource):
    """A cluster that jobs are submitted to."""

    spec: RayClusterSpec


def read_object(document: Mapping[str, Any]) -> RayJob | RayCluster:
    """A Kubernetes document as its typed object.

    Raises UserError for another kind, and for a field that is unknown, missing or of another type.
    """
    kinds = {"RayJob": (RayJob, RayJobSpec), "RayCluster": (RayCluster, RayClusterSpec)}
    if document.get("apiVersion") != API_VERSION or document.get("kind") not in kinds:
        raise UserError(
            f"got {document.get('apiVersion')} {document.get('kind')}; give a {' or '.join(kinds)} of {API_VERSION}"
        )
    kind, spec = kinds[document["kind"]]
    metadata = document["metadata"]
    return kind(
        name=metadata["name"],
        namespace=metadata["namespace"],
        labels=metadata.get("labels", {}),
        spec=_read(spec, document["spec"], "spec"),
    )


def _written(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        fields = {_camel(attribute.name): getattr(value, attribute.name) for attribute in dataclasses.fields(value)}
        return {name: _written(entry) for name, entry in fields.items() if entry is not None}
    if isinstance(value, tuple):
        return [_written(entry) for entry in value]
    return dict(value) if isinstance(value, Mapping) else value


def _read(kind: Any, value: Any, where: str) -> Any:
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        names = {_camel(attribute.name): attribute for attribute in dataclasses.fields(kind)}
        if unknown := sorted(set(value) - set(names)):
            raise UserError(
                f"got {where}.{unknown[0]}, but {kind.__name__} has no such field; it has {', '.join(names)}"
            )
        needed = [
            key
            for key, attribute in names.items()
            if attribute.default is dataclasses.MISSING and attribute.default_factory is dataclasses.MISSING
        ]
        if missing := [key for key in needed if key not in value]:
            raise UserError(f"{where}.{missing[0]} is missing; add it")
        read = {names[key].name: _read(hints[names[key].name], entry, f"{where}.{key}") for key, entry in value.items()}
        return kind(**read)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        fits = value in arguments
    elif origin is tuple:
        return tuple(_read(arguments[0], entry, f"{where}[{number}]") for number, entry in enumerate(value))
    elif origin is Mapping or kind is Mapping or origin is not None:
        fits = isinstance(value, Mapping)
    else:
        fits = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    if not fits:
        raise UserError(f"{where} is {value!r}; allowed: {arguments or kind}")
    return value


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
