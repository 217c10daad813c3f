"""One Ray session for a whole run: embedded on this machine, or the cluster that the job was submitted to.

An embedded Ray listens only on 127.0.0.1 and asks for a token, which is made for this process and never written to
disk. It has its own temporary directory, closed to other users (infra/own_folder.py). It ends with the driver: on
Linux, Ray's processes end with their parent. The start takes seconds, so the session starts with the first stage that
has work.
"""

import functools
import ipaddress
import logging
import os
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from infra import ray_private
from infra.errors import StoppedError, UserError
from infra.own_folder import OwnFolder
from infra.warm_process import WarmProcess

logger = logging.getLogger(__name__)

REPOSITORY = Path(__file__).resolve().parent.parent
OBJECT_STORE_BYTES = 256 * 2**20
TPU_SLICE_NAME = "ray.io/tpu-slice-name"
"""label of a node that is a host of a TPU slice; its value names the slice"""
NO_ADDRESS = ("", "auto", "local")
"""values of RAY_ADDRESS that name no host"""
CLIENT_PORT = 10001
"""port of Ray's client, if ray://HOST names none"""
PROBE_SECONDS = 5.0
START_SECONDS = 240.0
"""longest start of an embedded Ray, in seconds"""
CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
"""call to a cluster that takes an empty message and changes nothing"""
PASSING = ("HttpError", "OSError", "TimeoutError", "ConnectionError", "ServerDisconnectedError")
"""errors of busy storage, after which a task is tried again (Ray Data retries AWS errors by itself)"""
PAUSES = (1.0, 2.0, 4.0, None)
"""seconds to wait after each try of a task in the warm process; None: the last try"""
QUIET_LOGGERS = ("ray", "ray.data", "ray.train", "ray.tune")


def in_submitted_job() -> bool:
    """Whether this process is the entrypoint of `ray job submit` (Ray gives such a process the config of its job)."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def on_cluster() -> bool:
    """Whether a session of this process joins a cluster; False: it embeds a Ray on this machine."""
    return in_submitted_job() or os.environ.get("RAY_ADDRESS", "") not in ("", "local")


def refuse_open_cluster(environment: Mapping[str, str]) -> None:
    """Raises UserError if other machines can reach the cluster in RAY_ADDRESS and no token is in use.

    RaySession resolves `auto` to a cluster later, and then checks that cluster.
    """
    address = environment.get("RAY_ADDRESS", "")
    if address not in NO_ADDRESS:
        refuse_open_host(host_and_port(address)[0], address, environment)


def refuse_open_host(host: str, address: str, environment: Mapping[str, str]) -> None:
    """Raises UserError if `host` is reached over the network and no token is in use.

    Anyone who reaches the ports of such a cluster can run code on it as the user.
    """
    if environment.get("RAY_AUTH_MODE", "").lower() == "token" or _is_loopback(host):
        return
    raise UserError(
        f"the cluster at {address} is reached over the network and no token is in use "
        "(RAY_AUTH_MODE is not 'token'): anyone there could run code as you; start it with RAY_AUTH_MODE=token and set "
        "the same here, with the token in RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
    )


def host_and_port(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT or ray://HOST[:PORT]. Raises UserError for any other address."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        port = parts.port or (CLIENT_PORT if parts.scheme == "ray" else None)
        if parts.scheme in ("", "ray") and parts.hostname and port:
            return parts.hostname, port
    except ValueError:  # a port that is not a number, or a bracket that is not closed
        pass
    raise UserError(f"RAY_ADDRESS is {address!r}; give HOST:PORT, ray://HOST:PORT or auto, or unset it to run here")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, which others resolve
        return host == "localhost"


def _refuse_silence(address: str) -> None:
    """Raises UserError if nothing listens at the address. Ray itself would retry for minutes."""
    try:
        socket.create_connection(host_and_port(address), timeout=PROBE_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"no cluster answers at {address} ({error.strerror or error}); set RAY_ADDRESS to the HOST:PORT of a "
            "running cluster, or unset it to start a Ray here"
        ) from error


def _refuse_at_the_door(address: str, environment: Mapping[str, str]) -> None:
    """Asks the cluster whether it is alive, without a token and with ours.

    Ray itself would hang if it sends a token that the cluster does not ask for, and retries a wrong token for 20 s.
    Raises UserError if a token is in use here but the cluster asks for none, AuthenticationError if it refuses us.
    Nothing is asked on the port of Ray's client, which has other calls, or with TLS, whose certificates keep others
    out.
    """
    if "://" in address or environment.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return
    from ray.exceptions import AuthenticationError

    if environment.get("RAY_AUTH_MODE", "").lower() == "token" and _lets_in(address, {}):
        raise UserError(
            f"the cluster at {address} asks for no token: anyone who reaches it could run code as you; start it with "
            "RAY_AUTH_MODE=token, as here, or unset RAY_ADDRESS to run here"
        )
    if _lets_in(address, ray_private.get_auth_headers_if_auth_enabled({})) is False:
        raise AuthenticationError("refused")


def _lets_in(address: str, headers: Mapping[str, str]) -> bool | None:
    """Whether the cluster accepts a call with these headers; None if it cannot be found out."""
    import grpc

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(CHECK_ALIVE)(b"", timeout=PROBE_SECONDS, metadata=list(headers.items()))
        except grpc.RpcError as error:
            return False if error.code() is grpc.StatusCode.UNAUTHENTICATED else None
    return True


def protect_token_file(environment: Mapping[str, str]) -> None:
    """Makes the user's token file unreadable for others: `ray get-auth-token --generate` lets all users read it."""
    default = Path(environment.get("HOME", "/nowhere"), ".ray", "auth_token")
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or default)
    with suppress(FileNotFoundError):
        if path.stat().st_uid == os.getuid() and path.stat().st_mode & 0o077:
            path.chmod(0o600)


