"""What ends a command in one line, and how the engine knows it: by the class attribute `exit_code`.

An exception whose class has the attribute is printed as its message alone, in the driver and out of workers alike.
Every other exception is a bug of ours: traceback, exit code 1.
"""

import errno
import os
import sys
import traceback
from collections.abc import Callable

from data import storage

FIRST_WORDS = {1: "failed", 2: "error", 130: "stopped"}
"""of the line that ends a command, by its exit code"""


class UserError(ValueError):
    """A mistake in what was given: its message says what was got, what is allowed and what to do next.

    The command line prints the message alone and ends with `exit_code`. Each package has a class of its own, because
    packages may not import each other freely; `pipelines` knows them all by this attribute.
    """

    exit_code = 2


class FailedError(Exception):
    """What happened to a worker from outside, such as a full disk, in the words of the worker's exception."""

    exit_code = 1


def exit_code(error: BaseException) -> int | None:
    """The exit code that the class of `error` declares; None for a bug of ours."""
    return getattr(type(error), "exit_code", None)


def raised_in_worker(code: int, message: str, worker_traceback: str) -> Exception:
    """The driver's exception for one that a worker raised, with its exit code (0: a bug), message and traceback."""
    worker_failed = f"a worker failed:\n{worker_traceback}"
    if code == 0:
        return RuntimeError(worker_failed)
    error = {2: UserError}.get(code, FailedError)(message)
    error.add_note(worker_failed)  # printed with the driver's traceback, which PIPELINES_TRACEBACK=1 asks for
    return error


def run_command(command: Callable[[], int]) -> int:
    """Runs a command line; returns its exit code. An error of the user or of the world is one line on stderr.

    PIPELINES_TRACEBACK=1 in the environment prints its traceback first. A bug of ours is raised.
    """
    try:
        return command()
    except BrokenPipeError:  # the reader of our output left
        return 1
    except KeyboardInterrupt as stop:
        print(
            f"stopped: {stop}" if str(stop) else "stopped; the same command goes on where this one was", file=sys.stderr
        )
        return 130
    except Exception as error:
        if (ending := _ending(error)) is None:
            raise
        if os.environ.get("PIPELINES_TRACEBACK") == "1":
            traceback.print_exc()
        code, message = ending
        print(f"{FIRST_WORDS[code]}: {message}", file=sys.stderr)
        return code


def _ending(error: Exception) -> tuple[int, str] | None:
    """The exit code and the line of an error of the user or of the world; None for a bug of ours."""
    if (code := exit_code(error)) is not None:
        return code, str(error)
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | PermissionError):
        return 2, f"{error}; check that the path exists and that you may use it"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return 2, f"{error}; give a path whose names are shorter"
    if isinstance(error, ConnectionError):
        return 1, f"{error}; is the cluster at RAY_ADDRESS up? unset it to run here"
    if (message := storage.what_failed(error)) is not None:
        return 1, message
    return None
