"""Writing stores: in place, by any number of processes, resumable after a kill, in constant memory.

While it is written, a store is a folder `NAME.partial/` with the tensors at full size, a plan, and a journal for each
process. An item counts once its line is in a journal, which is written after its rows. `finish` closes the gaps that
rejected items left, writes the table and the facts, and moves everything to its place, the facts last. Of a ragged key
nobody knows beforehand where an item begins: see `ragged_writer.py`.
"""
import hashlib
import json
import logging
import os
import shutil
import threading
import time
import typing as tp
from pathlib import Path

import torch

from ..utils.errors import UserError
from ..utils.files import fsync_dir, fsync_file, sha256_of, write_atomic
from .journal import Journal, read_journals
from .layout import (
    DTYPES,
    OFFSETS,
    SCHEMA,
    Layout,
    Spec,
    StoreFiles,
    describe_keys,
    frame_shape,
    is_ragged,
    ragged_keys,
    row_bytes,
)
from .manifest import format_table, read_table
from .ragged_writer import RaggedParts, copy_bytes, join_parts, write_at
from .store import Store, latent_stats, map_tensor

logger = logging.getLogger(__name__)

ITEMS_PER_SYNC = 64
SECONDS_PER_SYNC = 5.
KeySpec = tuple[tp.Sequence[int | None], tp.Union[str, torch.dtype]]


