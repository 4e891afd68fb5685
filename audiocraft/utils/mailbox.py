"""Commands for a process that works in the folder of an XP, from any machine that sees the folder.

A command is the file `control/<time>-<id>.cmd`, its answer `control/<id>.answer`. Files need no port and no open
connection, and they reach a job that a scheduler started on another node.
"""
import logging
import os
import re
import stat
import time
import typing as tp
import uuid
from pathlib import Path

from .errors import UserError
from .files import write_atomic

logger = logging.getLogger(__name__)

FOLDER = 'control'
LIMIT = 4096  # bytes of a command
_KEEP = 3600.  # seconds; an answer that nobody has read by then is removed
_COMMAND = re.compile(r'[0-9]{1,20}-([0-9a-f]{12})\.cmd')
_ID = re.compile(r'[0-9a-f]{12}')


def _read(path: Path) -> str:
    """The text of a command file. Raises `ValueError` for what no sender of ours writes."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise ValueError('a command is a regular file')
    with open(path, 'rb') as file:
        data = file.read(LIMIT + 1)
    if len(data) > LIMIT:
        raise ValueError(f'a command has {LIMIT} bytes at most')
    return data.decode('utf-8', errors='replace')


class Mailbox:
    """The receiving side.

    Args:
        folder (Path): of the XP.
        interval (float): seconds between two looks into the folder.
        clock (callable): monotonic seconds.
    """
    def __init__(self, folder: str | Path, interval: float = 1.,
                 clock: tp.Callable[[], float] = time.monotonic) -> None:
        self.folder = Path(folder) / FOLDER
        self.interval = interval
        self.clock = clock
        self._next = -float('inf')

    def take(self) -> list[tuple[str, str]]:
        """Return `(id, text)` of the commands that have come, oldest first, and remove their files."""
        now = self.clock()
        if now < self._next:
            return []
        self._next = now + self.interval
        return self._take_all()

    def _take_all(self) -> list[tuple[str, str]]:
        try:
            names = sorted(name for name in os.listdir(self.folder) if _COMMAND.fullmatch(name))
        except OSError:
            return []  # there is no folder before the first command
        return [taken for name in names if (taken := self._take_one(name)) is not None]

    def _take_one(self, name: str) -> tuple[str, str] | None:
        path, number = self.folder / name, name[:-len('.cmd')].rpartition('-')[2]
        try:
            problem, text = None, _read(path)
        except ValueError as error:
            problem, text = error, ''
        except OSError as error:
            logger.debug('%s is not readable: %s', path, error)
            return None
        try:
            path.unlink()  # its sender may withdraw it at this moment: whoever removes the file has it
        except OSError as error:
            logger.debug('%s was not taken: %s', path, error)
            return None
        if problem is not None:
            logger.warning('The command %s was dropped: %s.', path, problem)
            self.answer(number, f'error: {problem}')
            return None
        return number, text

    def answer(self, number: str, text: str) -> None:
        """Answer the command with this id. An answer that cannot be written is a log line: the run goes on."""
        if not _ID.fullmatch(number):
            return
        try:
            write_atomic(self.folder / f'{number}.answer', text)
            self._sweep()
        except OSError as error:
            logger.warning('An answer to %s could not be written: %s', number, error)

    def clear(self, reason: str = 'it came before the run') -> None:
        """Drop the commands that are there, with a log line and an answer to each, and answers that nobody reads."""
        for number, text in self._take_all():
            logger.warning('The command %r was dropped: %s.', text[:100], reason)
            self.answer(number, f'error: dropped, {reason}')
        self._sweep()

    def _sweep(self) -> None:
        """Remove old answers, and what a killed sender left half written."""
        try:
            for entry in os.scandir(self.folder):
                if entry.name.endswith(('.answer', '.tmp')) and time.time() - entry.stat().st_mtime > _KEEP:
                    os.unlink(entry.path)
        except OSError:
            pass


def send(folder: str | Path, text: str, wait: float = 15.) -> str | None:
    """Send a command to the process that works in the folder of an XP, and return its answer.

    Args:
        folder (Path): of the XP.
        text (str): the command, at most 4 KB.
        wait (float): seconds to wait for an answer.
    Returns:
        The answer; one that begins with `error: ` is a refusal. None when nobody took the command in time: it is then
        withdrawn, and will not be carried out later.
    Raises:
        UserError: there is no such folder, it cannot be written to, or the text is too long.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f'There is no XP folder {folder}.')
    if len(text.encode('utf-8', errors='replace')) > LIMIT:
        raise UserError(f'A command has {LIMIT} bytes at most, this one has {len(text.encode("utf-8", "replace"))}.')
    number = uuid.uuid4().hex[:12]
    command = folder / FOLDER / f'{time.time_ns()}-{number}.cmd'
    try:
        write_atomic(command, text.encode('utf-8', errors='replace'))
    except OSError as error:
        raise UserError(f'Cannot write to {command.parent}: {error.strerror}.') from error
    try:
        answer = _wait(folder / FOLDER / f'{number}.answer', wait)
    finally:
        withdrawn = _remove(command)
    if answer is None and not withdrawn:
        # It was taken at the last moment, or the answer takes longer than the sender has patience.
        answer = _wait(folder / FOLDER / f'{number}.answer', 0.) or 'error: the command was taken, but not answered yet'
    return answer


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True


def _wait(path: Path, seconds: float) -> str | None:
    """Wait for an answer file, and remove it."""
    end = time.monotonic() + seconds
    while True:
        try:
            text = path.read_text(encoding='utf-8', errors='replace')
            _remove(path)
            return text
        except OSError:
            if time.monotonic() >= end:
                return None
        time.sleep(0.1)
