"""Errors meant for users: what is wrong, in which file or config key, and what to do."""


class UserError(Exception):
    """A mistake in the user's data, config or command line; the programs print its text without a traceback."""


class Stopped(Exception):
    """A run was asked to stop, has saved itself and ends; the programs print its text.

    Attributes:
      status: exit status of the program: 0 after SIGTERM, 130 after Ctrl-C.
    """

    def __init__(self, text: str, status: int):
        super().__init__(text)
        self.status = status
