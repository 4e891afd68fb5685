"""Stores: a table and a folder of memory-mapped tensors, where row i of the one is row i of the others.

A store `NAME` is three things side by side:

- `NAME.tsv`: one row per item: `id`, `caption` (or `label`), and what else there is to say;
- `NAME/`: a TensorDict memory map: `meta.json` and a raw little-endian `KEY.memmap` of `[N, ...]` for each key;
- `NAME.facts.json`: shapes, rates, latent statistics, extractors, size and sha256 of every file. Optional: the
  published stores of MMAudio have the first two only and are read as they are.

Everything is checked before it is mapped, because the usual way to open such a folder repairs a file that was cut by
filling it with zeros on disk, leaves out a key whose file is gone, and unpickles what lies beside. Nothing here writes.
"""
import dataclasses
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
from .manifest import Row, caption_of, iter_table, read_table

SCHEMA = 1
Spec = tuple[tuple[int, ...], torch.dtype]
DTYPES = {str(dtype).removeprefix('torch.'): dtype for dtype in (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool)}
_TENSORDICT_CLASSES = ('tensordict:TensorDict', 'tensordict._td:TensorDict')
_TENSORDICT_TYPES = ("<class 'tensordict._td.TensorDict'>", "<class 'tensordict.tensordict.TensorDict'>")
_META_FIELDS = ('shape', 'device', '_type', '_format_version', '_class')
_DEBRIS = ('.DS_Store', '.nfs')  # what file managers and network file systems leave behind
_BLOCK_BYTES = 1 << 24
_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class StoreFiles:
    """Where the parts of a store are. Any of the parts, or the name alone, may be given as the path."""
    folder: Path
    tsv: Path
    facts: Path
    rejected: Path

    @classmethod
    def at(cls, path: str | Path) -> 'StoreFiles':
        """Find the parts from `DIR/NAME`, `DIR/NAME/`, `DIR/NAME.tsv` or `DIR/NAME.facts.json`."""
        base = Path(path)
        if not base.is_dir():
            for suffix in ('.rejected.tsv', '.tsv', '.facts.json'):
                if base.name.endswith(suffix):
                    base = base.with_name(base.name.removesuffix(suffix))
                    break
        beside = lambda suffix: base.with_name(base.name + suffix)  # noqa: E731
        return cls(base, beside('.tsv'), beside('.facts.json'), beside('.rejected.tsv'))

    def memmap(self, key: str) -> Path:
        """The file of one tensor."""
        return self.folder / f'{key}.memmap'

    def listed(self, keys: tp.Iterable[str]) -> dict[str, Path]:
        """The files that the facts describe, under names that outlive a renamed store."""
        inside = {f'{key}.memmap': self.memmap(key) for key in keys}
        return {'.tsv': self.tsv, 'meta.json': self.folder / 'meta.json', **inside}


def row_bytes(spec: Spec) -> int:
    """Bytes of one row of a tensor."""
    shape, dtype = spec
    return math.prod(shape) * dtype.itemsize


def make_meta(keys: tp.Mapping[str, Spec], rows: int) -> str:
    """The text of `meta.json`, as tensordict writes it."""
    entries: dict[str, tp.Any] = {
        key: {'device': 'cpu', 'shape': [rows, *shape], 'dtype': str(dtype), 'is_nested': False}
        for key, (shape, dtype) in keys.items()}
    return json.dumps({**entries, 'shape': [], 'device': 'cpu', '_type': _TENSORDICT_TYPES[0], '_format_version': 1,
                       '_class': _TENSORDICT_CLASSES[0]})


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
    if meta.get('_type', _TENSORDICT_TYPES[0]) not in _TENSORDICT_TYPES:
        yield f'{path}: "_type" is {meta["_type"]!r}; only a plain TensorDict is read.'
    if meta.get('_class', _TENSORDICT_CLASSES[0]) not in _TENSORDICT_CLASSES:
        yield f'{path}: "_class" is {meta["_class"]!r}; only a plain TensorDict is read.'
    entries = {key: value for key, value in meta.items() if key not in _META_FIELDS}
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


