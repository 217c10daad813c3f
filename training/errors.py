"""What ends a run in one line: a mistake of the user, or what happened to the run from outside."""


class UserError(ValueError):
    """A mistake in what was given: its message says what was got, what is allowed and what to do next.

    The command line prints the message alone and ends with `exit_code`. Each package has a class of its own, because
    packages may not import each other freely; `pipelines` knows them all by this attribute.
    """

    exit_code = 2


class StoppedError(RuntimeError):
    """The run ended early, by no mistake of ours or of the user's: its message says why and what to do next.

    A lost lease, a second writer, broken hardware, a loss that is not finite, too many lost machines.
    """

    exit_code = 1
