"""A run that hangs says where it hangs, and ends."""
import faulthandler
import logging
import os
import threading
import time
import typing as tp
from pathlib import Path

from .errors import HUNG

logger = logging.getLogger(__name__)

GRACE = 5.  # seconds; when processes wait for each other, all of them have time to say where


class Watchdog:
    """Writes the stacks of all threads and ends the process with status `HUNG` when nothing moves.

    A thread watches. Should it not run, since C code keeps the interpreter to itself, Python's `faulthandler` writes
    the stacks after half as much time again, and ends the process with status 1.

    Args:
        folder (Path): of the XP; the stacks go to `stacks.<rank>.log` there, and to stderr.
        rank (int): of this process.
        timeout (float or None): seconds without a beat; None or 0: nothing is watched.
    """

    def __init__(self, folder: str | Path, rank: int, timeout: float | None) -> None:
        self.path = Path(folder) / f'stacks.{rank}.log'
        self.rank = rank
        self.timeout = timeout or 0.
        self.last = ''  # what was going on at the last beat
        self._tick = min(1., self.timeout / 4)
        self._beats = self._seen = 0
        self._before = self._idle = 0.
        self._watching = False
        self._armed = -float('inf')  # when the fallback was set
        self._stop = threading.Event()
        self._file: tp.BinaryIO | None = None
        self._thread: threading.Thread | None = None

    def beat(self, what: str) -> None:
        """Say that something moves, and what; the first beat starts the clock. Cheap, for each step."""
        if self._file is None:
            return
        self._beats += 1
        self.last = what
        self._watching = True
        now = time.monotonic()
        if now - self._armed > 1:
            self._armed = now
            faulthandler.dump_traceback_later(1.5 * self.timeout, exit=True, file=self._file)

    def pause(self) -> None:
        """Stop the clock until the next beat."""
        self._watching = False
        self._armed = -float('inf')
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()

    def __enter__(self) -> 'Watchdog':
        if self.timeout > 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, 'ab', buffering=0)
            self._stop.clear()
            self._thread = threading.Thread(target=self._watch, name='watchdog', daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exc_info: tp.Any) -> None:
        if self._file is None or self._thread is None:
            return
        self.pause()
        self._stop.set()
        self._thread.join()
        self._file.close()
        self._file = self._thread = None
        if not self.path.stat().st_size:
            self.path.unlink()

    def _watch(self) -> None:
        self._before, self._seen = time.monotonic(), self._beats
        while not self._stop.wait(self._tick):
            if self._is_hanging(time.monotonic()):
                self._hang()

    def _is_hanging(self, now: float) -> bool:
        # The whole process may have been stopped and continued: such a gap is no hang, and counts as some ticks.
        # (The fallback cannot tell: a process that was stopped for longer than it waits ends when it is continued.)
        passed, self._before = min(now - self._before, 5 * self._tick), now
        self._idle = self._idle + passed if self._watching and self._beats == self._seen else 0.
        self._seen = self._beats
        return self._idle >= self.timeout

    def _hang(self) -> tp.NoReturn:
        faulthandler.cancel_dump_traceback_later()
        # What it hangs in may be a full pipe or the lock of the logging module: saying so must not hang as well.
        threading.Thread(target=self._tell, daemon=True).start()
        time.sleep(GRACE)
        os._exit(HUNG)

    def _tell(self) -> None:
        line = (f'Rank {self.rank}: nothing has moved for {self.timeout:g} s, the last was "{self.last}". '
                f'The stacks are in {self.path}. The process ends.')
        header = f'\n== {time.strftime("%Y-%m-%d %H:%M:%S")} {line}\n'.encode()
        file = tp.cast(tp.BinaryIO, self._file)
        file.write(header)
        faulthandler.dump_traceback(file, all_threads=True)
        os.write(2, header)
        faulthandler.dump_traceback(2, all_threads=True)
        logger.critical(line)
