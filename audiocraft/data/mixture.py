"""Several stores as one, some of them seen more often than others."""
import bisect
import logging
import typing as tp
from pathlib import Path

import torch

from ..environment import resolve_path
from ..utils.errors import UserError
from .layout import Spec, StoreFiles, describe_keys, ragged_keys
from .manifest import Row
from .store import Store

logger = logging.getLogger(__name__)

SHARED_FACTS = ('sample_rate', 'frame_rate')
PICTURES = ('clip_features', 'sync_features')
Source = tp.Union[str, Path, Store, tp.Mapping[str, tp.Any]]


class Mixture:
    """The rows of several stores one after the other, each store `repeat` times in a row.

    Stores may lack keys (audio without video): their items come without them. What stores share must agree: shapes,
    dtypes, rates, durations (but for stores with ragged keys) and the extractors that made a key.

    Args:
        sources (list): paths, stores, or dicts `{'path': ..., 'repeat': 5, 'optional': True}`; an optional one that
            is not there is left out, and named in a warning.
        keys (list of str or None): the keys to read, all by default.
        limit (int or None): only the first `limit` rows.
    Attributes:
        stores (list of Store): each source once.
        keys (dict): name -> (shape of an item, dtype), of all sources together.
    Raises:
        UserError: a store that is not sound, stores that do not fit together, a key that none has.
    """

    def __init__(self, sources: tp.Sequence[Source], keys: tp.Sequence[str] | None = None, limit: int | None = None):
        if isinstance(sources, (str, Path, Store, dict)):
            sources = [sources]
        opened: dict[str, Store] = {}
        self.stores, self.repeats = [], []
        for source in _present(sources):
            store, repeat = _open(source, opened)
            self.stores.append(store)
            self.repeats.append(repeat)
        for store in dict.fromkeys(self.stores):
            _leave_zeros_out(store)
        if not self.stores:
            raise UserError('A mixture needs at least one store, the list is empty.')
        self._parts = [store for store, repeat in zip(self.stores, self.repeats) for _ in range(repeat)]
        self._starts = [0]
        for store in self._parts:
            self._starts.append(self._starts[-1] + len(store))
        self._length = self._starts[-1] if limit is None else min(limit, self._starts[-1])
        if self._length < 1:
            raise UserError(f'There are no rows to read in {", ".join(str(s.files.folder) for s in self.stores)}.')
        self.keys = _select(_union(self.stores), keys, self.stores)
        _check_facts(self.stores)

    def __len__(self) -> int:
        return self._length

    def locate(self, row: int) -> tuple[Store, int]:
        """Return the store that holds a row of the mixture, and the row in it."""
        part = bisect.bisect_right(self._starts, row) - 1
        return self._parts[part], row - self._starts[part]

    def _all(self, attribute: str) -> list[tp.Any]:
        return [item for store in self._parts for item in getattr(store, attribute)][:len(self)]

    @property
    def rows(self) -> list[Row]:
        """The table rows of all items, repeated as the items are."""
        return self._all('rows')

    @property
    def ids(self) -> list[str]:
        """The ids of all items."""
        return self._all('ids')

    @property
    def captions(self) -> list[str]:
        """The captions of all items."""
        return self._all('captions')

    @property
    def nbytes(self) -> int:
        """Bytes of all stores, each counted once."""
        return sum(store.nbytes for store in set(self.stores))

    @property
    def video_store(self) -> Store:
        """The first store with pictures (a key besides those of sound and words), else the first one.

        It is the one whose latent statistics count, as in MMAudio's training.
        """
        return next((store for store in self.stores if store.keys.keys() & set(PICTURES)),
                    self.stores[0])

    @property
    def facts(self) -> dict[str, tp.Any]:
        """The facts of the first store with pictures, with keys and rows of the mixture and the list of `sources`.

        Facts that only another source has are taken from it. Without any facts there are keys, rows and sources.
        """
        merged: dict[str, tp.Any] = {}
        for store in [self.video_store, *self.stores]:
            merged = {**(store.facts or {}), **merged}
        merged.pop('files', None)
        sources = [identity(store, repeat) for store, repeat in zip(self.stores, self.repeats)]
        return {**merged, 'rows': len(self), 'keys': describe_keys(self.keys), 'sources': sources}

    def latent_stats(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation `[D]` of the latents of the first store with pictures (else of the first store)."""
        return self.video_store.latent_stats()


def identity(store: Store, repeat: int = 1) -> dict[str, tp.Any]:
    """What tells whether a store still is the one that a training began with; plain values."""
    files = (store.facts or {}).get('files', {})
    return {'name': store.name, 'rows': len(store), 'repeat': repeat, 'keys': describe_keys(store.keys),
            'sha256': {name: record['sha256'] for name, record in sorted(files.items())}}


def _present(sources: tp.Sequence[Source]) -> list[Source]:
    """The sources without the optional ones that are not there."""
    present: list[Source] = []
    for source in sources:
        path = source.get('path') if isinstance(source, tp.Mapping) and source.get('optional', False) else None
        files = None if path is None else StoreFiles.at(resolve_path(path))
        if files is None or files.folder.exists():
            present.append(source)
        else:
            hint = ' (its writing has not finished)' if files.is_unfinished else ''
            logger.warning('There is no store %s%s: training goes on without it.', path, hint)
    return present


def _open(source: Source, opened: dict[str, Store]) -> tuple[Store, int]:
    if isinstance(source, Store):
        return source, 1
    if isinstance(source, tp.Mapping):
        return _open_described(source, opened)
    path = str(resolve_path(source))
    if path not in opened:
        opened[path] = Store(path)
    return opened[path], 1


def _open_described(source: tp.Mapping[str, tp.Any], opened: dict[str, Store]) -> tuple[Store, int]:
    unknown = source.keys() - {'path', 'repeat', 'optional'}
    if unknown or 'path' not in source:
        raise UserError(f'A store is given as a path or as {{path: ..., repeat: 5}}, not as {dict(source)!r}.')
    repeat = source.get('repeat', 1)
    if type(repeat) is not int or repeat < 1:
        raise UserError(f'{source["path"]}: "repeat" is {repeat!r}, expected a whole number from 1 on.')
    return _open(source['path'], opened)[0], repeat


def _leave_zeros_out(store: Store) -> None:
    """Features of pictures that are zeros in (16 rows of) a store mean that it has no pictures: learned nulls stand
    for those, as in MMAudio's training."""
    for key in PICTURES:
        if key not in store.keys or key in store.offsets or not len(store):
            continue
        rows = torch.linspace(0, len(store) - 1, min(len(store), 16)).long()
        if not store.tensors[key][rows].any():
            logger.warning('%s: "%s" holds zeros, so it is left out: there are no pictures.', store.files.folder, key)
            store.keys = {name: spec for name, spec in store.keys.items() if name != key}
            store.tensors = {name: tensor for name, tensor in store.tensors.items() if name != key}


def _union(stores: tp.Sequence[Store]) -> dict[str, Spec]:
    """All keys; they must look alike in every store that has them."""
    keys: dict[str, tuple[Spec, Store]] = {}
    for store in stores:
        for key, spec in store.keys.items():
            known, first = keys.setdefault(key, (spec, store))
            if known != spec:
                raise UserError(f'"{key}" is {_words(known)} in {first.files.folder}, but {_words(spec)} in '
                                f'{store.files.folder}: these stores cannot be mixed.')
    return {key: spec for key, (spec, _) in keys.items()}


def _words(spec: Spec) -> str:
    return f'{list(spec[0])} {str(spec[1]).removeprefix("torch.")}'


def _select(found: dict[str, Spec], keys: tp.Sequence[str] | None, stores: tp.Sequence[Store]) -> dict[str, Spec]:
    missing = [key for key in keys or () if key not in found]
    if missing:
        raise UserError(f'No store has the key "{missing[0]}"; {stores[0].files.folder} has {", ".join(found)}.')
    return found if keys is None else {key: found[key] for key in keys}


def _check_facts(stores: tp.Sequence[Store]) -> None:
    """Rates, durations and extractors must agree between the sources that state them."""
    stated: dict[str, tuple[tp.Any, Store]] = {}
    for store in stores:
        facts = store.facts or {}
        # With ragged keys the items differ in duration in any case, and that of the facts is the longest.
        shared = SHARED_FACTS if ragged_keys(store.keys) else (*SHARED_FACTS, 'duration')
        values = {name: facts[name] for name in shared if facts.get(name) is not None}
        extractors = facts.get('extractors')
        if isinstance(extractors, dict):
            values |= {f'extractors.{name}': value for name, value in extractors.items()}
        for name, value in values.items():
            known, first = stated.setdefault(name, (value, store))
            if known != value:
                raise UserError(f'"{name}" is {known!r} in {first.files.facts}, but {value!r} in {store.files.facts}: '
                                f'these stores cannot be mixed.')
