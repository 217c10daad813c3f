"""What ends a command in one line, and how the engine knows it: by the class attribute `exit_code`.

An exception whose class has the attribute is printed as its message alone, in the driver and out of workers alike.
Every other exception is a bug of ours: traceback, exit code 1.
"""


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


def raised_in_worker(code: int, message: str, traceback: str) -> Exception:
    """The driver's exception for one that a worker raised, with its exit code (0: a bug), message and traceback."""
    worker_failed = f"a worker failed:\n{traceback}"
    if code == 0:
        return RuntimeError(worker_failed)
    error = {1: FailedError, 2: UserError}[code](message)
    error.add_note(worker_failed)  # printed with the driver's traceback, which PIPELINES_TRACEBACK=1 asks for
    return error
