"""The exceptions of this package: mistakes of the user, and failures of the surroundings."""


class UserError(ValueError):
    """A mistake of the user. The message says what was got, what is allowed and what to do next.

    The command line prints only the message, and exits with `exit_code`. Each package has its own class, because
    packages may not import each other freely; `pipelines` recognizes all of them by this attribute.
    """

    exit_code = 2


class StoppedError(Exception):
    """A failure that is not the user's, such as storage that stays out of reach or a process that dies each time."""

    exit_code = 1
