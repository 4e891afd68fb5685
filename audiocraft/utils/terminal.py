"""What a person types while a run goes on."""

import os
import select
import signal
import sys
import threading
import typing as tp

# Set to 1 where typed lines come through a pipe: the process that has the terminal hands them on.
VARIABLE = 'AUDIOCRAFT_STDIN'
WAIT = 0.5  # seconds until `stop` and the foreground are looked at again


def has_input() -> bool:
    """Whether lines may come: standard input is a terminal, or a pipe that AUDIOCRAFT_STDIN=1 tells of."""
    return _descriptor() is not None


def lines_of_terminal(stop: threading.Event) -> tp.Iterator[str]:
    """Yield each line that is typed, without its end, until `stop` is set or the input ends.

    A terminal is read only while this process is in its foreground: the system stops a process in the background that
    tries to. Nothing else may read standard input meanwhile. To be used in a thread of its own.
    """
    descriptor = _descriptor()
    if descriptor is None:
        return
    pieces = _pieces if hasattr(os, 'tcgetpgrp') else _plain_pieces
    rest = b''
    for piece in pieces(descriptor, stop):
        *lines, rest = (rest + piece).split(b'\n')
        for line in lines:
            yield _text(line)
    if rest:
        yield _text(rest)


def _descriptor() -> int | None:
    try:
        descriptor = sys.stdin.fileno()
    except (AttributeError, OSError, ValueError):  # closed, or replaced by something that is no file
        return None
    return descriptor if os.isatty(descriptor) or os.environ.get(VARIABLE) == '1' else None


def _text(line: bytes) -> str:
    return line.decode('utf-8', 'replace').rstrip('\r')


def _pieces(descriptor: int, stop: threading.Event) -> tp.Iterator[bytes]:
    """The bytes of standard input as they come."""
    terminal = os.isatty(descriptor)
    # This process may go to the background between the look and the read: with this the read fails, and nothing stops.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTIN})
    while not stop.is_set():
        try:
            if terminal and os.tcgetpgrp(descriptor) != os.getpgrp():
                stop.wait(WAIT)
            elif select.select([descriptor], [], [], WAIT)[0]:
                piece = os.read(descriptor, 1 << 16)
                if not piece:
                    return
                yield piece
        except OSError:
            if not terminal or not os.isatty(descriptor):
                return  # it was closed
            stop.wait(WAIT)


def _plain_pieces(descriptor: int, stop: threading.Event) -> tp.Iterator[bytes]:
    """The same where one cannot wait for standard input with a limit: `stop` is seen after the next line."""
    while not stop.is_set() and (piece := os.read(descriptor, 1 << 16)):
        yield piece
