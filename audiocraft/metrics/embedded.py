"""Features of sound that need no weights: statistics of mel cepstra.

They stand in for the embeddings of trained networks, so that Fréchet distances can be had anywhere. Their numbers
compare models with each other on one data set, and are **no** FAD, FD-PANN or FD-PaSST: results are named `embedded`.
"""

import math
import typing as tp

import torch

from ..data.audio import resample
from ..data.samples import Clip
from ..modules.mel import LogMel
from .base import sound_of

SAMPLE_RATE = 16_000


def mono_16k(clip: Clip) -> torch.Tensor:
    """The clip's sound as mono float32 `[T]` at 16 kHz; NaN and infinities become zero."""
    return resample(torch.nan_to_num(sound_of(clip), posinf=0., neginf=0.), clip.sample_rate, SAMPLE_RATE)


def cosines(size: int, count: int) -> torch.Tensor:
    """The first `count` rows of the orthonormal DCT-II `[count, size]`."""
    k, n = torch.arange(count)[:, None], torch.arange(size)[None]
    table = torch.cos(math.pi / size * (n + 0.5) * k) * math.sqrt(2 / size)
    table[0] /= math.sqrt(2)
    return table


class CepstralStatistics:
    """Mean and deviation over time of the mel cepstrum, for each window of a second.

    Args:
        coefficients (int): D = 2 * coefficients features.
        seconds (float): length of a window; windows overlap by half.
        n_mels (int): mel bands.
    """
    name = 'embedded'

    def __init__(self, *, coefficients: int = 12, seconds: float = 1., n_mels: int = 64):
        self.dim = 2 * coefficients
        self.mel = LogMel(sample_rate=SAMPLE_RATE, n_fft=512, hop=160, n_mels=n_mels, fmin=40., fmax=8000., log='ln')
        self.table = cosines(n_mels, coefficients) / math.sqrt(n_mels)  # in nepers, whatever the number of bands
        self.frames = round(seconds * 100)

    def __call__(self, clips: tp.Iterable[Clip]) -> torch.Tensor:
        """Features of all windows of all clips `[N, D]`, float64. A short clip is filled up with silence."""
        features = [self._windows(mono_16k(clip)) for clip in clips]
        return torch.cat(features) if features else torch.zeros(0, self.dim, dtype=torch.float64)

    def _windows(self, wav: torch.Tensor) -> torch.Tensor:
        wav = torch.nn.functional.pad(wav, (0, max(0, self.frames * 160 - len(wav))))
        cepstra = self.table @ self.mel(wav[None])[0]
        windows = cepstra.unfold(1, self.frames, self.frames // 2).permute(1, 0, 2).double()
        return torch.cat([windows.mean(dim=2), windows.std(dim=2)], dim=1)
