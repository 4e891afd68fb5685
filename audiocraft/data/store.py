"""Stores: a table and a folder of memory-mapped tensors, where row i of the one is row i of the others.

A store `NAME` is three things side by side:

- `NAME.tsv`: one row per item: `id`, `caption` (or `label`), and what else there is to say;
- `NAME/`: a TensorDict memory map: `meta.json` and a raw little-endian `KEY.memmap` of `[N, ...]` for each key (of a
  ragged key, the frames of all items; see `layout.py`);
- `NAME.facts.json`: shapes, rates, latent statistics, extractors, size and sha256 of every file. Optional: the
  published stores of MMAudio have the first two only and are read as they are.

Everything is checked before it is mapped, because the usual way to open such a folder repairs a file that was cut by
filling it with zeros on disk, leaves out a key whose file is gone, and unpickles what lies beside. Nothing here writes.
"""
import functools
import json
import math
import mmap
import sys
import typing as tp
from pathlib import Path

import torch

from ..utils.errors import UserError
from ..utils.files import sha256_of
from .layout import (
    DTYPES,
    OFFSETS,
    SCHEMA,
    TENSORDICT_CLASSES,
    TENSORDICT_TYPES,
    Layout,
    Spec,
    StoreFiles,
    describe_keys,
    frame_shape,
    meta_entries,
    ragged_keys,
    read_layout,
    row_bytes,
)
from .manifest import Row, caption_of, iter_table, read_table

_DEBRIS = ('.DS_Store', '.nfs')  # what file managers and network file systems leave behind
_BLOCK_BYTES = 1 << 24
_SHOWN = 10


# -- checks: each yields problems, each of which names a file --------------------------------------------------------

def _read_json(path: Path) -> dict[str, tp.Any]:
    """A JSON object from a file; raises `UserError`."""
    try:
        value = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise UserError(f'{path}: missing.') from None
    except (OSError, ValueError) as error:
        raise UserError(f'{path}: not readable as JSON ({error}).') from None
    if not isinstance(value, dict):
        raise UserError(f'{path}: expected a JSON object, found {type(value).__name__}.')
    return value


def _is_dims(value: tp.Any) -> bool:
    return isinstance(value, list) and all(type(dim) is int and dim > 0 for dim in value)


def _meta_problems(meta: dict[str, tp.Any], path: Path) -> tp.Iterator[str]:
    """Refuse anything but plain tensors in a plain TensorDict: other types are loaded by running code."""
    if meta.get('_type', TENSORDICT_TYPES[0]) not in TENSORDICT_TYPES:
        yield f'{path}: "_type" is {meta["_type"]!r}; only a plain TensorDict is read.'
    if meta.get('_class', TENSORDICT_CLASSES[0]) not in TENSORDICT_CLASSES:
        yield f'{path}: "_class" is {meta["_class"]!r}; only a plain TensorDict is read.'
    entries = meta_entries(meta)
    if not entries:
        yield f'{path}: names no tensors.'
    for key, entry in entries.items():
        if not isinstance(entry, dict) or '/' in key or key.startswith('.'):
            yield f'{path}: entry {key!r} does not describe a tensor.'
        elif not _is_dims(entry.get('shape')) or not entry['shape']:
            yield f'{path}: the shape of "{key}" is {entry.get("shape")!r}, expected [rows, ...], none of them 0.'
        elif str(entry.get('dtype', '')).removeprefix('torch.') not in DTYPES:
            yield f'{path}: the dtype of "{key}" is {entry.get("dtype")!r}, expected one of {", ".join(DTYPES)}.'
        elif entry.get('is_nested'):
            yield f'{path}: "{key}" is a nested tensor, which is not read.'


def _file_problems(files: StoreFiles, layout: Layout) -> tp.Iterator[str]:
    found = layout.file_rows()
    for name, (rows, spec) in found.items():
        path, expected = files.memmap(name), rows * row_bytes(spec)
        if not path.is_file():
            yield f'{path}: missing, but meta.json describes it.'
        elif path.stat().st_size != expected:
            yield (f'{path}: {path.stat().st_size} bytes, expected {expected} '
                   f'({rows} rows of {row_bytes(spec)} bytes by meta.json).')
        elif name.removesuffix(OFFSETS) in layout.totals and name not in layout.keys:
            yield from _offset_problems(path, rows, layout.totals[name.removesuffix(OFFSETS)])
    known = {'meta.json', *(f'{name}.memmap' for name in found)}
    for path in sorted(files.folder.iterdir()):
        if path.name.endswith(('.pickle', '.pkl')):
            yield f'{path}: a pickle can run code when it is loaded; it does not belong in a store. Remove it.'
        elif path.name not in known and not path.name.startswith(_DEBRIS):
            yield f'{path}: not part of the store (meta.json does not name it). Remove it.'
    if len(set(layout.rows.values())) > 1:
        yield f'{files.folder / "meta.json"}: the tensors have different numbers of rows: {layout.rows}.'


