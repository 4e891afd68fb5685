"""Batches for training, from any position on, for every kind of loader."""

import logging
import random
import typing as tp
from contextlib import contextmanager

import numpy as np
import torch

from .. import distrib
from ..data.sampler import Part, share
from ..utils.errors import UserError
from ..utils.random import seed_all, seed_of

logger = logging.getLogger(__name__)


def size_of(batch: tp.Any) -> int:
    """Return the number of items in a batch: of a tensor, a list or dict of tensors, or anything with ids."""
    if isinstance(batch, torch.Tensor):
        return batch.shape[0] if batch.dim() else 1
    if hasattr(batch, 'ids'):
        return len(batch)
    parts = list(batch.values()) if isinstance(batch, dict) else batch if isinstance(batch, (list, tuple)) else []
    return next((size_of(part) for part in parts if isinstance(part, torch.Tensor)), 1)


def _cut(batch: tp.Any, start: int, stop: int) -> tp.Any:
    if hasattr(batch, 'slice'):
        return batch.slice(start, stop)
    if isinstance(batch, (torch.Tensor, str)):
        return batch[start:stop]
    if isinstance(batch, dict):
        return {key: _cut(part, start, stop) for key, part in batch.items()}
    if isinstance(batch, (list, tuple)) and all(isinstance(part, torch.Tensor) for part in batch):
        return type(batch)(_cut(part, start, stop) for part in batch)
    if isinstance(batch, (list, tuple)):
        return batch[start:stop]
    raise UserError(f'optim.accumulate > 1, and several processes, need batches that can be cut, and a '
                    f'{type(batch).__name__} has no `slice(start, stop)`. Give it one.')


def micro_batches(batch: tp.Any, count: int) -> list[tp.Any]:
    """Cut the batch of one update into `count` equal parts (gradient accumulation)."""
    if count == 1:
        return [batch]
    size = size_of(batch)
    if size % count:
        raise UserError(f'A batch of {size} items cannot be cut into optim.accumulate={count} equal parts: choose a '
                        'dataset.batch_size that it divides.')
    step = size // count
    return [_cut(batch, start, start + step) for start in range(0, size, step)]


def reads_own_part(loader: tp.Any) -> bool:
    """Whether a loader reads only what is for this process: one with `world_size`, or with a distributed sampler."""
    sharded = getattr(loader, 'world_size', 1) == distrib.world_size()
    return sharded or hasattr(getattr(loader, 'sampler', None), 'num_replicas')


def own_part(loader: tp.Any, batch: tp.Any) -> tuple[tp.Any, Part]:
    """What of a loader's batch is for this process, and which part of the global batch that is.

    A loader that knows nothing of processes gives the whole batch to each of them, and it is cut here.
    """
    size = size_of(batch)
    if not distrib.is_distributed():
        return batch, Part(size)
    if reads_own_part(loader):
        return batch, getattr(batch, 'part', None) or Part(size * distrib.world_size(), size * distrib.rank())
    low, high, part = share(size, distrib.rank(), distrib.world_size())
    return _cut(batch, low, high), part


def _cpu_states() -> tuple[tp.Any, tp.Any, torch.Tensor]:
    """The global generators of the CPU, in the forms of their libraries: this is done twice for each batch."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set_cpu_states(states: tuple[tp.Any, tp.Any, torch.Tensor]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def reseed(loader: tp.Any, seed: int, passes: int) -> None:
    """Make what a loader draws its order from a function of (seed, pass), where it has a generator of its own."""
    for part in (loader, getattr(loader, 'sampler', None)):
        drawn = getattr(part, 'generator', None)
        if isinstance(drawn, torch.Generator):
            drawn.manual_seed(seed_of(seed, 'order', passes))
        if part is not None and hasattr(part, 'set_epoch'):
            part.set_epoch(passes)


class Feed:
    """The train loader as an endless iterator whose position can be saved and found again.

    A loader with `iterate(start)` is asked for batch number `update`. Any other iterable is read pass after pass. Its
    randomness (a shuffled `DataLoader`, random crops in a dataset) comes from generators of its own that
    are seeded by (seed, pass), apart from those of training; a position inside of a pass is found by reading up to it.

    Args:
        loader: the train loader.
        seed (int): seed of the run.
        update (int): updates done, for loaders with `iterate`.
        position (dict or None): what `state_dict` returned, for the others.
    """

    def __init__(self, loader: tp.Any, *, seed: int, update: int = 0,
                 position: tp.Mapping[str, int] | None = None) -> None:
        self.loader, self.seed = loader, seed
        # Processes that all read the whole batch must draw alike; those that read a part of their own must not.
        self.stream = distrib.rank() if reads_own_part(loader) else 0
        self.numbered = hasattr(loader, 'iterate')
        self.passes, self.offset = 0, 0
        self._iterator: tp.Iterator[tp.Any] | None = loader.iterate(update) if self.numbered else None
        self._states: tuple[tp.Any, tp.Any, torch.Tensor] | None = None
        if not self.numbered and position:
            self._seek(int(position['pass']), int(position['offset']))

    def _seek(self, passes: int, offset: int) -> None:
        self.passes = passes
        if offset:
            logger.info('Reading %d batches of the train loader again, up to where it was.', offset)
        while self.offset < offset:
            next(self)

    def state_dict(self) -> dict[str, int]:
        """Return the position, as two integers."""
        return {'pass': self.passes, 'offset': self.offset}

    @contextmanager
    def _own_randomness(self) -> tp.Iterator[None]:
        """Swap the global generators of the CPU for those of the loader."""
        outer = _cpu_states()
        if self._states is not None:
            _set_cpu_states(self._states)
        try:
            yield
        finally:
            self._states = _cpu_states()
            _set_cpu_states(outer)

    def _open(self) -> None:
        """Start a pass, with everything that draws its order seeded by (seed, pass)."""
        with self._own_randomness():
            seed_all(self.seed, 'data', self.stream, self.passes, cuda=False)
            reseed(self.loader, self.seed, self.passes)
            self._iterator = iter(self.loader)
        self.offset = 0

    def __iter__(self) -> 'Feed':
        return self

    def __next__(self) -> tp.Any:
        if self.numbered:
            return self._next_numbered()
        if self._iterator is None:
            self._open()
        batch = self._read()
        if batch is None:
            self.passes += 1
            self._open()
            batch = self._read()
        if batch is None:
            raise UserError('The train loader gave no batch: it is empty, or it is an iterator that can be read only '
                            'once.')
        self.offset += 1
        return batch[0]

    def _read(self) -> tuple[tp.Any] | None:
        """The next batch in a tuple, None at the end of the pass."""
        assert self._iterator is not None
        with self._own_randomness():
            try:
                return (next(self._iterator),)
            except StopIteration:
                return None

    def _next_numbered(self) -> tp.Any:
        assert self._iterator is not None
        try:
            return next(self._iterator)
        except StopIteration:
            raise UserError('The train loader ended: one with `iterate(start)` must go on pass after pass.') from None

    def close(self) -> None:
        """End the iteration (and the threads behind it)."""
        if hasattr(self._iterator, 'close'):
            self._iterator.close()  # type: ignore[union-attr]
        self._iterator = None
