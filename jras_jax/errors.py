"""Errors meant for users: what is wrong, in which file or config key, and what to do."""


class UserError(Exception):
    """A mistake in the user's data, config or command line; the programs print its text without a traceback."""