def _offset_problems(path: Path, count: int, total: int) -> tp.Iterator[str]:
    """Where items begin must be ascending numbers from 0 to the number of frames: everything is read by them."""
    offsets = map_tensor(path, [count], torch.int64)
    back = (offsets.diff() < 0).nonzero().flatten()
    if offsets[0] != 0:
        yield f'{path}: the first item begins at {int(offsets[0])}, not at 0.'
    elif len(back):
        yield f'{path}: item {int(back[0])} (counted from 0) ends before it begins.'
    elif offsets[-1] != total:
        yield f'{path}: the last item ends at {int(offsets[-1])}, but there are {total} frames.'


def _table_problems(files: StoreFiles, rows: int) -> tp.Iterator[str]:
    try:
        ids = [row['id'] for _, row in iter_table(files.tsv, required=['id'])]
    except UserError as error:
        yield str(error)
        return
    if len(ids) != rows:
        yield f'{files.tsv}: {len(ids)} rows, but the tensors in {files.folder} have {rows}.'
    if '' in ids:
        yield f'{files.tsv}: row {ids.index("")} (counted from 0) has an empty id.'


def _facts_problems(files: StoreFiles, keys: dict[str, Spec], rows: int, deep: bool) -> tp.Iterator[str]:
    """What the facts say against what there is; nothing to say when there are no facts."""
    if not files.facts.exists():
        return
    facts = _read_json(files.facts)
    if not isinstance(facts.get('schema'), int) or facts['schema'] > SCHEMA:
        yield f'{files.facts}: "schema" is {facts.get("schema")!r}, but this version reads up to {SCHEMA}.'
        return
    if facts.get('rows') != rows:
        yield f'{files.facts}: "rows" is {facts.get("rows")!r}, but the tensors have {rows}.'
    found = describe_keys(keys)
    if facts.get('keys') != found:
        yield f'{files.facts}: "keys" is {facts.get("keys")!r}, but meta.json says {found!r}.'
    listed = files.listed(keys)
    records = facts.get('files')
    if not isinstance(records, dict) or not all(isinstance(record, dict) for record in records.values()):
        yield f'{files.facts}: "files" should give size and sha256 of every file.'
        return
    for name in listed.keys() - records.keys():
        yield f'{files.facts}: "files" does not name {listed[name]}.'
    for name, path in listed.items():
        record = records.get(name)
        if record and path.is_file():
            size = path.stat().st_size
            if size != record.get('size'):
                yield f'{path}: {size} bytes, but {files.facts.name} says {record.get("size")}.'
            elif deep and sha256_of(path) != record.get('sha256'):
                yield f'{path}: its content changed since it was written (sha256 differs from {files.facts.name}).'


def _inspect(files: StoreFiles, deep: bool = False) -> tuple[list[str], Layout]:
    """All problems of a store, and its layout (empty when `meta.json` is no good)."""
    nothing = Layout({}, {})
    if not files.folder.is_dir():
        hint = ' (its writing has not finished)' if files.is_unfinished else ''
        return [f'{files.folder}: there is no such store{hint}.'], nothing
    path = files.folder / 'meta.json'
    try:
        meta = _read_json(path)
    except UserError as error:
        return [str(error)], nothing
    problems = list(_meta_problems(meta, path))
    if problems:
        return problems, nothing
    layout = read_layout(meta)
    rows = min(layout.rows.values())
    problems += [*_file_problems(files, layout), *_table_problems(files, rows)]
    try:
        problems += _facts_problems(files, layout.keys, rows, deep)
    except UserError as error:
        problems.append(str(error))
    return problems, layout


def check_store(path: str | Path, deep: bool = False) -> list[str]:
    """Return what is wrong with a store, one line per problem, each with the name of the file; [] when it is sound.

    Only reads. `deep` also compares every sha256 and looks for rows with NaN or infinities.
    """
    files = StoreFiles.at(path)
    problems, _ = _inspect(files, deep)
    if problems or not deep:
        return problems
    store = Store(path)
    return [problem for key in store.keys for problem in _row_problems(store, key)]


def _row_problems(store: 'Store', key: str) -> tp.Iterator[str]:
    tensor = store.tensors[key]
    if not tensor.is_floating_point() or not tensor.numel():
        return
    bad = [start + int(row) for start, block in blocks(tensor)
           for row in (~block.reshape(len(block), -1).isfinite().all(1)).nonzero()]
    if key in store.offsets:
        ends = store.offsets[key][1:].contiguous()
        bad = sorted({int(torch.searchsorted(ends, frame, right=True)) for frame in bad})
    for row in bad[:_SHOWN]:
        yield f'{store.files.memmap(key)}: row {row} (id "{store.ids[row]}") is not finite.'
    if len(bad) > _SHOWN:
        yield f'{store.files.memmap(key)}: {len(bad) - _SHOWN} more rows are not finite.'