def _specs(meta: dict[str, tp.Any]) -> tuple[dict[str, Spec], dict[str, int]]:
    """Item shapes and dtypes, and the number of rows, of each key of a sound `meta.json`."""
    entries = {key: value for key, value in meta.items() if key not in _META_FIELDS}
    keys = {key: (tuple(entry['shape'][1:]), DTYPES[entry['dtype'].removeprefix('torch.')])
            for key, entry in entries.items()}
    return keys, {key: entry['shape'][0] for key, entry in entries.items()}


def _file_problems(files: StoreFiles, keys: dict[str, Spec], rows: dict[str, int]) -> tp.Iterator[str]:
    for key, spec in keys.items():
        path, expected = files.memmap(key), rows[key] * row_bytes(spec)
        if not path.is_file():
            yield f'{path}: missing, but meta.json describes it.'
        elif path.stat().st_size != expected:
            yield (f'{path}: {path.stat().st_size} bytes, expected {expected} '
                   f'({rows[key]} rows of {row_bytes(spec)} bytes by meta.json).')
    known = {'meta.json', *(f'{key}.memmap' for key in keys)}
    for path in sorted(files.folder.iterdir()):
        if path.name.endswith(('.pickle', '.pkl')):
            yield f'{path}: a pickle can run code when it is loaded; it does not belong in a store. Remove it.'
        elif path.name not in known and not path.name.startswith(_DEBRIS):
            yield f'{path}: not part of the store (meta.json does not name it). Remove it.'
    if len(set(rows.values())) > 1:
        yield f'{files.folder / "meta.json"}: the tensors have different numbers of rows: {rows}.'


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


def describe_keys(keys: tp.Mapping[str, Spec]) -> dict[str, dict[str, tp.Any]]:
    """Item shapes and dtypes in plain words, as the facts hold them."""
    return {key: {'shape': list(shape), 'dtype': str(dtype).removeprefix('torch.')}
            for key, (shape, dtype) in keys.items()}


def _inspect(files: StoreFiles, deep: bool = False) -> tuple[list[str], dict[str, Spec], int]:
    """All problems of a store, its keys and its number of rows (both empty when `meta.json` is no good)."""
    if not files.folder.is_dir():
        hint = ' (its writing has not finished)' if files.folder.with_name(files.folder.name + '.partial').exists() \
            else ''
        return [f'{files.folder}: there is no such store{hint}.'], {}, 0
    path = files.folder / 'meta.json'
    try:
        meta = _read_json(path)
    except UserError as error:
        return [str(error)], {}, 0
    problems = list(_meta_problems(meta, path))
    if problems:
        return problems, {}, 0
    keys, counts = _specs(meta)
    rows = min(counts.values())
    problems += [*_file_problems(files, keys, counts), *_table_problems(files, rows)]
    try:
        problems += _facts_problems(files, keys, rows, deep)
    except UserError as error:
        problems.append(str(error))
    return problems, keys, rows


def check_store(path: str | Path, deep: bool = False) -> list[str]:
    """Return what is wrong with a store, one line per problem, each with the name of the file; [] when it is sound.

    Only reads. `deep` also compares every sha256 and looks for rows with NaN or infinities.
    """
    files = StoreFiles.at(path)
    problems, _, _ = _inspect(files, deep)
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
        keys (dict): name -> (shape of an item, dtype).
        facts (dict or None): the content of `NAME.facts.json`.
        tensors (dict): name -> `[N, ...]`, memory-mapped.
    Raises:
        UserError: listing everything that is wrong, with file names.
    """

    def __init__(self, path: str | Path):
        self.files = StoreFiles.at(path)
        problems, self.keys, self._rows = _inspect(self.files)
        if problems:
            listed = ''.join(f'\n  - {problem}' for problem in problems)
            raise UserError(f'The store {self.files.folder} is not sound, so nothing was read from it:{listed}')
        self.facts = _read_json(self.files.facts) if self.files.facts.exists() else None
        self.tensors = {key: map_tensor(self.files.memmap(key), [self._rows, *shape], dtype)
                        for key, (shape, dtype) in self.keys.items()}

    @property
    def name(self) -> str:
        """The name of the store, without its folder."""
        return self.files.folder.name

    def __len__(self) -> int:
        return self._rows

    def __repr__(self) -> str:
        return f'Store({str(self.files.folder)!r}, {len(self)} rows, keys: {", ".join(self.keys)})'

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
        return len(self) * sum(row_bytes(spec) for spec in self.keys.values())

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
        latents (Tensor): `[N, T, D]`.
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