class RaySession:
    """Starts Ray once, on first use. `close()` ends only what this session has started."""

    def __init__(self, cpus: int | None = None) -> None:
        self.cpus = cpus
        self.started_seconds: float | None = None
        self._folder: OwnFolder | None = None
        self._warm: WarmProcess | None = None

    def start(self) -> None:
        """Connects to the job's cluster (by RAY_ADDRESS, or inside a submitted job). Otherwise embeds a Ray here.

        Raises UserError for a cluster that does not answer, refuses the token, or asks for none.
        """
        if self.started_seconds is not None:
            return
        began = time.monotonic()
        os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")  # stages have bars of their own
        if on_cluster():
            refuse_open_cluster(os.environ)
            protect_token_file(os.environ)
            import ray

            address = ray_private.get_ray_address_from_environment("auto", None)
            refuse_open_cluster({**os.environ, "RAY_ADDRESS": address})
            _refuse_silence(address)
            try:
                _refuse_at_the_door(address, os.environ)
                ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
            except ray.exceptions.AuthenticationError as error:
                raise UserError(
                    f"the cluster at {address} refuses this process; set RAY_AUTH_MODE=token and "
                    "RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the cluster's token, or unset RAY_ADDRESS to run here"
                ) from error
        else:
            self._start_embedded()
        _quiet_ray_data()
        self.started_seconds = time.monotonic() - began

    def _start_embedded(self) -> None:
        os.environ.update(
            RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # makes Ray choose 127.0.0.1 for every server
            RAY_AUTH_MODE="token",
            RAY_AUTH_TOKEN=own_token(),
            RAY_USAGE_STATS_ENABLED="0",
            RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
            PYTHONPATH=os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]),
        )
        import ray

        self._folder = OwnFolder()
        with ray_private.without_servers(), ray_private.patient_start(START_SECONDS):
            try:
                ray.init(
                    address="local",
                    num_cpus=self.cpus or os.cpu_count(),
                    object_store_memory=OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    logging_level=logging.WARNING,
                    log_to_driver=False,
                    _temp_dir=self._folder.inner,  # Ray gives it mode 0777: the folder above keeps others out
                )
            except Exception as error:
                if "timed out during startup" not in str(error):
                    raise
                raise StoppedError(
                    f"got no Ray on this machine in {START_SECONDS:.0f} s: its load is {os.getloadavg()[0]:.0f} on "
                    f"{os.cpu_count()} CPUs; end other work or wait, then run the same line again"
                ) from error

    def has_tpu(self) -> bool:
        """Whether a node of the cluster has TPU chips. Joins the cluster. False for a Ray on this machine."""
        if not on_cluster():
            return False
        import ray

        self.start()
        return "TPU" in ray.cluster_resources()

    def warm_process(self) -> WarmProcess | None:
        """The process that tasks with a model share. None on a cluster, and with a TPU, which takes one process."""
        import ray

        if self._folder is None or "TPU" in ray.cluster_resources():
            return None
        if self._warm is None:
            threads = os.environ.get("OMP_NUM_THREADS", "")
            self._warm = WarmProcess(int(threads) if threads.isdigit() else self.cpus or os.cpu_count() or 1)
        return self._warm

    def map(
        self,
        tasks: Mapping[int, Any],
        work: Callable[[int, Any], dict[str, Any]],
        *,
        whole_node: bool = False,
        mesh: str = "",
    ) -> Iterator[dict[str, Any]]:
        """The results of `work(number, task)` for every task on a Ray worker, with the `node`, as they finish.

        A task is a Ray Data block and travels with its block; `work` travels once. With `whole_node`, a task has its
        node to itself, as `node_share` says, or runs in the warm process if there is one. `mesh` divides the chips of
        the node.
        """
        import ray

        if whole_node and (process := self.warm_process()) is not None:
            node = ray.get_runtime_context().get_node_id()
            for number, task in tasks.items():
                yield {**_tried(process, work, number, task, mesh), "node": node}
            process.forget()
            return
        rows = [{"number": number, "task": ray.cloudpickle.dumps(task)} for number, task in tasks.items()]
        calls = ray.data.from_items(rows, override_num_blocks=len(rows))
        share = node_share(ray.nodes()) if whole_node else {"num_cpus": 1}
        yield from calls.map(_Call(work), **share).iter_rows()

    def close(self) -> None:
        self._warm = None
        if self.started_seconds is not None:
            import ray

            ray.shutdown()
            self.started_seconds = None
        if self._folder is not None:
            self._folder.remove()
            self._folder = None


