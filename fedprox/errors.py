"""The one exception that means: the user can mend this."""


class UserError(ValueError):
    """A mistake in the settings or in the user's files, told in one line that says what to do.

    `fedprox.main` and `fedprox.report` print it without a traceback and exit with status 2.
    """
