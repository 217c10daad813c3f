"""Every private part of Ray that this project uses. To upgrade Ray, check this file and no other.

    MODULES             names of private classes, functions and modules -> their modules in Ray 2.60
    kv_get, kv_put ...  Ray's key-value store, which has no public client
    without_servers     starts an embedded Ray without the processes that it does not need
    patient_start       gives an embedded Ray more time to start on a busy machine

A name is imported at its first use, for two reasons. Ray checks at its import whether tokens are in use, so the import
must follow `RaySession.start`. A process that only reads the key-value store must not load Ray Train.
"""

import contextlib
import importlib
import time
from collections.abc import Iterator
from typing import Any

MODULES = {
    # Ray Train: our policies change those of Ray, and its trainer asks a dashboard that may not exist.
    "DefaultFailurePolicy": "ray.train.v2._internal.execution.failure_handling",
    "FailureDecision": "ray.train.v2._internal.execution.failure_handling",
    "ElasticScalingPolicy": "ray.train.v2._internal.execution.scaling_policy",
    "NoopDecision": "ray.train.v2._internal.execution.scaling_policy",
    "ResizeDecision": "ray.train.v2._internal.execution.scaling_policy",
    "PlacementGroupCleanerCallback": "ray.train.v2._internal.callbacks.placement_group_callback",
    "RayTrainError": "ray.train.v2._internal.exceptions",
    # Left behind by a dead controller: requests for nodes, and placement groups that the state API does not show.
    "get_or_create_autoscaling_coordinator": "ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator",
    "PlacementGroupTableData": "ray.core.generated.gcs_pb2",
    "state": "ray._private.state",
    # The address and the token with which Ray joins a cluster.
    "get_ray_address_from_environment": "ray._private.services",
    "get_auth_headers_if_auth_enabled": "ray._private.authentication.http_token_authentication",
    # Servers that `ray.init` starts beside the raylet and the store of state (`without_servers`).
    "Node": "ray._private.node",
    # Called by `ray.init` until its node exists (`patient_start`).
    "get_node": "ray._private.services",
    # The files of a working directory that Ray ships.
    "RAY_RUNTIME_ENV_IGNORE_GITIGNORE": "ray._private.ray_constants",
    "get_runtime_env_default_excludes": "ray._private.ray_constants",
    "_dir_travel": "ray._private.runtime_env.packaging",
    "_get_excludes": "ray._private.runtime_env.packaging",
}

PROGRESS_LOGGER = "ray.data._internal.progress"
"""logger of Ray Data's own progress bars"""
WORKING_DIR_LOGGER = "ray._private.runtime_env.working_dir"
"""logger of the shipping of a working directory"""


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__} has no attribute {name!r}")
    module = importlib.import_module(MODULES[name])
    return module if name == "state" else getattr(module, name)


@contextlib.contextmanager
def without_servers() -> Iterator[None]:
    """Inside this context, `ray.init` does not start the servers that an embedded Ray does not need.

    They are three processes: the autoscaler's monitor, the reader of logs, and the dashboard's server, which Ray starts
    even without the dashboard. `ray.init` has no option to leave them out.
    """
    node = __getattr__("Node")
    names = ("start_monitor", "start_log_monitor", "start_api_server")
    before = {name: getattr(node, name) for name in names}
    for name in names:
        setattr(node, name, _start_nothing)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(node, name, method)


@contextlib.contextmanager
def patient_start(seconds: float) -> Iterator[None]:
    """Inside this context, `ray.init` waits up to `seconds` for its node to start, instead of 30 s.

    A node has started when its agents have. They need about 10 s of CPU, which can take minutes on a busy machine.
    `ray.init` has no option for the time.
    """
    services: Any = importlib.import_module(MODULES["get_node"])
    get_node = services.get_node

    def asked_again(*words: Any) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            try:
                return get_node(*words)
            except RuntimeError:  # the node does not exist yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    services.get_node = asked_again
    try:
        yield
    finally:
        services.get_node = get_node


def _start_nothing(node: Any, **settings: Any) -> None:
    node._webui_url = ""  # no dashboard


def kv_get(key: bytes) -> bytes | None:
    """The value of a key; None if there is none."""
    value: bytes | None = _kv()._internal_kv_get(key)
    return value


def kv_put(key: bytes, value: bytes) -> None:
    _kv()._internal_kv_put(key, value)


def kv_delete(key: bytes) -> None:
    _kv()._internal_kv_del(key)


def kv_list(prefix: bytes) -> list[bytes]:
    """The keys that begin with `prefix`."""
    keys: list[bytes] = _kv()._internal_kv_list(prefix)
    return keys


def dashboard_url() -> str | None:
    """Address of the cluster's dashboard; None if the cluster has none."""
    import ray

    url: str | None = ray._private.worker.get_dashboard_url()
    return url


def _kv() -> Any:
    from ray.experimental import internal_kv

    return internal_kv
