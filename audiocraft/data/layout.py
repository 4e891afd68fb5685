"""What lies where in a store: its files, the shapes and dtypes of its keys, and `meta.json`.

A key has the shape of an item, `(250, 20)`. A ragged key, `(None, 4)`, has another number of frames in each item: its
file holds the frames of all items one after the other, `[total, 4]`, and `KEY_offsets.memmap` says where each begins,
int64 `[N + 1]`. Both are plain tensors for others who read the folder.
"""
import dataclasses
import json
import math
import typing as tp
from pathlib import Path

import torch

SCHEMA = 1
Spec = tuple[tuple[int | None, ...], torch.dtype]
DTYPES = {str(dtype).removeprefix('torch.'): dtype for dtype in (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool)}
OFFSETS = '_offsets'
TENSORDICT_CLASSES = ('tensordict:TensorDict', 'tensordict._td:TensorDict')
TENSORDICT_TYPES = ("<class 'tensordict._td.TensorDict'>", "<class 'tensordict.tensordict.TensorDict'>")
_META_FIELDS = ('shape', 'device', '_type', '_format_version', '_class')


def is_ragged(spec: Spec) -> bool:
    """Whether items of this key differ in their number of frames."""
    return bool(spec[0]) and spec[0][0] is None


def frame_shape(spec: Spec) -> tuple[int, ...]:
    """The shape of one row of the file: of an item, or of a frame where the key is ragged."""
    return tuple(dim for dim in spec[0] if dim is not None)


def row_bytes(spec: Spec) -> int:
    """Bytes of one row of the file: of an item, or of a frame where the key is ragged."""
    return math.prod(frame_shape(spec)) * spec[1].itemsize


def ragged_keys(keys: tp.Mapping[str, Spec]) -> list[str]:
    """The keys that are ragged."""
    return [key for key, spec in keys.items() if is_ragged(spec)]


def describe_keys(keys: tp.Mapping[str, Spec]) -> dict[str, dict[str, tp.Any]]:
    """Item shapes and dtypes in plain words, as the facts hold them; the first dim of a ragged key is null."""
    return {key: {'shape': list(shape), 'dtype': str(dtype).removeprefix('torch.')}
            for key, (shape, dtype) in keys.items()}


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

    @property
    def is_unfinished(self) -> bool:
        """Whether the store is being written, or its writing was stopped."""
        return not self.folder.exists() and self.folder.with_name(f'{self.folder.name}.partial').exists()

    def memmap(self, key: str) -> Path:
        """The file of one tensor."""
        return self.folder / f'{key}.memmap'

    def listed(self, keys: tp.Mapping[str, Spec]) -> dict[str, Path]:
        """The files that the facts describe, under names that outlive a renamed store."""
        inside = [file for key, spec in keys.items() for file in (key, *([key + OFFSETS] if is_ragged(spec) else []))]
        return {'.tsv': self.tsv, 'meta.json': self.folder / 'meta.json',
                **{f'{name}.memmap': self.memmap(name) for name in inside}}


@dataclasses.dataclass(frozen=True)
class Layout:
    """The tensors of a store.

    Args:
        keys (dict): name -> (shape of an item, dtype).
        rows (dict): name -> number of items.
        totals (dict): name of a ragged key -> frames of all items together.
    """
    keys: dict[str, Spec]
    rows: dict[str, int]
    totals: dict[str, int] = dataclasses.field(default_factory=dict)

    def file_rows(self) -> dict[str, tuple[int, Spec]]:
        """Rows of each file, by the name of its tensor, and what a row is."""
        found: dict[str, tuple[int, Spec]] = {}
        for key, spec in self.keys.items():
            found[key] = self.totals.get(key, self.rows[key]), spec
            if key in self.totals:
                found[key + OFFSETS] = self.rows[key] + 1, ((), torch.int64)
        return found

    def meta(self) -> str:
        """The text of `meta.json`, as tensordict writes it."""
        entries: dict[str, tp.Any] = {
            name: {'device': 'cpu', 'shape': [rows, *frame_shape(spec)], 'dtype': str(spec[1]), 'is_nested': False}
            for name, (rows, spec) in self.file_rows().items()}
        return json.dumps({**entries, 'shape': [], 'device': 'cpu', '_type': TENSORDICT_TYPES[0],
                           '_format_version': 1, '_class': TENSORDICT_CLASSES[0]})


def meta_entries(meta: tp.Mapping[str, tp.Any]) -> dict[str, tp.Any]:
    """What describes tensors in `meta.json`."""
    return {key: value for key, value in meta.items() if key not in _META_FIELDS}


def read_layout(meta: tp.Mapping[str, tp.Any]) -> Layout:
    """The tensors of a sound `meta.json`; `X` is ragged where there is an int64 `X_offsets` of one dim."""
    entries = meta_entries(meta)
    shapes = {key: tuple(entry['shape']) for key, entry in entries.items()}
    dtypes = {key: DTYPES[entry['dtype'].removeprefix('torch.')] for key, entry in entries.items()}
    ragged = [key for key in entries if len(shapes.get(key + OFFSETS, ())) == 1
              and dtypes[key + OFFSETS] == torch.int64]
    offsets = {key + OFFSETS for key in ragged}
    keys: dict[str, Spec] = {key: ((None, *shape[1:]) if key in ragged else shape[1:], dtypes[key])
                             for key, shape in shapes.items() if key not in offsets}
    rows = {key: shapes[key + OFFSETS][0] - 1 if key in ragged else shapes[key][0] for key in keys}
    return Layout(keys, rows, {key: shapes[key][0] for key in ragged})
