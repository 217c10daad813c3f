"""python -m pipelines submit NAME --address http://HOST:8265 [--detach] [flags of `run NAME`]

One job on a running cluster: the line is checked here, this repository is packed as Ray packs it and measured, then the
job runs `python -m pipelines run NAME ...` there. Submitting the same line again finds it done, or goes on with it.
"""

import asyncio
import logging
import os
import shlex
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data import storage
from infra.ray_session import REPOSITORY
from pipelines import config as configs
from pipelines import recipes
from pipelines.arguments import parse_recipe, parse_stage, take
from pipelines.plan import size
from pipelines.stage import load_stage, stage_names

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
MOST_BYTES = 64 << 20
"""of the packed repository; it goes to every node. The code is about 1 MB, so more is data in the wrong place"""
LARGEST_NAMED = 5


def submit(words: Sequence[str]) -> int:
    """Submits and follows the job, or with `--detach` only tells its id. 0: it succeeded (or was handed over).

    Raises ValueError for a line that `run` would refuse, a root that means something else on the cluster, a cluster
    that does not answer or does not let us in, and a repository too large to ship.
    """
    rest, address = take(list(words), "--address")
    detach = "--detach" in rest
    rest = [word for word in rest if word != "--detach"]
    check_line(rest)
    address = address or os.environ.get(ADDRESS_VARIABLE)
    if not address:
        raise ValueError(f"submit needs --address http://HOST:8265 of the cluster's head, or {ADDRESS_VARIABLE}")
    shipped = check_size(REPOSITORY)
    logging.getLogger("ray").setLevel(logging.WARNING)
    entrypoint = shlex.join(["python", "-m", "pipelines", "run", *rest])
    client, job = _submitted(address, entrypoint)
    _say(f"job {job}: {entrypoint} ({size(shipped)} of code shipped)")
    _say(f"  follow  ray job logs {job} --address {address} --follow")
    _say(f"  stop    ray job stop {job} --address {address}")
    if detach:
        print(job)
        return 0
    asyncio.run(_follow(client, job))
    while not (status := client.get_job_status(job)).is_terminal():  # its log may end before it does
        time.sleep(1.0)
    _say(f"job {job}: {status.value}")
    return 0 if status.value == "SUCCEEDED" else 1


def check_line(words: Sequence[str]) -> None:
    """Raises ValueError where the cluster could not run this line, so that it is known before anything is shipped."""
    if not words or words[0].startswith("-"):
        raise ValueError(f"submit needs the name of a stage or recipe first: {', '.join(_names())}")
    name, *rest = words
    if name not in _names():
        raise ValueError(configs.no_such("stage or recipe", name, _names()))
    _, root = take(rest, "--root")
    if root is None or not (storage.is_remote(root) or os.path.isabs(root)):
        raise ValueError(
            f"--root is {root or 'not given'}; a job runs elsewhere: give gs://bucket/path, or an absolute path that "
            "every node sees"
        )
    if name in recipes.names():
        rest, only = take(rest, "--only")
        recipe = parse_recipe(recipes.load(name), rest).recipe
        recipe.chosen(only)
        if missing := recipe.not_given():
            raise ValueError(f"{name} needs {', '.join(missing)}; `plan {name}` shows what each step reads")
    else:
        parse_stage(load_stage(name), rest)


def check_size(repository: Path) -> int:
    """Bytes of the repository as Ray ships it. Raises ValueError, naming the largest files, over MOST_BYTES."""
    with tempfile.TemporaryDirectory() as folder:
        package = pack(repository, Path(folder))
        if package.stat().st_size > MOST_BYTES:
            with zipfile.ZipFile(package) as archive:
                entries = sorted(archive.infolist(), key=lambda one: -one.compress_size)[:LARGEST_NAMED]
            named = ", ".join(f"{one.filename} ({size(one.compress_size)})" for one in entries)
            raise ValueError(
                f"{repository} would ship {size(package.stat().st_size)}, allowed are {size(MOST_BYTES)}; the largest "
                f"are {named}: move them out, or name them in .rayignore"
            )
        return package.stat().st_size


def pack(repository: Path, folder: Path) -> Path:
    """The repository as Ray ships it: a zip file in `folder`, without what .gitignore and .rayignore name."""
    from ray._private.runtime_env.packaging import create_package

    target = folder / "working_dir.zip"
    quiet = logging.getLogger("pipelines.submit")  # Ray tells each ignore file that it obeys
    quiet.setLevel(logging.WARNING)
    create_package(str(repository), target, include_gitignore=True, logger=quiet)
    return target


def _submitted(address: str, entrypoint: str) -> tuple[Any, str]:
    """(client, id of the job)."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
        return client, client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": str(REPOSITORY)})
    except ConnectionError as error:
        raise ValueError(
            f"no cluster answers at {address}; start one (ray start --head), open a tunnel to one, or give its "
            "dashboard's --address"
        ) from error
    except AuthenticationError as error:
        raise ValueError(
            f"the cluster at {address} does not let us in; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or "
            "RAY_AUTH_TOKEN_PATH) to its token"
        ) from error


async def _follow(client: Any, job: str) -> None:
    async for text in client.tail_job_logs(job):
        sys.stderr.write(text)
        sys.stderr.flush()


def _names() -> list[str]:
    return [*recipes.names(), *stage_names()]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
