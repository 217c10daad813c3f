"""The exception of this package for mistakes of the user."""


class UserError(ValueError):
    """A mistake of the user. The message says what was got, what is allowed and what to do next.

    The command line prints only the message, and exits with `exit_code`. Each package has its own class, because
    packages may not import each other freely; `pipelines` recognizes all of them by this attribute.
    """

    exit_code = 2
