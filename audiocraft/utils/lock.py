"""One process per XP folder."""
import json
import os
import socket
import time
import typing as tp
from pathlib import Path

from .errors import UserError

try:
    import fcntl
except ImportError:  # Windows: training works, unprotected
    fcntl = None  # type: ignore[assignment]

NAME = '.lock'
_held: dict[Path, int] = {}  # locks of this process, and how many times each was taken


def _owner(file: tp.IO[str]) -> str:
    try:
        facts = json.loads(file.read())
        return f'process {facts["pid"]} on {facts["host"]}, since {facts["since"]}'
    except (ValueError, KeyError, TypeError):
        return 'another process'


class XPLock:
    """Exclusive lock on a folder, as a context manager; the system drops it when the process ends, however it ends.

    Args:
        folder (Path): the folder of the XP; made if needed.
    """
    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder).absolute() / NAME
        self._file: tp.IO[str] | None = None

    def acquire(self) -> None:
        """Take the lock, or raise a UserError that names the process which has it.

        The process that has it may take it again: whoever calls a solver may lock the folder already.
        """
        if self.path in _held:
            _held[self.path] += 1
            return
        self._file = self._open()
        _held[self.path] = 1

    def _open(self) -> tp.IO[str] | None:
        if fcntl is None:
            return None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = open(self.path, 'a+', encoding='utf-8')
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = _owner(file)
            file.close()
            raise UserError(f'The XP in {self.path.parent} is already running ({owner}). Wait for it, or stop it '
                            'first: two processes would mix their files.') from None
        except OSError:
            file.close()  # a file system without locks
            return None
        file.seek(0)
        file.truncate()
        json.dump({'pid': os.getpid(), 'host': socket.gethostname(), 'since': time.strftime('%Y-%m-%d %H:%M:%S')}, file)
        file.flush()
        return file

    def release(self) -> None:
        """Give the lock back, once as often as it was taken."""
        _held[self.path] -= 1
        if not _held[self.path]:
            del _held[self.path]
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> 'XPLock':
        self.acquire()
        return self

    def __exit__(self, *exc_info: tp.Any) -> None:
        self.release()


def holder(folder: str | Path) -> str | None:
    """Return which process holds the lock of a folder (`process 12 on host, since ...`), or None."""
    path = Path(folder) / NAME
    if fcntl is None or not path.exists():
        return None
    with open(path, encoding='utf-8') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _owner(file)
        except OSError:
            return None
    return None