def blocks(tensor: torch.Tensor) -> tp.Iterator[tuple[int, torch.Tensor]]:
    """Cut `[N, ...]` into (first row, rows) of about 16 MiB, so that a pass over it needs little memory."""
    size = max(1, _BLOCK_BYTES // max(1, row_bytes((tuple(tensor.shape[1:]), tensor.dtype))))
    for start in range(0, len(tensor), size):
        yield start, tensor[start:start + size]


# -- reading ---------------------------------------------------------------------------------------------------------

def map_tensor(path: Path, shape: tp.Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Map a raw file as a tensor, from which nothing can be written back.

    A write through the tensor goes to a private copy of the page. On Linux the mapping reserves no memory, so a store
    may be larger than the machine.
    """
    if math.prod(shape) == 0:
        return torch.empty(*shape, dtype=dtype)
    with open(path, 'rb') as file:
        if sys.platform == 'linux':
            flags = mmap.MAP_PRIVATE | getattr(mmap, 'MAP_NORESERVE', 0x4000)
            area = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        else:
            area = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return torch.frombuffer(area, dtype=dtype, count=math.prod(shape)).view(*shape)


class Store:
    """One store, checked and mapped read-only.

    Args:
        path (str or Path): `DIR/NAME` (or one of its files).
    Attributes:
        keys (dict): name -> (shape of an item, dtype); the first dim of a ragged key is None.
        facts (dict or None): the content of `NAME.facts.json`.
        tensors (dict): name -> `[N, ...]`, memory-mapped; of a ragged key, the frames of all items `[total, ...]`.
        offsets (dict): ragged key -> where each item begins, and the last one ends, int64 `[N + 1]`.
    Raises:
        UserError: listing everything that is wrong, with file names.
    """

    def __init__(self, path: str | Path):
        self.files = StoreFiles.at(path)
        problems, layout = _inspect(self.files)
        if problems and not self.files.folder.is_dir():
            raise UserError(problems[0])
        if problems:
            listed = ''.join(f'\n  - {problem}' for problem in problems)
            raise UserError(f'The store {self.files.folder} is not sound, so nothing was read from it:{listed}')
        self.facts = _read_json(self.files.facts) if self.files.facts.exists() else None
        self.keys, self._rows = layout.keys, min(layout.rows.values())
        mapped = {name: map_tensor(self.files.memmap(name), [rows, *frame_shape(spec)], spec[1])
                  for name, (rows, spec) in layout.file_rows().items()}
        self.tensors = {key: mapped[key] for key in self.keys}
        self.offsets = {key: mapped[key + OFFSETS] for key in ragged_keys(self.keys)}

    @property
    def name(self) -> str:
        """The name of the store, without its folder."""
        return self.files.folder.name

    def __len__(self) -> int:
        return self._rows

    def __repr__(self) -> str:
        return f'Store({str(self.files.folder)!r}, {len(self)} rows, keys: {", ".join(self.keys)})'

    def lengths(self, key: str) -> torch.Tensor:
        """Frames of each item of a ragged key, int64 `[N]`."""
        if key not in self.offsets:
            raise KeyError(f'{self.files.folder}: "{key}" is not one of the ragged keys ({", ".join(self.offsets)})')
        return self.offsets[key].diff()

    def item(self, key: str, row: int) -> torch.Tensor:
        """The tensor of one item, without a copy: of the shape of the key, a ragged one with all its frames."""
        if key not in self.offsets:
            return self.tensors[key][row]
        start, stop = self.offsets[key][range(self._rows)[row]:][:2].tolist()
        return self.tensors[key][start:stop]

    @functools.cached_property
    def rows(self) -> list[Row]:
        """The rows of the table; all values are text."""
        return read_table(self.files.tsv, required=['id'])

    @functools.cached_property
    def ids(self) -> list[str]:
        """The id of each row."""
        return [row['id'] for row in self.rows]

    @functools.cached_property
    def captions(self) -> list[str]:
        """The caption (or label) of each row, '' where the table has none."""
        return [caption_of(row) for row in self.rows]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in (*self.tensors.values(), *self.offsets.values()))

    def latent_stats(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and unbiased deviation `[D]` of the latent means, from the facts or else over all rows and times."""
        if self.facts and 'latent_mean' in self.facts:
            return torch.tensor(self.facts['latent_mean']), torch.tensor(self.facts['latent_std'])
        if 'mean' not in self.tensors:
            raise UserError(f'{self.files.folder} has no key "mean", so there are no statistics of latents.')
        return latent_stats(self.tensors['mean'])


def latent_stats(latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and unbiased standard deviation over items and time.

    Blocks are merged in double precision (Chan et al. 1983, "Algorithms for computing the sample variance").

    Args:
        latents (Tensor): `[N, T, D]`, or the frames of all items `[total, D]`.
    Returns:
        two tensors `[D]`, float32.
    """
    count, mean, squares = 0, torch.zeros(latents.shape[-1]).double(), torch.zeros(latents.shape[-1]).double()
    for _, block in blocks(latents):
        values = block.reshape(-1, latents.shape[-1]).double()
        delta = values.mean(0) - mean
        total = count + len(values)
        squares += (values - values.mean(0)).square().sum(0) + delta.square() * (count * len(values) / total)
        mean, count = mean + delta * (len(values) / total), total
    if count < 2:
        raise UserError(f'Statistics of latents need at least 2 values, there are {count}.')
    return mean.float(), (squares / (count - 1)).sqrt().float()
