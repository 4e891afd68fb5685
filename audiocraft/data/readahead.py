"""How much memory there is, and telling the system which rows of a file will be read next."""
import os
import typing as tp
from pathlib import Path

from .layout import row_bytes
from .store import Store


def available_memory() -> int | None:
    """Return the bytes that can still be used without swapping, within the limit of the container; None if unknown."""
    try:
        lines = Path('/proc/meminfo').read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith('MemAvailable:'))
    except (OSError, StopIteration, ValueError):
        return None
    try:  # pages of files count as used there although they can be dropped, so only the limit is of interest
        return min(available, int(Path('/sys/fs/cgroup/memory.max').read_text()))
    except (OSError, ValueError):
        return available


class Readahead:
    """Ask for rows before they are copied: with a cold page cache a store is then read half as fast again.

    Does nothing where the system has no `posix_fadvise`.
    """

    def __init__(self, stores: tp.Iterable[Store], keys: tp.Iterable[str]):
        self._files: dict[tuple[int, str], tuple[int, int]] = {}
        if not hasattr(os, 'posix_fadvise'):
            return
        for store in stores:
            for key in keys:
                if key in store.keys and (id(store), key) not in self._files:
                    descriptor = os.open(store.files.memmap(key), os.O_RDONLY)
                    self._files[id(store), key] = descriptor, row_bytes(store.keys[key])

    def ask(self, store: Store, key: str, row: int) -> None:
        """Have the system read an item of a tensor in the background."""
        descriptor, size = self._files.get((id(store), key), (-1, 0))
        if descriptor < 0:
            return
        first, last = store.offsets[key][row:row + 2].tolist() if key in store.offsets else (row, row + 1)
        if last > first:  # a length of 0 would stand for all of the file
            os.posix_fadvise(descriptor, first * size, (last - first) * size, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Close the files."""
        while self._files:
            os.close(self._files.popitem()[1][0])
