"""Errors that end a run with one line: a mistake of the user, or an event outside of the run."""


class UserError(ValueError):
    """A mistake in the user's input: the message names what was got, what is allowed and what to do next.

    The command line prints the message alone and ends with `exit_code`. Each package has a class of its own, because
    packages may not import each other freely; `pipelines` knows all of them by this attribute.
    """

    exit_code = 2


class StoppedError(RuntimeError):
    """The run ended early through no mistake of ours or of the user: the message gives the reason and what to do next.

    Examples are a lost lease, a second writer, broken hardware, a loss that is not finite, and too many lost machines.
    """

    exit_code = 1
