"""The ragged keys of a store while it is written: each process appends to files of its own, joined in the end.

An item is `[rank, start, length]`, counted in frames: where it is in the file of which process. The lines of the
journals hold that, so what lies behind the last item that a journal knows is overwritten after a kill.
"""
import os
import typing as tp
from pathlib import Path

import torch

from .layout import OFFSETS, Spec, row_bytes

Span = tuple[int, int, int]
_PIECE = 1 << 24


def write_at(descriptor: int, tensor: torch.Tensor, offset: int) -> None:
    """Write all bytes of a contiguous tensor at a place of a file."""
    data = tensor.reshape(-1).view(torch.uint8).numpy().data
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def copy_bytes(source: tp.BinaryIO, target: tp.BinaryIO, start: int, stop: int) -> None:
    """Append the bytes `[start, stop)` of a file to another, in pieces."""
    source.seek(start)
    while start < stop:
        piece = source.read(min(_PIECE, stop - start))
        if not piece:
            raise OSError(f'{source.name} ends at byte {start}, expected {stop}')
        target.write(piece)
        start += len(piece)


class RaggedParts:
    """The files of one process.

    Args:
        folder (Path): where they are.
        keys (dict): the ragged keys.
        rank (int): number of the process.
        entries (iterable of dict): what the journals hold of earlier runs.
    """

    def __init__(self, folder: Path, keys: tp.Mapping[str, Spec], rank: int,
                 entries: tp.Iterable[tp.Mapping[str, tp.Any]] = ()):
        self.folder, self.keys, self.rank = folder, keys, rank
        self._descriptors: dict[str, int] = {}
        self._ends = dict.fromkeys(keys, 0)
        for entry in entries:
            for key, (owner, start, length) in entry.get('parts', {}).items():
                if owner == rank:
                    self._ends[key] = max(self._ends[key], start + length)

    def append(self, values: tp.Mapping[str, torch.Tensor]) -> dict[str, Span]:
        """Write the frames of one item, for each key `[T, ...]`, and return where they are."""
        spans = {}
        for key, value in values.items():
            if key not in self._descriptors:
                path = part_path(self.folder, key, self.rank)
                self._descriptors[key] = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            write_at(self._descriptors[key], value, self._ends[key] * row_bytes(self.keys[key]))
            spans[key] = self.rank, self._ends[key], len(value)
            self._ends[key] += len(value)
        return spans

    def sync(self) -> None:
        """Make what was written durable."""
        for descriptor in self._descriptors.values():
            os.fsync(descriptor)

    def close(self) -> None:
        """Close the files."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])


def part_path(folder: Path, key: str, rank: int) -> Path:
    """The file of one process for one key."""
    return folder / f'{key}-{rank}.part'


def join_parts(folder: Path, data: Path, key: str, spec: Spec, spans: tp.Sequence[Span]) -> None:
    """Write `KEY.memmap` and `KEY_offsets.memmap` from the files of all processes, in the order of the items.

    Both appear at once and whole, so that this can be done again after a crash.

    Args:
        folder (Path): where the parts are.
        data (Path): where the files go.
        key (str): the ragged key.
        spec (Spec): its frames.
        spans (list): where each item is.
    """
    offsets = torch.tensor([0, *(length for _, _, length in spans)]).cumsum(0)
    _write_whole(data / f'{key}{OFFSETS}.memmap', lambda file: file.write(offsets.numpy().tobytes()))
    size = row_bytes(spec)
    opened: dict[int, tp.BinaryIO] = {}

    def copy(target: tp.BinaryIO) -> None:
        for rank, start, stop in _stretches(spans):
            if rank not in opened:
                opened[rank] = open(part_path(folder, key, rank), 'rb')
            copy_bytes(opened[rank], target, start * size, stop * size)
    try:
        _write_whole(data / f'{key}.memmap', copy)
    finally:
        for file in opened.values():
            file.close()


def _stretches(spans: tp.Iterable[Span]) -> tp.Iterator[Span]:
    """Join items that follow each other in one file: (rank, first frame, the one after the last)."""
    current: Span | None = None
    for rank, start, length in spans:
        if current is not None and current[0] == rank and current[2] == start:
            current = rank, current[1], start + length
            continue
        if current is not None:
            yield current
        current = rank, start, start + length
    if current is not None:
        yield current


def _write_whole(path: Path, write: tp.Callable[[tp.BinaryIO], tp.Any]) -> None:
    packed = path.with_suffix('.packed')
    with open(packed, 'wb') as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(packed, path)
