"""The side of the worker in `dora run -d`: no worker goes on without the process that started it."""

import ctypes
import os
import signal
import sys
import threading
import time

VARIABLE = 'AUDIOCRAFT_PARENT'
_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def follow_parent(grace: float = 60., poll: float = 1.) -> None:
    """Get SIGTERM when the process dies that AUDIOCRAFT_PARENT names; does nothing without that variable.

    SIGTERM leaves time to save. A process that cannot (it waits for others that are gone) ends with status 1 after
    `grace` seconds; `poll` is how often, in seconds, it looks. Raises `SystemExit` when the parent has gone already.
    """
    # Taken out of the environment: it does not hold for the processes that this one starts.
    parent = int(os.environ.pop(VARIABLE, None) or 0)
    if not parent:
        return
    told = _ask_for_signal()
    if os.getppid() != parent:
        sys.exit(128 + signal.SIGTERM)
    threading.Thread(target=_watch, args=(parent, told, grace, poll), name='follow-parent', daemon=True).start()


def _ask_for_signal() -> bool:
    """Ask the system to send SIGTERM at the death of the parent; False where it cannot."""
    if sys.platform != 'linux':
        return False
    try:
        return ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) == 0
    except (OSError, AttributeError):
        return False


def _watch(parent: int, told: bool, grace: float, poll: float) -> None:
    while os.getppid() == parent:
        time.sleep(poll)
    if not told:
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    os._exit(1)