def node_share(nodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Resources that give a task with a model a node to itself (`nodes` as returned by ray.nodes()).

    They are all chips of a TPU host, if the cluster has one. Otherwise they are all CPUs of the smallest node with
    CPUs, or one CPU if there is no node yet. Raises UserError for a slice of several hosts: such a task is one process.
    """
    alive = [node for node in nodes if node["Alive"]]
    hosts = [node for node in alive if node["Resources"].get("TPU")]
    slices = Counter(node.get("Labels", {}).get(TPU_SLICE_NAME) for node in hosts)
    if several := sorted(name for name, count in slices.items() if name is not None and count > 1):
        raise UserError(
            f"the slice {several[0]} has {slices[several[0]]} hosts, and this stage computes in one process; use a "
            "slice of one host, such as v5e:2x2"
        )
    if hosts:
        return {"num_cpus": 1, "resources": {"TPU": min(node["Resources"]["TPU"] for node in hosts)}}
    return {"num_cpus": min((node["Resources"]["CPU"] for node in alive if node["Resources"].get("CPU")), default=1.0)}


@functools.cache
def own_token() -> str:
    """The token of this process. Ray keeps the first token that it reads, so a second Ray here needs the same one."""
    return secrets.token_hex(32)


def _tried(
    process: WarmProcess, work: Callable[[int, Any], dict[str, Any]], number: int, task: Any, mesh: str
) -> dict[str, Any]:
    """The result of a task, tried again as Ray Data does if the process died or storage was busy."""
    import ray

    for seconds in PAUSES:
        try:
            made: dict[str, Any] = process.run(work, number, task, kind=mesh)
            return made
        except ray.exceptions.RayError as error:
            died = not isinstance(error, ray.exceptions.RayTaskError)
            problem = "its process died" if died else _last_line(error)
            if not (died or isinstance(error, OSError) or any(name in str(error) for name in PASSING)):
                raise
            if seconds is None:
                raise StoppedError(
                    f"task {number} was tried {len(PAUSES)} times: {problem}; run the same line again: finished work "
                    "is kept"
                ) from error
            logger.warning("task %d: %s; the task is run again", number, problem)
            time.sleep(seconds)
    raise AssertionError("the last try returns or raises")


def _last_line(error: Exception) -> str:
    return str(error).strip().rpartition("\n")[2]


class _Call:
    """From the row of a task to the result of the work, with the id of the node."""

    def __init__(self, work: Callable[[int, Any], dict[str, Any]]) -> None:
        self.work = work

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        from ray import cloudpickle, get_runtime_context

        made = self.work(int(row["number"]), cloudpickle.loads(row["task"]))
        return {**made, "node": get_runtime_context().get_node_id()}


def _quiet_ray_data() -> None:
    import ray.data  # configures its own logging when imported

    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    # it warns that its bars are off, which is intended
    logging.getLogger(ray_private.PROGRESS_LOGGER).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.retried_io_errors = [*context.retried_io_errors, *PASSING]
    context.retried_map_errors = list(PASSING)
    context.max_map_retries = 3
