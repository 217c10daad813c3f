"""python -m pipelines submit NAME --address http://HOST:8265 [--detach] [flags of `run NAME`]

Submits one job to a running cluster. The line is checked here, and the size of the files that Ray would ship is
measured. Then the job runs `python -m pipelines run NAME ...` on the cluster. The same line, submitted again, resumes
the run or finds it done.
"""

import asyncio
import logging
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from data import storage
from infra.ray_private import WORKING_DIR_LOGGER
from infra.ray_session import REPOSITORY, protect_token_file, refuse_open_host
from pipelines.cli.arguments import parse_run, parse_stage, refuse_missing
from pipelines.cli.words import take
from pipelines.engine import config as configs
from pipelines.engine.errors import UserError
from pipelines.engine.printed import one_line, print_line
from pipelines.engine.registry import stage_names
from pipelines.engine.stage import load_stage
from pipelines.engine.task import refuse_given
from pipelines.recipes import registry as recipes
from pipelines.report.words import size

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
MOST_BYTES = 64 << 20
"""largest size of the shipped files, in bytes. They go to every node. The code is a few MB, so more bytes are data in
the wrong place"""
LARGEST_NAMED = 5
PROBE_SECONDS = 30.0
"""longest wait for the answer to a request without a token, in seconds; a proxy before a head node may be slow"""


def submit(words: Sequence[str]) -> int:
    """Submits and follows the job, or with `--detach` only prints its id. Returns the job's exit code (detached: 0).

    Raises UserError for a line that `run` would refuse, a root that means something else on the cluster, a cluster
    that does not answer, refuses our token or asks for no token, and a repository that is too large to ship.
    """
    rest, address = take(list(words), "--address")
    detach = "--detach" in rest
    rest = [word for word in rest if word != "--detach"]
    check_line(rest)
    address = address or os.environ.get(ADDRESS_VARIABLE)
    if not address:
        raise UserError(
            f"got no --address; give --address http://HOST:8265 of the cluster's head node, or set {ADDRESS_VARIABLE}"
        )
    check_address(address, os.environ)
    shipped = check_size(REPOSITORY)
    protect_token_file(os.environ)
    logging.getLogger("ray").setLevel(logging.WARNING)
    logging.getLogger(WORKING_DIR_LOGGER).setLevel(logging.ERROR)  # it warns of files that it always leaves out
    entrypoint = shlex.join(["python", "-m", "pipelines", "run", *rest])
    client, job = _submitted(address, entrypoint)
    _say(f"job {job}: {entrypoint} ({size(shipped)} of code shipped)")
    _say_how(job, address)
    if detach:
        print_line(job)
        return 0
    return follow(client, job, address)


def follow(client: Any, job: str, address: str) -> int:
    """Writes the job's log to stderr as it comes. Returns the exit code of the job's line: 0 done, 1 failed, 2 wrong
    config or input, 130 stopped. If the job has none (killed, never begun) or the connection is lost, returns 1.

    Ctrl-C ends the following with 130 and does not stop the job.
    """
    import aiohttp

    try:
        asyncio.run(_log(client, job))
        while not (ended := client.get_job_info(job)).status.is_terminal():  # its log may end before it does
            time.sleep(1.0)
    except KeyboardInterrupt:
        _say(f"stopped following: job {job} runs on")
        _say_how(job, address)
        return 130
    except (OSError, RuntimeError, aiohttp.ClientError) as error:  # errors of requests are OSErrors
        _say(f"the connection to {address} was lost ({_first_line(error)}): job {job} runs on if its cluster does")
        _say_how(job, address)
        return 1
    never_begun = ended.status.value == "FAILED" and ended.driver_exit_code is None  # then the log is empty
    _say(f"job {job}: {ended.status.value}" + (f" ({_first_line(ended.message)})" if never_begun else ""))
    return exit_code(ended.status.value, ended.driver_exit_code)


def exit_code(status: str, driver: int | None) -> int:
    """The exit code of a job that ended: that of its line, unless a signal ended it; a failure is never 0."""
    if status == "SUCCEEDED":
        return 0
    return driver if driver is not None and driver > 0 else 1


def check_line(words: Sequence[str]) -> None:
    """Raises UserError if the cluster could not run this line, before anything is shipped."""
    if not words or words[0].startswith("-"):
        raise UserError(f"got no name after submit; give the name of a stage or recipe first: {', '.join(_names())}")
    name, *rest = words
    if name not in _names():
        raise UserError(configs.no_such("stage or recipe", name, _names()))
    _, root = take(rest, "--root")
    if root is None or storage.is_relative(root):
        raise UserError(
            f"got {f'--root {root}' if root else 'no --root'}; a job runs on other machines, so give gs://bucket/path, "
            "or an absolute path that every node sees"
        )
    if name in recipes.names():
        command, chosen = parse_run(recipes.load(name), rest)
        refuse_missing(command.recipe, chosen)
    else:
        wanted = parse_stage(load_stage(name), rest)
        refuse_given(wanted.stage, wanted.inputs)  # their names only: the files may be visible to the cluster alone


