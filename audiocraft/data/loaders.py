"""Reading batches of stores fast: by threads, straight from the memory map into buffers that are used again.

A row is one copy, from the page cache into the buffer that training reads. numpy does it: it frees the interpreter
lock and never uses threads of its own, so that a busy core beside it does not hold up a whole team of OpenMP threads.
"""
import collections
import logging
import threading
import typing as tp
import weakref

import numpy as np
import torch

from ..utils.errors import UserError
from .layout import Spec, frame_shape, is_ragged
from .mixture import Mixture
from .ragged import RaggedOptions, RaggedReader
from .readahead import Readahead, available_memory
from .sampler import BatchSampler
from .store import Store
from .store_dataset import Batch

logger = logging.getLogger(__name__)

HELD = 2  # batches whose buffers the consumer may still be reading
CACHED = 1 << 19  # bytes that are copied and then looked at, before they leave the cache
Raw = dict[str, np.ndarray]  # key -> bytes [rows, bytes of a row]


def _as_bytes(tensor: torch.Tensor) -> np.ndarray:
    """A tensor `[N, ...]` as bytes `[N, bytes of a row]`, without a copy."""
    return tensor.reshape(len(tensor), -1).view(torch.uint8).numpy()


def _readable(size: float) -> str:
    return f'{size / 1e9:.1f} GB' if size >= 1e9 else f'{size / 1e6:.1f} MB'


class _Buffers:
    """Memory for one batch on this rank: a tensor for each key, and the same memory as bytes; ragged keys apart."""

    def __init__(self, keys: dict[str, Spec], size: int, pin: bool, ragged: RaggedReader):
        self.tensors = {key: torch.empty(size, *frame_shape(spec), dtype=spec[1], pin_memory=pin)
                        for key, spec in keys.items() if not is_ragged(spec)}
        self.ragged = ragged.buffers(pin)
        self.raw = {key: _as_bytes(tensor) for key, tensor in self.tensors.items()}
        self.copies: list[tp.Any] = []

    def wait_for_copies(self) -> None:
        """Wait until no copy to a GPU reads this memory any more."""
        while self.copies:
            self.copies.pop().synchronize()


