"""Errors that are meant for the person at the keyboard."""


class UserError(RuntimeError):
    """Something the user can mend: the message names the file or key, what was expected and what to do.

    Entry points print the message alone (no traceback) and exit with status 1.
    """


# Exit statuses of a process that trains together with others.
LOST_PEER = 76  # it ended since another one did: the error of the other one is the one to read
HUNG = 75  # nothing moved for too long