class StoreWriter:
    """Write a store item by item.

    With `ids`, item i of the list gets row i whatever the number of processes and the order of their calls; rejected
    items are closed up in the end. Without, rows come in the order of the calls, from one process.

    To resume, make the writer again with the same arguments and skip the items that it `has`. With several processes
    each calls `close`, and when all have, rank 0 calls `finish`. When the store is finished already and holds the same,
    `complete` is true and `finish` just opens it.

    Args:
        path (str or Path): `DIR/NAME` of the store.
        keys (dict): name -> (shape of an item, dtype). `(None, 4)` is ragged: items `[T, 4]` of any lengths.
        ids (list of str or None): the ids of all items in order; repeated ones are dropped.
        rows (int): without ids, how many rows to allocate at first.
        facts (dict): what else to keep of the data: `sample_rate`, `frame_rate`, `duration`, `extractors`, ...
        columns (list of str): columns of the table besides `id`.
        state (str or Path or None): folder for `NAME.partial`, by default beside the store.
        rank (int): number of this process.
    Raises:
        UserError: a finished store with this name holds something else; what was begun was begun with other settings;
            another process is writing it.
    """

    def __init__(self, path: str | Path, *, keys: tp.Mapping[str, KeySpec], ids: tp.Sequence[str] | None = None,
                 rows: int = 1024, facts: tp.Mapping[str, tp.Any] | None = None,
                 columns: tp.Sequence[str] = ('caption',), state: str | Path | None = None, rank: int = 0):
        self.files, self.rank = StoreFiles.at(path), rank
        self.keys = {key: _spec(key, spec) for key, spec in keys.items()}
        self.columns = ['id', *(column for column in columns if column != 'id')]
        self.facts = json.loads(json.dumps(dict(facts or {})))  # as it will be read back
        self._fixed = {key: spec for key, spec in self.keys.items() if not is_ragged(spec)}
        self._ragged = {key: self.keys[key] for key in ragged_keys(self.keys)}
        self._slots = None if ids is None else {name: slot for slot, name in enumerate(dict.fromkeys(ids))}
        self._capacity = rows if self._slots is None else len(self._slots)
        if self._capacity < 1:
            raise UserError(f'{self.files.folder}: there are no items to write.')
        if self._slots is None and rank > 0:
            raise ValueError('several processes can only write a store whose ids are known from the start')
        folder = self.files.folder if state is None else Path(state) / self.files.folder.name
        self.partial = folder.with_name(f'{folder.name}.partial')
        self._lock = threading.Lock()
        self._pending: list[dict[str, tp.Any]] = []
        self._descriptors: dict[str, int] = {}
        self._journal: Journal | None = None
        self._done: set[str] = set()
        self.complete = self._is_complete()
        if not self.complete:
            self._open()

    # -- beginning and resuming --------------------------------------------------------------------------------------

    @property
    def _data(self) -> Path:
        return self.partial / 'data'

    def _plan(self) -> dict[str, tp.Any]:
        digest = hashlib.sha256('\n'.join(self._slots or ()).encode('utf-8')).hexdigest()
        return {'schema': SCHEMA, 'keys': describe_keys(self.keys), 'columns': self.columns, 'facts': self.facts,
                'items': None if self._slots is None else f'{len(self._slots)} ids, sha256 {digest}'}

    def _is_complete(self) -> bool:
        """Whether there is nothing left to write: finished already, or but for the last moves."""
        ready = (self.partial / 'facts.json').exists()
        if ready and not self.files.facts.exists():
            self._compare_plan()
            return True
        existing = [file for file in (self.files.facts, self.files.folder, self.files.tsv) if file.exists()]
        if not existing:
            return False
        if not self.files.facts.exists():
            raise UserError(f'{existing[0]} exists already and was not written by this command. Remove it, or write to '
                            f'another place.')
        differences = self._differences(Store(self.files.folder))
        if differences:
            raise UserError(f'The store {self.files.folder} is finished and holds something else: '
                            f'{"; ".join(differences)}. Remove it, or write to another place.')
        logger.info('%s is already complete.', self.files.folder)
        return True

    def _differences(self, store: Store) -> list[str]:
        """What a finished store holds that this one would not, in words."""
        found = store.facts or {}
        wanted = {**self.facts, 'keys': describe_keys(self.keys), 'columns': self.columns}
        differences = [f'"{name}" is {found.get(name)!r}, now {value!r}' for name, value in wanted.items()
                       if found.get(name) != value]
        if self._slots is not None:
            known = {*store.ids, *self._rejected_before()}
            missing, more = self._slots.keys() - known, known - self._slots.keys()
            differences += [f'it has no item "{min(missing)}" ({len(missing)} missing)'] if missing else []
            differences += [f'it has the item "{min(more)}" ({len(more)} more)'] if more else []
        return differences

    def _rejected_before(self) -> list[str]:
        if not self.files.rejected.exists():
            return []
        return [row['id'] for row in read_table(self.files.rejected, required=['id'])]

    def _compare_plan(self) -> None:
        plan = json.loads((self.partial / 'plan.json').read_text(encoding='utf-8'))
        for name, value in self._plan().items():
            if plan.get(name) != value:
                raise UserError(f'{self.partial} was begun with other settings: "{name}" was {plan.get(name)!r}, now '
                                f'it is {value!r}. Use the same settings, or remove that folder to start over.')

    def _open(self) -> None:
        if (self.partial / 'plan.json').exists():
            self._compare_plan()
        else:
            self._warn_of_space()
            self._data.mkdir(parents=True, exist_ok=True)
            write_atomic(self.partial / 'plan.json', json.dumps(self._plan()))
        entries = read_journals(self.partial)
        self._done = {entry['id'] for entry in entries}
        slots = [entry['slot'] for entry in entries if 'slot' in entry]
        self._next_slot = max(slots, default=-1) + 1
        self._parts = RaggedParts(self.partial, self._ragged, self.rank, entries)
        self._capacity = max(self._capacity, self._next_slot)
        self._synced = time.monotonic()
        if self._slots is None or self._slots.keys() - self._done:
            self._journal = Journal(self.partial, self.rank)
        if self._done:
            logger.info('%s: going on after %d items.', self.partial, len(self._done))

    def _warn_of_space(self) -> None:
        needed = self._capacity * sum(row_bytes(spec) for spec in self._fixed.values())
        self.partial.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.partial).free
        if needed > free:
            logger.warning('%s needs %.1f GB, but the disk has %.1f GB left.', self.partial, needed / 1e9, free / 1e9)

    def _allocate(self) -> None:
        """Give every file its full size; without blocks on disk until rows are written, where the system can.

        Only once there is a row to write: another process, with nothing left to do here, may be finishing the files.
        """
        for key, spec in self._fixed.items():
            if key not in self._descriptors:
                path = self._data / f'{key}.memmap'
                self._descriptors[key] = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            if os.fstat(self._descriptors[key]).st_size < self._capacity * row_bytes(spec):
                os.ftruncate(self._descriptors[key], self._capacity * row_bytes(spec))

    # -- items -------------------------------------------------------------------------------------------------------

    def has(self, id: str) -> bool:
        """Whether this item was written or rejected, now or in an earlier run."""
        return self.complete or id in self._done

    def add(self, id: str, row: tp.Mapping[str, tp.Any], tensors: tp.Mapping[str, torch.Tensor]) -> bool:
        """Write one item. May be called from several threads.

        Args:
            id (str): its id.
            row (dict): its columns in the table.
            tensors (dict): one tensor per key, of the shape of an item (ragged keys with any first dim); floats are
                converted to the store's dtype.
        Returns:
            bool: false when it was there already, or was rejected because it is not finite.
        """
        unknown = row.keys() - set(self.columns)
        if unknown or tensors.keys() != self.keys.keys():
            raise ValueError(f'item "{id}": expected columns {self.columns} and tensors {list(self.keys)}, '
                             f'got {list(row)} and {list(tensors)}')
        values = {key: _checked(id, key, tensor, self.keys[key]) for key, tensor in tensors.items()}
        for key, value in values.items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                self.reject(id, f'{key} is not finite')
                return False
        with self._lock:
            if not self._begin(id):
                return False
            slot = self._slot(id)
            if slot >= self._capacity or not self._descriptors:
                self._capacity = max(self._capacity, 2 * slot + 1)
                self._allocate()
            for key, spec in self._fixed.items():
                write_at(self._descriptors[key], values[key], slot * row_bytes(spec))
            entry: dict[str, tp.Any] = {'slot': slot, 'id': id}
            if self._ragged:
                entry['parts'] = self._parts.append({key: values[key] for key in self._ragged})
            texts = {column: '' if row.get(column) is None else str(row[column]) for column in self.columns[1:]}
            self._record({**entry, 'row': texts})
        return True

    def reject(self, id: str, reason: str) -> None:
        """Note that an item is left out, and why; it is listed in `NAME.rejected.tsv`."""
        with self._lock:
            if self._begin(id):
                self._record({'id': id, 'rejected': ' '.join(str(reason).split())})

    def _begin(self, id: str) -> bool:
        """Whether this item is to be recorded: false when it was before."""
        if self.complete or id in self._done:
            return False
        if self._journal is None:
            raise RuntimeError(f'{self.partial}: the writer was closed')
        if not id or (self._slots is not None and id not in self._slots):
            raise ValueError(f'"{id}" is not one of the items of {self.files.folder}')
        return True

    def _slot(self, id: str) -> int:
        if self._slots is not None:
            return self._slots[id]
        slot, self._next_slot = self._next_slot, self._next_slot + 1
        return slot

    def _record(self, entry: dict[str, tp.Any]) -> None:
        self._done.add(entry['id'])
        self._pending.append(entry)
        if len(self._pending) >= ITEMS_PER_SYNC or time.monotonic() - self._synced > SECONDS_PER_SYNC:
            self._sync()

    def _sync(self) -> None:
        """Make rows durable, then the lines that say so."""
        if self._pending and self._journal is not None:
            for descriptor in self._descriptors.values():
                os.fsync(descriptor)
            self._parts.sync()
            self._journal.write(self._pending)
            self._pending.clear()
        self._synced = time.monotonic()

    def close(self) -> None:
        """Make everything durable and close the files. Without `finish` the store can be resumed later."""
        with self._lock:
            self._sync()
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])
            if self._journal is not None:
                self._parts.close()
                self._journal.close()
                self._journal = None

    # -- finishing ---------------------------------------------------------------------------------------------------

    def finish(self) -> Store:
        """Make the finished store from all journals, and open it.

        Rank 0 does it, once all processes have closed; the others wait for it.

        Raises:
            UserError: items are missing, or none was accepted.
        """
        self.close()
        if self.rank > 0:
            return self._wait()
        if not self.files.facts.exists():
            if not (self.partial / 'facts.json').exists():
                self._assemble()
            self._publish()
        if (self.partial / 'plan.json').exists():
            shutil.rmtree(self.partial)
        return Store(self.files.folder)

    def _wait(self, patience: float = 3600.) -> Store:
        start = time.monotonic()
        while not self.files.facts.exists():
            if time.monotonic() - start > patience:
                raise UserError(f'{self.files.folder} is not finished yet; process 0 should have done it.')
            time.sleep(.1)
        return Store(self.files.folder)

    def _assemble(self) -> None:
        entries = {entry['id']: entry for entry in read_journals(self.partial)}
        missing = [name for name in self._slots or () if name not in entries]
        if missing:
            raise UserError(f'{self.partial}: {len(missing)} items are not written yet, the first is "{missing[0]}". '
                            f'Run the same command again to go on.')
        rows = sorted((entry for entry in entries.values() if 'slot' in entry), key=lambda entry: entry['slot'])
        position = (self._slots or {name: i for i, name in enumerate(entries)}).__getitem__
        rejected = sorted((entry for entry in entries.values() if 'rejected' in entry), key=lambda e: position(e['id']))
        if rejected:
            listed = [{'id': entry['id'], 'reason': entry['rejected']} for entry in rejected]
            write_atomic(self.partial / 'rejected.tsv', format_table(listed, ['id', 'reason']))
        if not rows:
            raise UserError(f'{self.files.folder}: not one item was accepted; see {self.partial / "rejected.tsv"}.')
        write_atomic(self.partial / 'finishing', f'{len(rows)} rows\n')
        self._close_gaps([entry['slot'] for entry in rows])
        lengths = self._join_ragged(rows)
        table = [{'id': entry['id'], **entry['row']} for entry in rows]
        write_atomic(self.partial / 'table.tsv', format_table(table, self.columns))
        layout = Layout(self.keys, dict.fromkeys(self.keys, len(rows)),
                        {key: known['total'] for key, known in lengths.items()})
        write_atomic(self._data / 'meta.json', layout.meta())
        facts = self._all_facts(layout, len(rows), len(rejected), lengths)
        write_atomic(self.partial / 'facts.json', json.dumps(facts, indent=1))

    def _join_ragged(self, rows: list[dict[str, tp.Any]]) -> dict[str, dict[str, int]]:
        """Write the files of the ragged keys; return the total, least and largest number of frames of each."""
        known = {}
        for key, spec in self._ragged.items():
            spans = [tuple(entry['parts'][key]) for entry in rows]
            lengths = [length for _, _, length in spans]
            if not any(lengths):
                raise UserError(f'{self.files.folder}: not one item has any frames of "{key}".')
            join_parts(self.partial, self._data, key, spec, spans)
            known[key] = {'total': sum(lengths), 'min': min(lengths), 'max': max(lengths)}
        return known

    def _close_gaps(self, slots: list[int]) -> None:
        for key, spec in self._fixed.items():
            path, size = self._data / f'{key}.memmap', row_bytes(spec)
            if path.stat().st_size == len(slots) * size:
                continue  # there are no gaps, or they were closed before a crash
            if slots[-1] == len(slots) - 1:
                os.truncate(path, len(slots) * size)
                fsync_file(path)
                continue
            packed = path.with_suffix('.packed')
            with open(path, 'rb') as source, open(packed, 'wb') as target:
                for first, last in _runs(slots):
                    copy_bytes(source, target, first * size, last * size)
                target.flush()
                os.fsync(target.fileno())
            os.replace(packed, path)

    def _all_facts(self, layout: Layout, rows: int, rejected: int,
                   lengths: dict[str, dict[str, int]]) -> dict[str, tp.Any]:
        facts = {'schema': SCHEMA, 'rows': rows, 'rejected': rejected, 'keys': describe_keys(self.keys),
                 'columns': self.columns, **({'lengths': lengths} if lengths else {}), **self.facts}
        if 'mean' in self.keys and len(self.keys['mean'][0]) == 2:
            count, spec = layout.file_rows()['mean']
            mean, std = latent_stats(map_tensor(self._data / 'mean.memmap', [count, *frame_shape(spec)], spec[1]))
            facts = {**facts, 'latent_mean': mean.tolist(), 'latent_std': std.tolist()}
        here = StoreFiles(self._data, self.partial / 'table.tsv', self.partial / 'facts.json', self.partial)
        facts['files'] = {name: {'size': path.stat().st_size, 'sha256': sha256_of(path)}
                          for name, path in here.listed(self.keys).items()}
        return facts

    def _publish(self) -> None:
        """Move the parts to their places; whatever was moved before a crash is not there to be moved any more."""
        self.files.folder.parent.mkdir(parents=True, exist_ok=True)
        for path in self._data.glob('*.memmap') if self._data.exists() else ():
            os.chmod(path, 0o444)  # some readers write through what they map
        for source, target in ((self._data, self.files.folder), (self.partial / 'table.tsv', self.files.tsv),
                               (self.partial / 'rejected.tsv', self.files.rejected),
                               (self.partial / 'facts.json', self.files.facts)):
            if source.exists():
                _move(source, target)


