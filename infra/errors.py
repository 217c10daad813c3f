"""What a user did wrong, and what the world did, as exceptions of this package."""


class UserError(ValueError):
    """A mistake in what was given: its message says what was got, what is allowed and what to do next.

    The command line prints the message alone and ends with `exit_code`. Each package has a class of its own, because
    packages may not import each other freely; `pipelines` knows them all by this attribute.
    """

    exit_code = 2


class StoppedError(Exception):
    """The world ended it, as a storage that stays out of reach or a process that dies each time."""

    exit_code = 1
