"""Signals that ask a run to stop: they set a flag, and the run saves itself at the next safe point."""
import logging
import os
import signal
import threading
import typing as tp
from contextlib import suppress

logger = logging.getLogger(__name__)

# Exit codes: a cancelled job is seen as cancelled (128 + 15), Ctrl-C as Ctrl-C (128 + 2); the others are clean stops.
EXIT_CODES = {'SIGTERM': 143, 'SIGINT': 130, 'SIGUSR1': 0, 'SIGUSR2': 0, 'SIGHUP': 0}


class Stopped(BaseException):
    """Raised at a safe point to leave a stage because a stop was asked for; not an error."""


class StopFlag:
    """Context manager that turns TERM, USR1, USR2, HUP and the first Ctrl-C into a flag.

    A second Ctrl-C ends the process at once. Handlers are put back at the end; outside of the main thread, or where a
    signal does not exist, nothing is installed and `request` is the only way to set the flag.

    Attributes:
        requested (str or None): name of the signal that asked, e.g. `SIGTERM`.
        previous (dict): the handlers that were there before, by name.
    """
    def __init__(self) -> None:
        self.requested: str | None = None
        self.previous: dict[str, tp.Any] = {}

    def request(self, name: str = 'SIGTERM') -> None:
        """Ask for a stop as the named signal would; the first one that asks counts."""
        self.requested = self.requested or name

    @property
    def exit_code(self) -> int:
        """Exit status of the process after this stop."""
        return EXIT_CODES.get(self.requested or '', 0)

    def _handle(self, number: int, frame: tp.Any) -> None:
        name = signal.Signals(number).name
        if name == 'SIGINT' and self.requested == 'SIGINT':
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
            return
        if self.requested is None:
            # Not the logging module: the signal may have come while it held its lock.
            with suppress(OSError):  # SIGHUP: the terminal has gone
                os.write(2, f'{name}: saving and stopping at the next update'.encode()
                         + (b' (once more to end at once)\n' if name == 'SIGINT' else b'\n'))
        self.request(name)

    def __enter__(self) -> 'StopFlag':
        if threading.current_thread() is threading.main_thread():
            for name in EXIT_CODES:
                number = getattr(signal, name, None)
                # A job started in the background of a shell ignores Ctrl-C: it stays so.
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                    self.previous[name] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc_info: tp.Any) -> None:
        for name, handler in self.previous.items():
            signal.signal(getattr(signal, name), signal.SIG_DFL if handler is None else handler)
        self.previous = {}