def _spec(key: str, spec: KeySpec) -> Spec:
    shape, dtype = tuple(dim if dim is None else int(dim) for dim in spec[0]), spec[1]
    name = str(dtype).removeprefix('torch.')
    dims = shape[1:] if shape[:1] == (None,) else shape
    if name not in DTYPES or not all(dim is not None and dim > 0 for dim in dims) or '/' in key or key.startswith('.'):
        raise ValueError(f'"{key}": {shape} {name} cannot be stored; dims are from 1 on (the first one may be None), '
                         f'dtypes {", ".join(DTYPES)}')
    if key.endswith(OFFSETS):
        raise ValueError(f'"{key}": names that end with "{OFFSETS}" are those of where ragged items begin')
    return shape, DTYPES[name]


def _checked(id: str, key: str, tensor: torch.Tensor, spec: Spec) -> torch.Tensor:
    """The tensor in the dtype of the store; its shape must be right."""
    shape, dtype = spec
    tensor = torch.as_tensor(tensor).detach().cpu()
    if tensor.dim() != len(shape) or any(dim not in (None, found) for dim, found in zip(shape, tensor.shape)):
        raise ValueError(f'item "{id}": "{key}" has shape {list(tensor.shape)}, the store has {list(shape)}')
    if tensor.dtype != dtype and not (tensor.is_floating_point() and dtype.is_floating_point):
        raise ValueError(f'item "{id}": "{key}" is {tensor.dtype}, the store has {dtype}')
    return tensor.to(dtype).contiguous()


def _runs(slots: list[int]) -> tp.Iterator[tuple[int, int]]:
    """Cut ascending numbers into stretches [first, last) without a gap."""
    first = previous = slots[0]
    for slot in slots[1:]:
        if slot != previous + 1:
            yield first, previous + 1
            first = slot
        previous = slot
    yield first, previous + 1


def _move(source: Path, target: Path) -> None:
    """Rename a file or folder, or copy it first when it lies on another disk."""
    try:
        os.replace(source, target)
    except OSError:
        moving = target.with_name(f'{target.name}.moving')
        if source.is_dir():
            shutil.rmtree(moving, ignore_errors=True)
            shutil.copytree(source, moving)
        else:
            shutil.copy2(source, moving)
        os.replace(moving, target)
        shutil.rmtree(source) if source.is_dir() else source.unlink()
    fsync_dir(target.parent)