class StoreLoader:
    """Batches of a mixture, in an order that is a function of (seed, batch number) alone.

    `iterate(start)` gives the batches from number `start` on; that integer is the whole state. The tensors of a batch
    are valid until the next-but-one `next()`: clone what is kept longer. It can be iterated as often as wanted.

    Args:
        mixture (Mixture): what to read.
        batch_size (int): size of the global batch.
        seed (int): seed of the order.
        shuffle (bool): a new order for each pass.
        threads (int): threads that fill buffers; with 0, `next()` itself does.
        buffers (int): batches that there is memory for, at least two more than threads.
        pin (bool or None): page-locked buffers, for fast copies to a GPU; None: when there is a GPU.
        infinite (bool): pass after pass, with batches of one size; else one pass, of which the last batch may be short.
        drop_last (bool): leave a short last batch out.
        rank, world_size (int): the contiguous part of each batch that is read here.
        check_finite (bool): refuse NaN and infinities, naming the ids.
        padding (dict or None): ragged key -> what stands behind the end of shorter items, 0 by default.
        windows (dict or None): ragged key -> the most frames of an item that a batch gets: of longer items one window,
            anywhere when `shuffle` (a function of seed, batch and item), else the beginning.
        readahead (bool or None): announce reads to the system; None: until every batch was read once, and always when
            the stores are larger than the memory.
        name (str): what it is called in logs.
    """

    def __init__(self, mixture: Mixture, *, batch_size: int, seed: int = 0, shuffle: bool = False, threads: int = 1,
                 buffers: int = 4, pin: bool | None = None, infinite: bool = False, drop_last: bool = False,
                 rank: int = 0, world_size: int = 1, check_finite: bool = False, readahead: bool | None = None,
                 padding: tp.Mapping[str, float] | None = None, windows: tp.Mapping[str, int] | None = None,
                 name: str = 'data'):
        self.mixture, self.threads, self.check_finite, self.name = mixture, threads, check_finite, name
        self.sampler = BatchSampler(len(mixture), batch_size, seed, shuffle, drop_last, rank, world_size, infinite)
        self.buffers = max(buffers, HELD + max(1, threads))
        self.pin = torch.cuda.is_available() if pin is None else pin
        self.batch_size, self.world_size = batch_size, world_size
        self._ragged = RaggedReader(mixture.stores, mixture.keys, RaggedOptions(
            dict(padding or {}), dict(windows or {}), random=shuffle, seed=seed))
        self._views = {id(store): {key: _as_bytes(store.tensors[key]) for key, spec in mixture.keys.items()
                                   if key in store.keys and not is_ragged(spec)} for store in mixture.stores}
        for store in mixture.stores:
            store.ids, store.captions  # noqa: B018  read the tables now, not in several threads
        self._pool: list[_Buffers] = []
        self._runs: weakref.WeakSet[_Run] = weakref.WeakSet()
        self._unread = len(self.sampler)
        self._readahead = readahead
        self._asker: Readahead | None = None
        self._larger_than_memory = self._log_size()

    def _log_size(self) -> bool:
        size, free, stores = self.mixture.nbytes, available_memory(), len(set(self.mixture.stores))
        line = f'{self.name}: {len(self.mixture)} rows, {_readable(size)} in {stores} store{"s" * (stores > 1)}'
        if free is None:
            logger.info('%s', line)
            return False
        too_large = size > free
        note = '; they do not fit, so that every pass reads from disk' if too_large else ''
        logger.log(logging.WARNING if too_large else logging.INFO, '%s, %s of memory available%s', line,
                   _readable(free), note)
        return too_large

    def __len__(self) -> int:
        """Number of batches in one pass."""
        return len(self.sampler)

    def __iter__(self) -> tp.Iterator[Batch]:
        return self.iterate(0)

    @property
    def ids(self) -> list[str]:
        """The ids of all items."""
        return self.mixture.ids

    def iterate(self, start: int = 0) -> tp.Iterator[Batch]:
        """Yield the batches from number `start` on.

        Raises:
            UserError: values that are not finite (with `check_finite`).
            RuntimeError: reading failed; it names the stores.
        """
        run = _Run(self, start)
        self._runs.add(run)
        try:
            yield from run.batches()
        finally:
            run.close()

    def close(self) -> None:
        """End the threads of all iterations and free the buffers. The loader can be used again."""
        for run in list(self._runs):
            run.close()
        self._pool.clear()
        if self._asker is not None:
            self._asker.close()
            self._asker = None

    def lend(self, count: int) -> list[_Buffers]:
        """Hand out buffers for an iteration, made when there are too few."""
        lent = [self._pool.pop() for _ in range(min(count, len(self._pool)))]
        size = self.sampler.local_batch_size
        return lent + [_Buffers(self.mixture.keys, size, self.pin, self._ragged) for _ in range(count - len(lent))]

    def take_back(self, buffers: tp.Iterable[_Buffers]) -> None:
        """Keep buffers for the next iteration."""
        self._pool.extend(buffers)

    # -- one batch ---------------------------------------------------------------------------------------------------

    def read(self, number: int, buffers: _Buffers) -> Batch:
        """Fill buffers with batch `number`."""
        buffers.wait_for_copies()
        places = [self.mixture.locate(row) for row in self.sampler.batch(number)]
        try:
            self._announce(places)
            batch = self._read(places, buffers, self.sampler.span(number)[0])
            batch.part = self.sampler.part(number)
            return batch
        except UserError:
            raise
        except Exception as error:
            names = ', '.join(str(store.files.folder) for store in {id(s): s for s, _ in places}.values())
            raise RuntimeError(f'Reading batch {number} of {names} failed: {error}') from error

    def _read(self, places: list[tuple[Store, int]], buffers: _Buffers, first: int) -> Batch:
        tensors, rows, lengths = {}, {}, {}
        for key in self.mixture.keys:
            having = [position for position, (store, _) in enumerate(places) if key in store.keys]
            if len(having) < len(places):
                rows[key] = torch.tensor(having, dtype=torch.int64)
            there = [places[position] for position in having]
            if key in buffers.ragged:
                tensors[key], sizes = self._read_ragged(key, there, [first + i for i in having], buffers)
                lengths[key] = torch.zeros(len(places), dtype=torch.int64)
                lengths[key][having] = torch.tensor(sizes, dtype=torch.int64)
                continue
            tensors[key] = buffers.tensors[key][:len(having)]
            self._fill(key, there, tensors[key], buffers.raw[key])
        ids = [store.ids[row] for store, row in places]
        captions = [store.captions[row] for store, row in places]
        return Batch(ids, captions, tensors, rows, lengths, buffers.copies)

    def _read_ragged(self, key: str, places: list[tuple[Store, int]], positions: list[int],
                     buffers: _Buffers) -> tuple[torch.Tensor, list[int]]:
        tensor, sizes = self._ragged.read(key, places, positions, buffers.ragged[key])
        if self.check_finite and not _all_finite(tensor):
            _refuse(key, places, tensor)
        return tensor, sizes

    def _fill(self, key: str, places: list[tuple[Store, int]], tensor: torch.Tensor, raw: np.ndarray) -> None:
        """Copy rows, and look at them while they are in the cache of the processor."""
        step = max(1, CACHED // raw.shape[1]) if self.check_finite else max(1, len(places))
        finite = True
        for start in range(0, len(places), step):
            self._copy(key, places[start:start + step], raw[start:start + step])
            finite = finite and (not self.check_finite or _all_finite(tensor[start:start + step]))
        if not finite:
            _refuse(key, places, tensor)

    def _copy(self, key: str, places: list[tuple[Store, int]], out: np.ndarray) -> None:
        """Copy rows: at once when they are of one store, else one by one."""
        first = places[0][0]
        if all(store is first for store, _ in places):
            rows = np.array([row for _, row in places], dtype=np.int64)
            np.take(self._views[id(first)][key], rows, axis=0, out=out[:len(rows)], mode='clip')
            return
        for position, (store, row) in enumerate(places):
            out[position] = self._views[id(store)][key][row]

    def _announce(self, places: list[tuple[Store, int]]) -> None:
        wanted = self._unread > 0 or self._larger_than_memory if self._readahead is None else self._readahead
        if not wanted:
            return
        self._unread -= 1
        if self._asker is None:
            self._asker = Readahead(self.mixture.stores, self.mixture.keys)
        for store, row in places:
            for key in self.mixture.keys:
                self._asker.ask(store, key, row)


def _refuse(key: str, places: list[tuple[Store, int]], tensor: torch.Tensor) -> tp.NoReturn:
    bad = (~tensor.reshape(len(tensor), -1).isfinite().all(1)).nonzero().flatten().tolist()
    named = [f'{store.files.memmap(key)}: row {row} (id "{store.ids[row]}")' for store, row in (places[i] for i in bad)]
    raise UserError(f'"{key}" is not finite in {len(named)} items of a batch:\n  ' + '\n  '.join(named))


def _all_finite(tensor: torch.Tensor) -> bool:
    """Whether all values are finite. Extremes tell (NaN is one for numpy) and are found faster than any sum."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.dtype in (torch.float32, torch.float64):
        values = tensor.numpy()
        return bool(np.isfinite(values.max()) and np.isfinite(values.min()))
    exponent = 0x7F80 if tensor.dtype == torch.bfloat16 else 0x7C00
    return not bool(((tensor.view(torch.int16).numpy() & exponent) == exponent).any())


class _Run:
    """One iteration: threads take batch numbers in turn, the consumer gets the batches in order of their number."""

    def __init__(self, loader: StoreLoader, start: int):
        self.loader = loader
        self.end = None if loader.sampler.infinite else len(loader)
        self.next_number = self.wanted = start
        self.done: dict[int, Batch | BaseException] = {}
        self.used: dict[int, _Buffers] = {}
        self.held: collections.deque[int] = collections.deque()
        self.free = loader.lend(loader.buffers)
        self.changed = threading.Condition()
        self.stopped = False
        self.fillers = [threading.Thread(target=self._fill, name=f'{loader.name}-{i}', daemon=True)
                        for i in range(loader.threads)]
        for filler in self.fillers:
            filler.start()

    def _take(self) -> int | None:
        """Take the next number together with buffers for it, so that the lowest numbers always have theirs."""
        if self.stopped or not self.free or (self.end is not None and self.next_number >= self.end):
            return None
        number = self.next_number
        self.next_number += 1
        self.used[number] = self.free.pop()
        return number

    def _finished(self) -> bool:
        return self.stopped or (self.end is not None and self.next_number >= self.end)

    def _fill(self) -> None:
        while True:
            with self.changed:
                number = self._take()
                while number is None and not self._finished():
                    self.changed.wait()
                    number = self._take()
            if number is None:
                return
            self._read(number)

    def _read(self, number: int) -> None:
        result: Batch | BaseException
        try:
            result = self.loader.read(number, self.used[number])
        except BaseException as error:  # it belongs to the consumer, when its turn comes
            result = error
        with self.changed:
            self.done[number] = result
            self.changed.notify_all()

    def batches(self) -> tp.Iterator[Batch]:
        """Yield the batches in order, until the end or the first error."""
        while self.end is None or self.wanted < self.end:
            result = self._next()
            if isinstance(result, BaseException):
                raise result
            yield result

    def _next(self) -> Batch | BaseException:
        with self.changed:
            while len(self.held) >= HELD:
                self.free.append(self.used.pop(self.held.popleft()))
                self.changed.notify_all()
            number = self._take() if not self.fillers else None
        if number is not None:
            self._read(number)
        with self.changed:
            while self.wanted not in self.done:
                if self.stopped:
                    raise RuntimeError(f'{self.loader.name}: the loader was closed while it was being read')
                if not self.changed.wait(timeout=1.) and not any(filler.is_alive() for filler in self.fillers):
                    raise RuntimeError(f'{self.loader.name}: the threads that read batches have died; batch '
                                       f'{self.wanted} never came (an error above may say why)')
            self.held.append(self.wanted)
            self.wanted += 1
            return self.done.pop(self.held[-1])

    def close(self) -> None:
        """Stop the threads, wait for them and give the buffers back."""
        with self.changed:
            already, self.stopped = self.stopped, True
            self.changed.notify_all()
        for filler in self.fillers:
            filler.join()
        if not already:
            self.loader.take_back([*self.free, *self.used.values()])


STAGE_DEFAULTS = {'train': {'shuffle': True, 'infinite': True}}


def build_loader(dset_stage: tp.Mapping[str, tp.Any] | None, dataset: tp.Mapping[str, tp.Any], *, stage: str, seed: int,
                 rank: int = 0, world_size: int = 1, limit: int | None = None, split: str | None = None
                 ) -> StoreLoader:
    """Build the loader of a stage: endless and shuffled for `train`, one pass in the order of the stores for others.

    Args:
        dset_stage (dict): `stores`, a list of paths or `{path, repeat}`; optionally `keys`, the tensors to read.
        dataset (dict): `batch_size` (global), `num_workers` (threads), `check_finite`, and under the name of a stage
            `num_samples` (the first so many rows) and `batch_size`. For ragged keys also `padding` and `windows`, see
            `StoreLoader`.
        stage (str): `train`, `valid`, `evaluate` or `generate`.
        seed (int): seed of the order.
        rank, world_size (int): which part of each batch is read here.
        limit (int or None): the first so many rows, instead of `num_samples`.
        split (str or None): the key of `dset_stage` in `dset`, by default the stage.
    Raises:
        UserError: no stores are named, or they are not sound.
    """
    stores, split = (dset_stage or {}).get('stores'), split or stage
    if not stores:
        raise UserError(f'dset.{split}.stores is empty: name the stores to read, for instance with dset=example, or '
                        f"dset.{split}.stores=['data/mine/{split}'].")
    own = dataset.get(stage) or {}
    mixture = Mixture(stores, keys=(dset_stage or {}).get('keys'), limit=limit or own.get('num_samples'))
    return StoreLoader(
        mixture, batch_size=own.get('batch_size') or dataset['batch_size'], seed=seed,
        threads=dataset.get('num_workers', 1), rank=rank, world_size=world_size, name=split,
        check_finite=dataset.get('check_finite', True), padding=own.get('padding', dataset.get('padding')),
        windows=own.get('windows', dataset.get('windows')), **STAGE_DEFAULTS.get(stage, {}))
