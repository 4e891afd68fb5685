"""Weights in the files of others: read without running code, and without reading more than is asked for."""

import functools
import re
import typing as tp
import zipfile
from pathlib import Path

import numpy as np
import safetensors
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ...utils.checkpoint import State, read_tensors
from ...utils.errors import UserError

SUFFIXES = ('.pth', '.pt', '.bin', '.ckpt', '.safetensors')
# Where the weights are in files that hold more than weights.
NESTED = ('generator', 'weights', 'state_dict', 'model', 'best_state')
Shapes = dict[str, tuple[int, ...]]
M = tp.TypeVar('M', bound=nn.Module)
_OTHER_SHAPE = re.compile(r'size mismatch for (\S+): .*torch\.Size\((.*?)\).*torch\.Size\((.*?)\).*')
# Numbers of numpy, such as a loss beside the weights: they are rebuilt from their bytes.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMBERS: list[tp.Any] = [
    (_SCALAR, 'numpy.core.multiarray.scalar'), (_SCALAR, 'numpy._core.multiarray.scalar'), np.dtype,
    *(type(np.dtype(kind)) for kind in ('f8', 'f4', 'i8', 'i4', '?'))]
_DRAWN = {torch.Tensor.uniform_, torch.Tensor.normal_, torch.nn.init.uniform_, torch.nn.init.normal_,
          torch.nn.init.kaiming_uniform_}


class Pickled(UserError):
    """A file holds objects that could run code."""


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
    """What `torch.save` wrote, or the tensors of a .safetensors, on the CPU.

    Tensors of `torch.save` are read from disk when they are used, where the format allows it.

    Raises:
        UserError: it is missing, damaged, or holds pickled objects, which could run code.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f'There is no file {path}.')
    if path.suffix == '.safetensors':
        return read_tensors(path)
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            return torch.load(path, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # what torch raises for a damaged or hostile file is of many kinds
        if found := re.search(r'GLOBAL (\S+)', str(error)):
            raise Pickled(f'{path} holds pickled objects ({found[1]}), which could run code and are not loaded. Where '
                          'the file was made, save the weights alone: torch.save(model.state_dict(), ...).') from error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if reason.startswith('Weights only load failed') or ' ' not in reason:  # of a text file, torch says "101"
            reason = 'torch.save did not write it'
        raise UserError(f'Cannot read {path}: {reason}') from error


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
    return state_in(read_file(path), path)[0]


def load_strict(model: M, state: tp.Mapping[str, torch.Tensor], path: str | Path, *, assign: bool = False) -> M:
    """Load weights from a file into a model whose names and shapes are exactly theirs, and return the model.

    Args:
        model (nn.Module): where they go.
        state (dict): the weights.
        path (str or Path): where they come from, for the message.
        assign (bool): they take the place of the model's own tensors (of another dtype, on the meta device), and are
            not copied: those of a mapped file stay on the disk until they are used.
    Raises:
        UserError: they differ; the first few differences are named.
    """
    try:
        missing, unknown = model.load_state_dict(state, strict=False, assign=assign)
        problems = [f'{word} {_some(names)}' for word, names in (('lacks', missing), ('has besides', unknown)) if names]
    except RuntimeError as error:  # other shapes, one a line
        lines = [_OTHER_SHAPE.sub(r'\1 \2 instead of \3', line.strip()) for line in str(error).splitlines()[1:]]
        problems = [f'has {_some(lines)}']
    if problems:
        raise UserError(f'{path} does not fit {type(model).__name__}: it {"; it ".join(problems)}.')
    return model


def _some(names: tp.Iterable[str]) -> str:
    listed = sorted(names)
    return ', '.join(listed[:3]) + (f' and {len(listed) - 3} more' if len(listed) > 3 else '')


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
