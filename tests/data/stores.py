"""Small stores for the tests of everything that reads them."""
import typing as tp
from pathlib import Path

import pytest
import torch

from audiocraft.data.store import Store
from audiocraft.data.store_writer import StoreWriter

AUDIO = {'mean': ((4, 3), 'float32'), 'std': ((4, 3), 'float32'), 'text_features': ((5, 6), 'float32')}
VIDEO = {**AUDIO, 'clip_features': ((3, 6), 'float32'), 'sync_features': ((8, 7), 'float32')}
RAGGED = {'mean': ((None, 3), 'float32'), 'text_features': ((5, 6), 'float32'), 'codes': ((None, 4), 'int16')}
FACTS = {'sample_rate': 16000, 'frame_rate': 31.25, 'duration': 4.}


def frames(seed: int) -> int:
    """How long the ragged tensors of an item are: 1 to 7 frames."""
    return 1 + seed * 5 % 7


def item(keys: dict, seed: int) -> dict[str, torch.Tensor]:
    """Random tensors, a function of the seed; `mean[0, 0]` is the seed."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {key: torch.randn(*(frames(seed) if dim is None else dim for dim in shape), generator=generator)
               for key, (shape, _) in keys.items()}
    tensors['mean'][0, 0] = seed
    if 'codes' in tensors:
        tensors['codes'] = (100 * tensors['codes']).to(torch.int16)
    return tensors


def writer(path: Path, *, keys: dict = VIDEO, rows: int = 8, first: int = 0, **kwargs) -> StoreWriter:
    """A writer for `rows` items with ids like `00000003`."""
    ids = [f'{first + i:08d}' for i in range(rows)]
    return StoreWriter(path, keys=keys, ids=ids, facts=FACTS, columns=['caption', 'duration'], **kwargs)


def add(target: StoreWriter, number: int) -> bool:
    """Add item `number` to a store."""
    return target.add(f'{number:08d}', {'caption': f'sound "{number}"', 'duration': 4.}, item(target.keys, number))


def make(path: Path, *, keys: dict = VIDEO, rows: int = 8, first: int = 0) -> Store:
    """A finished store, whose rows hold the numbers from `first` on."""
    target = writer(path, keys=keys, rows=rows, first=first)
    for number in range(first, first + rows):
        add(target, number)
    return target.finish()


def crash(patched: pytest.MonkeyPatch, at: int, *points: tuple[tp.Any, str]) -> None:
    """Make call number `at` of the functions `(module, name)`, counted together, end the process that makes it."""
    calls = []

    def counted(function: tp.Callable) -> tp.Callable:
        def wrapper(*args: tp.Any, **kwargs: tp.Any) -> tp.Any:
            calls.append(function)
            if len(calls) == at:
                raise KeyboardInterrupt
            return function(*args, **kwargs)
        return wrapper

    for module, name in points:
        patched.setattr(module, name, counted(getattr(module, name)))
