"""Errors that end a command in one line. The engine recognizes them by the class attribute `exit_code`.

An exception whose class has the attribute is printed as its message alone, whether the driver or a worker raised it.
Every other exception is a bug of ours: traceback, exit code 1.
"""

import errno
import os
import sys
import traceback
from collections.abc import Callable

from data import storage
from pipelines.engine.printed import one_line, shown

FIRST_WORDS = {1: "failed", 2: "error", 130: "stopped"}
"""exit code -> first word of the line that ends a command"""
MOST_CHARACTERS = 4000
"""characters of a message that are printed at most; a path has up to 4,096 bytes"""


class UserError(ValueError):
    """A mistake of the user: the message names what was got, what is allowed and what to do next.

    The command line prints the message alone and ends with `exit_code`. Each package has a class of its own, because
    packages may not import each other freely; `pipelines` recognizes all these classes by this attribute.
    """

    exit_code = 2


class FailedError(Exception):
    """A failure of a worker's surroundings, such as a full disk, with the message of the worker's exception."""

    exit_code = 1


def exit_code(error: BaseException) -> int | None:
    """The exit code that the class of `error` declares; None for a bug of ours."""
    return getattr(type(error), "exit_code", None)


def raised_in_worker(code: int, message: str, worker_traceback: str) -> Exception:
    """The driver's exception for an exception of a worker with this exit code (0: a bug), message and traceback."""
    worker_failed = f"a worker failed:\n{worker_traceback}"
    if code == 0:
        return RuntimeError(worker_failed)
    error = {2: UserError}.get(code, FailedError)(message)
    error.add_note(worker_failed)  # printed with the driver's traceback, which PIPELINES_TRACEBACK=1 asks for
    return error


def run_command(command: Callable[[], int]) -> int:
    """Runs a command line; returns its exit code. A mistake of the user or a failure around the run is one line on
    stderr.

    PIPELINES_TRACEBACK=1 in the environment prints the error's traceback first. A bug of ours is raised.
    """
    with shown():
        return _run_command(command)


def _run_command(command: Callable[[], int]) -> int:
    try:
        return command()
    except BrokenPipeError:  # the reader of our output has ended
        return 1
    except KeyboardInterrupt as stop:
        message = str(stop) or "run the same command again to resume it"
        print(f"stopped: {one_line(message)}", file=sys.stderr)
        return 130
    except Exception as error:
        if (ending := _ending(error)) is None:
            raise
        if os.environ.get("PIPELINES_TRACEBACK") == "1":
            traceback.print_exc()
        code, message = ending
        print(f"{FIRST_WORDS[code]}: {one_line(_shortened(message))}", file=sys.stderr)
        return code


def _shortened(message: str) -> str:
    """The message without the middle of a very long one, which would hide what to do next."""
    if len(message) <= MOST_CHARACTERS:
        return message
    half = MOST_CHARACTERS // 2
    left_out = len(message) - 2 * half
    return f"{message[:half]} [{left_out:,} characters left out] {message[-half:]}"


def _ending(error: Exception) -> tuple[int, str] | None:
    """The exit code and the line of a mistake of the user or a failure around the run; None for a bug of ours."""
    if (code := exit_code(error)) is not None:
        return code, str(error)
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | PermissionError):
        return 2, f"{error}; check that the path exists and that you have access to it"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return 2, f"{error}; give a path with shorter names"
    if isinstance(error, ConnectionError):
        return 1, f"{error}; check that the cluster at RAY_ADDRESS is up, or unset RAY_ADDRESS to run on this machine"
    if (message := storage.what_failed(error)) is not None:
        return 1, message
    return None
