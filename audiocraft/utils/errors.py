"""Errors that are meant for the person at the keyboard."""


class UserError(RuntimeError):
    """Something the user can mend: the message names the file or key, what was expected and what to do.

    Entry points print the message alone (no traceback) and exit with status 1.
    """
