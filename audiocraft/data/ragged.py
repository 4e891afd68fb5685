"""Reading ragged keys: items of any length, padded to the longest of a batch, in memory that is used again."""
import dataclasses
import typing as tp

import numpy as np
import torch

from ..utils.errors import UserError
from ..utils.random import seed_of
from .layout import Spec, frame_shape, ragged_keys, row_bytes
from .store import Store

_GROWTH = 1.25
_WORDS: dict[int, tp.Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def as_words(tensor: torch.Tensor) -> np.ndarray:
    """A tensor `[N, ...]` as whole numbers `[N, values of a row]` of the same bytes, without a copy."""
    size = tensor[:1].numel() if tensor.dim() > 1 else 1
    return tensor.reshape(len(tensor), size).view(torch.uint8).numpy().view(_WORDS[tensor.element_size()])


@dataclasses.dataclass(frozen=True)
class RaggedOptions:
    """How the ragged keys of batches are made.

    Args:
        padding (dict): key -> what stands behind the end of an item; 0 where it is not named.
        windows (dict): key -> the most frames of an item that are read. Keys of one length get the same window.
        random (bool): a window anywhere in the item, else its beginning.
        seed (int): seed of the places.
    """
    padding: tp.Mapping[str, float] = dataclasses.field(default_factory=dict)
    windows: tp.Mapping[str, int] = dataclasses.field(default_factory=dict)
    random: bool = False
    seed: int = 0

    def check(self, keys: tp.Mapping[str, Spec]) -> 'RaggedOptions':
        """Raise `UserError` for keys that are not ragged, or values that cannot be; return the options."""
        ragged = ragged_keys(keys)
        for name, values in (('padding', self.padding), ('windows', self.windows)):
            for key, value in values.items():
                if key not in ragged:
                    raise UserError(f'{name}: "{key}" is not a ragged key of the stores '
                                    f'({", ".join(ragged) or "there are none"}).')
                if name == 'windows' and (type(value) is not int or value < 1):
                    raise UserError(f'windows: "{key}" is {value!r}, expected a whole number of frames from 1 on.')
                if name == 'padding':
                    pad_word(value, key, keys[key][1])
        return self

    def window(self, key: str, length: int, position: int) -> tuple[int, int]:
        """First frame of the window of an item, and how many: a function of (seed, position in the order)."""
        size = min(length, self.windows.get(key, length))
        if not self.random or size == length:
            return 0, size
        place = (seed_of(self.seed, 'window', position) >> 10) / 2 ** 53  # in [0, 1)
        return int(place * (length - size + 1)), size


def pad_word(value: float, key: str, dtype: torch.dtype) -> np.generic:
    """A value in the dtype of a key, as a whole number of the same bytes."""
    try:
        filled = torch.full((1,), value, dtype=dtype)
        fits = bool(filled.isfinite()) and (dtype.is_floating_point or filled[0].item() == value)
    except (RuntimeError, TypeError, ValueError):
        fits = False
    if not fits:
        raise UserError(f'padding: {value!r} does not fit "{key}", which is {str(dtype).removeprefix("torch.")}.')
    return as_words(filled)[0, 0]


class RaggedBuffer:
    """Memory for one ragged key of a batch, which grows when a batch needs more.

    Args:
        key (str): its name.
        spec (Spec): its frames.
        pad (float): what stands behind the end of an item.
        pin (bool): page-locked memory.
    """

    def __init__(self, key: str, spec: Spec, pad: float, pin: bool):
        self.shape, self.dtype, self.pin = frame_shape(spec), spec[1], pin
        self.frame = row_bytes(spec) // spec[1].itemsize
        self.pad = pad_word(pad, key, spec[1])
        self.memory = torch.empty(0, dtype=spec[1])

    def _room(self, rows: int, frames: int) -> torch.Tensor:
        needed = rows * frames * self.frame
        if needed > len(self.memory):
            self.memory = torch.empty(int(needed * _GROWTH), dtype=self.dtype, pin_memory=self.pin)
        return self.memory[:needed].view(rows, frames, *self.shape)

    def fill(self, parts: tp.Sequence[tuple[np.ndarray, int, int]]) -> torch.Tensor:
        """Copy items, each given as (frames of its store as words, first frame, how many), and pad them.

        Returns:
            Tensor: `[n, T, ...]`, T the longest.
        """
        tensor = self._room(len(parts), max((size for _, _, size in parts), default=0))
        if not tensor.numel():
            return tensor
        words = as_words(tensor)
        for row, (source, start, size) in zip(words, parts):
            row[:size * self.frame] = source[start:start + size].reshape(-1)
            row[size * self.frame:] = self.pad
        return tensor


class RaggedReader:
    """The ragged keys of some stores, for the threads of a loader.

    Args:
        stores (iterable of Store): where items come from.
        keys (dict): the keys that are read; those that are not ragged are none of its business.
        options (RaggedOptions): padding and windows.
    """

    def __init__(self, stores: tp.Iterable[Store], keys: tp.Mapping[str, Spec], options: RaggedOptions):
        self.keys = {key: keys[key] for key in ragged_keys(keys)}
        self.options = options.check(keys)
        self._words = {(id(store), key): as_words(store.tensors[key])
                       for store in stores for key in self.keys if key in store.offsets}

    def buffers(self, pin: bool) -> dict[str, RaggedBuffer]:
        """Memory for one batch."""
        return {key: RaggedBuffer(key, spec, self.options.padding.get(key, 0), pin)
                for key, spec in self.keys.items()}

    def read(self, key: str, places: tp.Sequence[tuple[Store, int]], positions: tp.Sequence[int],
             buffer: RaggedBuffer) -> tuple[torch.Tensor, list[int]]:
        """Read items that have the key.

        Args:
            key (str): a ragged key.
            places (list): store and row of each item.
            positions (list of int): where each item is in the order of the data, from which windows are drawn.
            buffer (RaggedBuffer): where they go.
        Returns:
            tuple: `[n, T, ...]` and the length of each item.
        """
        parts = []
        for (store, row), position in zip(places, positions):
            first, last = store.offsets[key][row:row + 2].tolist()
            start, size = self.options.window(key, last - first, position)
            parts.append((self._words[id(store), key], first + start, size))
        return buffer.fill(parts), [size for _, _, size in parts]
