"""Weights in the files of others: read without running code, and without reading more than is asked for."""

import functools
import re
import typing as tp
import zipfile
from pathlib import Path

import numpy as np
import safetensors
import torch
from torch.overrides import TorchFunctionMode

from ...utils.checkpoint import State, read_tensors
from ...utils.errors import UserError

SUFFIXES = ('.pth', '.pt', '.bin', '.ckpt', '.safetensors')
# Where the weights are in files that hold more than weights.
NESTED = ('generator', 'weights', 'state_dict', 'model', 'best_state')
Shapes = dict[str, tuple[int, ...]]
# Numbers of numpy, such as a loss beside the weights: they are rebuilt from their bytes.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMBERS: list[tp.Any] = [
    (_SCALAR, 'numpy.core.multiarray.scalar'), (_SCALAR, 'numpy._core.multiarray.scalar'), np.dtype,
    *(type(np.dtype(kind)) for kind in ('f8', 'f4', 'i8', 'i4', '?'))]
_DRAWN = {torch.Tensor.uniform_, torch.Tensor.normal_, torch.nn.init.uniform_, torch.nn.init.normal_,
          torch.nn.init.kaiming_uniform_}


class Undrawn(TorchFunctionMode):
    """Within this context, modules are made without drawing their weights, which are about to be loaded.

    For a billion weights drawing takes longer than reading them. Buffers that are computed are computed.
    """

    def __torch_function__(self, func: tp.Any, types: tp.Any, args: tp.Any = (), kwargs: tp.Any = None) -> tp.Any:
        kwargs = kwargs or {}
        if func in _DRAWN:
            return args[0] if args else kwargs['tensor']
        return func(*args, **kwargs)


def read_file(path: str | Path) -> tp.Any:
    """What `torch.save` wrote, on the CPU; tensors are read from disk when they are used, where the format allows it.

    Raises:
        UserError: it is missing, damaged, or holds pickled objects, which could run code.
    """
    path = Path(path)
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            return torch.load(path, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError:
        raise UserError(f'There is no {path}.') from None
    except Exception as error:  # what torch raises for a damaged or hostile file is of many kinds
        if 'weights_only' in str(error) or 'WeightsUnpickler' in str(error):
            found = re.search(r'GLOBAL (\S+)', str(error))
            what = f'pickled objects ({found[1]})' if found else 'pickled objects'
            raise UserError(f'{path} holds {what}, which could run code and are not loaded. Where the file was made, '
                            'save the weights alone: torch.save(model.state_dict(), ...).') from error
        raise UserError(f'Cannot read {path}: {(str(error) or type(error).__name__).splitlines()[0]}') from error


def _is_state(value: tp.Any) -> bool:
    return isinstance(value, tp.Mapping) and any(isinstance(tensor, torch.Tensor) for tensor in value.values())


def _entries(content: tp.Any) -> tp.Mapping[tp.Any, tp.Any]:
    return content if isinstance(content, tp.Mapping) else {}


def state_in(content: tp.Any, path: str | Path) -> tuple[State, list[str]]:
    """The state dict in what a file holds, itself or under one of `NESTED`, and the names of its other entries.

    Raises:
        UserError: there is none.
    """
    entries = _entries(content)
    place = next((key for key in NESTED if _is_state(entries.get(key))), None)
    found = entries if place is None else entries[place]
    if not _is_state(found):
        what = ', '.join(map(str, entries)) or type(content).__name__
        raise UserError(f'{path} holds no weights: a dict of tensors was expected, or one under '
                        f'{", ".join(NESTED)}; it has {what[:200]}.')
    tensors = {str(key): value for key, value in found.items() if isinstance(value, torch.Tensor)}
    others = [] if place is None else [str(key) for key in entries if key != place]
    return tensors, [*others, *(str(key) for key in found if str(key) not in tensors)]


def read_state(path: str | Path) -> State:
    """The weights in a file: safetensors, or a state dict that `torch.save` wrote, under one of `NESTED` or alone.

    Raises:
        UserError: it cannot be read, or there are none in it.
    """
    if Path(path).suffix == '.safetensors':
        return read_tensors(path)
    return state_in(read_file(path), path)[0]


def shapes_of(path: str | Path) -> Shapes:
    """The names and shapes of the weights in a file; {} for a file that is none of weights. Cheap, and kept.

    Raises:
        UserError: it is one by its name, but cannot be read.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES or not path.is_file():
        return {}
    facts = path.stat()
    return _shapes(path, facts.st_mtime_ns, facts.st_size)


@functools.lru_cache(maxsize=16)
def _shapes(path: Path, changed: int, size: int) -> Shapes:
    if path.suffix == '.safetensors':
        try:
            with safetensors.safe_open(str(path), framework='pt') as file:
                return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f'Cannot read the weights in {path}: {error}') from error
    content = read_file(path)
    try:
        return {name: tuple(tensor.shape) for name, tensor in state_in(content, path)[0].items()}
    except UserError:
        return {}
