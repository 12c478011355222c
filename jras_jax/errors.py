"""Errors meant for users: what is wrong, in which file or config key, and what to do."""


class UserError(Exception):
    """A mistake in the user's data, config or command line; the programs print its text without a traceback."""


def printable(name: object) -> str:
    """A file's or a patient's name as it goes into a message: one line, whatever characters it is made of."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(name))
