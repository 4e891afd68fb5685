"""Band-limited resampling by a windowed sinc, as codecs of AudioCraft are trained with; fast where it counts."""
import functools
import math
import typing as tp

import torch
from torch.nn import functional as F

ZEROS = 24
ROLLOFF = 0.945
"""Zero crossings of the sinc to each side, and its cut-off as a part of the lower Nyquist frequency.

Those of AudioCraft (`julius.resample_frac`).
"""


class Block(tp.NamedTuple):
    """Some phases of the filter: output samples `first` to `last` of a period, from inputs `start` on."""
    first: int
    last: int
    start: int
    kernel: torch.Tensor


class SincResampler:
    """Resamples `[..., T]` by a rational factor: a sinc with a squared cosine window, normalised for each phase.

    A polyphase filter (J. O. Smith, Digital Audio Resampling) as matrix products: a period of `old` input samples makes
    `new` output samples. Neighbouring phases look at nearly the same inputs, so they are put into blocks, each one
    product with only those inputs: several times fewer operations than one convolution with all phases, and no large
    kernel when the rates have no common divisor. Ends are continued by their outermost sample.

    Args:
        old, new (int): sample rates.
        zeros (int): zero crossings of the sinc to each side.
        rolloff (float): cut-off, as a part of the lower of the two Nyquist frequencies.
    """

    def __init__(self, old: int, new: int, *, zeros: int = ZEROS, rolloff: float = ROLLOFF):
        if old < 1 or new < 1 or int(old) != old or int(new) != new:
            raise ValueError(f'sample rates must be positive whole numbers, got {old} and {new}')
        divisor = math.gcd(int(old), int(new))
        self.ratio = int(old) // divisor, int(new) // divisor
        self.cutoff = min(self.ratio) * rolloff / self.ratio[0]  # in half cycles per input sample
        self.zeros = zeros
        self.width = math.ceil(zeros / self.cutoff)
        # Several short periods at once, so that a product is not made of overlaps alone.
        repeat = math.ceil(2 * self.width / self.ratio[0])
        self.old, self.new = self.ratio[0] * repeat, self.ratio[1] * repeat
        size = math.ceil(2 * self.width * self.new / self.old)
        self.blocks = [self._block(first, min(first + size, self.new)) for first in range(0, self.new, size)]

    def _block(self, first: int, last: int) -> Block:
        centers = torch.arange(first, last, dtype=torch.float64) * self.old / self.new
        start = first * self.old // self.new
        stop = (last - 1) * self.old // self.new + 2 * self.width + 2
        inputs = torch.arange(start, stop, dtype=torch.float64) - self.width
        t = ((inputs[:, None] - centers) * self.cutoff).clamp(-self.zeros, self.zeros)
        kernel = torch.sinc(t) * torch.cos(t * math.pi / self.zeros / 2) ** 2
        return Block(first, last, start, kernel / kernel.sum(0))

    def to(self, device: torch.device | str, dtype: torch.dtype) -> 'SincResampler':
        """Move the filter, in place."""
        self.blocks = [block._replace(kernel=block.kernel.to(device, dtype)) for block in self.blocks]
        return self

    def length(self, samples: int) -> int:
        """Samples that come out when `samples` go in."""
        return samples * self.ratio[1] // self.ratio[0]

    def needed(self, samples: int) -> int:
        """Fewest samples that must go in for `samples` to come out."""
        return -(-samples * self.ratio[0] // self.ratio[1])

    def __call__(self, wav: torch.Tensor) -> torch.Tensor:
        """Return `[..., length(T)]`."""
        length = self.length(wav.shape[-1])
        if not length:
            return wav.new_empty(*wav.shape[:-1], 0)
        rows = wav.reshape(-1, wav.shape[-1])
        out = wav.new_empty(rows.shape[0], -(-length // self.new), self.new)
        for row, made in zip(rows, out):
            self._row(row, made)
        return out.view(rows.shape[0], -1)[:, :length].reshape(*wav.shape[:-1], length)

    def _row(self, row: torch.Tensor, out: torch.Tensor) -> None:
        periods = out.shape[0]
        right = (periods - 1) * self.old + self.blocks[-1].start + len(self.blocks[-1].kernel)
        right = max(0, right - self.width - len(row))
        row = F.pad(row[None], (self.width, right), mode='replicate')[0]
        for first, last, start, kernel in self.blocks:
            inputs = row[start:].unfold(0, len(kernel), self.old)[:periods]
            out[:, first:last] = inputs @ kernel


@functools.lru_cache(maxsize=32)
def sinc_resampler(old: int, new: int, device: torch.device | str = 'cpu',
                   dtype: torch.dtype = torch.float32) -> SincResampler:
    """The resampler for two rates, made once: that costs more than resampling a short clip."""
    return SincResampler(old, new).to(device, dtype)


def resample_sinc(wav: torch.Tensor, old: int, new: int) -> torch.Tensor:
    """Resample `[..., T]` from `old` to `new` samples per second, as AudioCraft does.

    Returns:
        Tensor: `[..., floor(T * new / old)]`.
    """
    if old == new:
        return wav
    if not wav.is_floating_point():
        raise ValueError(f'expected samples in floating point, got {wav.dtype}')
    return sinc_resampler(old, new, wav.device, wav.dtype)(wav)
