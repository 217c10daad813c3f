"""What a user did wrong, as an exception of this package."""


class UserError(ValueError):
    """A mistake in what was given: its message says what was got, what is allowed and what to do next.

    The command line ends with `exit_code` and the message alone. Each package below `pipelines` has a class of its own,
    for none may import another's; the runner knows them all by this attribute.
    """

    exit_code = 2
