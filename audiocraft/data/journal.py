"""Journals: what each process that writes a store has finished, one JSON object per line, durable line by line."""
import json
import os
import typing as tp
from pathlib import Path

from ..utils.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: nobody checks that a process is alone there
    fcntl = None  # type: ignore[assignment]

Entry = dict[str, tp.Any]


def read_journals(folder: Path) -> list[Entry]:
    """Return all entries of the journals in a folder. A last line that a kill cut short is not there."""
    return [entry for path in sorted(folder.glob('journal-*.jsonl')) for entry in _read(path)]


def _read(path: Path) -> tp.Iterator[Entry]:
    with open(path, 'rb') as file:
        for line in file:
            if not line.endswith(b'\n'):
                return
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # a line that was torn by a crash of the machine: its item is done again
            yield entry


class Journal:
    """The journal of one process, opened for adding lines; locked as long as the process lives.

    Raises:
        UserError: another process holds it.
    """

    def __init__(self, folder: Path, rank: int):
        self.path = folder / f'journal-{rank}.jsonl'
        self._file = open(self.path, 'ab+')
        if fcntl is not None:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f'{folder}: another process is writing this store; wait for it, or stop it.') from None
        self._drop_torn_line()

    def _drop_torn_line(self) -> None:
        self._file.seek(0)
        whole = sum(len(line) for line in self._file if line.endswith(b'\n'))
        os.truncate(self.path, whole)

    def write(self, entries: tp.Iterable[Entry]) -> None:
        """Add entries and wait until they are on disk."""
        self._file.write(b''.join(json.dumps(entry).encode('utf-8') + b'\n' for entry in entries))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file and give the lock back."""
        self._file.close()