def check_address(address: str, environment: Mapping[str, str]) -> None:
    """Raises UserError if the address is no dashboard's, or is reached over the network without a token."""
    try:
        parts = urlsplit(address)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a bracket that is not closed
        known = False
    if not known:
        raise UserError(
            f"got --address {address!r}; give the dashboard of the cluster's head node as http://HOST:8265 or "
            "https://HOST"
        )
    refuse_open_host(parts.hostname or "", address, environment)


def check_size(repository: Path) -> int:
    """Bytes of the files that Ray would ship, without the files that .gitignore and .rayignore name; packs nothing.

    Ray's own settings count as for Ray: with RAY_RUNTIME_ENV_IGNORE_GITIGNORE=1 the files of .gitignore are shipped,
    too. Raises UserError, naming the largest files, for more than MOST_BYTES.
    """
    from infra.ray_private import (
        RAY_RUNTIME_ENV_IGNORE_GITIGNORE,
        _dir_travel,
        _get_excludes,
        get_runtime_env_default_excludes,
    )

    sizes: dict[str, int] = {}

    def measure(path: Path) -> None:
        if path.is_file():
            sizes[str(path.relative_to(repository))] = path.stat().st_size

    quiet = logging.getLogger("pipelines.cluster.submit")  # Ray logs each ignore file that it reads
    quiet.setLevel(logging.WARNING)
    obeyed = os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    left_out = _get_excludes(repository, get_runtime_env_default_excludes())
    _dir_travel(repository, [left_out], measure, include_gitignore=obeyed, logger=quiet)
    total = sum(sizes.values())
    if total > MOST_BYTES:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:LARGEST_NAMED]
        named = ", ".join(f"{name} ({size(sizes[name])})" for name in largest)
        raise UserError(
            f"got {size(total)} to ship of {repository}, allowed are {size(MOST_BYTES)}; the largest are {named}: "
            + ("" if obeyed else f"unset {RAY_RUNTIME_ENV_IGNORE_GITIGNORE}, ")
            + "move them out, or name them in .rayignore"
        )
    return total


def _submitted(address: str, entrypoint: str) -> tuple[Any, str]:
    """Submits the job; returns (client, id of the job)."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        if asks_for_token(address):
            client = _client(address)
            return client, client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": str(REPOSITORY)})
    except AuthenticationError as error:
        raise UserError(
            f"got a refusal from the cluster at {address}, which asks for a token; set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to its token"
        ) from error
    except (ConnectionError, requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
        raise UserError(
            f"no cluster answers at {address}; start a cluster (ray start --head), open a tunnel to it, or give the "
            "--address of its dashboard"
        ) from error
    except (RuntimeError, requests.exceptions.RequestException, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"got an answer at {address} that a Ray dashboard in order does not give ({_first_line(error)}); give the "
            "dashboard's --address, or look into the cluster's logs"
        ) from error
    raise UserError(
        f"got an answer at {address} that asks for no token: anyone who reaches the cluster could run code as you; "
        "start the cluster with RAY_AUTH_MODE=token, and set RAY_AUTH_MODE=token here too, with the cluster's token in "
        "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
    )


def asks_for_token(address: str) -> bool:
    """Whether the dashboard refuses a request without a token. The address does not show it, because every tunnel ends
    on loopback.

    Raises the errors of `requests`, and RuntimeError for an answer that no dashboard gives, with or without tokens.
    """
    import requests

    answer = requests.get(
        f"{address.rstrip('/')}/api/jobs/",
        auth=lambda request: request,  # without it, requests would take a password from ~/.netrc
        timeout=PROBE_SECONDS,
        allow_redirects=False,
    )
    if answer.status_code != requests.codes.unauthorized and (not answer.ok or answer.is_redirect):
        raise RuntimeError(f"status {answer.status_code} for a request without a token, instead of 401")
    return answer.status_code == requests.codes.unauthorized


def _client(address: str) -> Any:
    """Ray's client. It prefers RAY_API_SERVER_ADDRESS and RAY_ADDRESS to its argument, so the former is set for it."""
    from ray.job_submission import JobSubmissionClient

    before = os.environ.get(ADDRESS_VARIABLE)
    os.environ[ADDRESS_VARIABLE] = address
    try:
        return JobSubmissionClient(address)
    finally:
        del os.environ[ADDRESS_VARIABLE]
        if before is not None:
            os.environ[ADDRESS_VARIABLE] = before


async def _log(client: Any, job: str) -> None:
    async for text in client.tail_job_logs(job):
        sys.stderr.write(text)
        sys.stderr.flush()


def _say_how(job: str, address: str) -> None:
    _say(f"  follow  ray job logs {job} --address {address} --follow")
    _say(f"  stop    ray job stop {job} --address {address}")


def _first_line(error: BaseException | str) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _names() -> list[str]:
    return [*recipes.names(), *stage_names()]


def _say(text: str) -> None:
    print(one_line(text), file=sys.stderr, flush=True)
