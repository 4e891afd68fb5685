"""How loud audio is, and making it louder or quieter; samples as integers."""
import functools
import logging
import math
import typing as tp

import torch
import torchaudio

from ..utils.errors import UserError

logger = logging.getLogger(__name__)

STRATEGIES = ('peak', 'clip', 'rms', 'loudness', 'none')
QUIET = 2e-3
"""RMS below which loudness is not measured: what is nearly silence would become noise."""


def normalize_audio(wav: torch.Tensor, strategy: str = 'peak', *, sample_rate: int | None = None,
                    headroom: float | None = None, only_down: bool = False, compressor: bool = False,
                    name: str = 'audio') -> torch.Tensor:
    """Bring `[C, T]` to a level, and clamp what is beyond [-1, 1] afterwards (with a warning).

    Args:
        wav (Tensor): `[C, T]`.
        strategy (str): what is measured: `peak` (the largest sample), `rms` (of the mean of the channels), `loudness`
            (ITU-R BS.1770-4, in LUFS), or nothing: `clip` only cuts off, `none` only clamps.
        sample_rate (int): for `loudness`.
        headroom (float or None): decibels below full scale that the level shall have; None: 1 for `peak` and
            `clip`, 18 for `rms`, 14 for `loudness`.
        only_down (bool): `peak` and `rms` make nothing louder.
        compressor (bool): soften peaks by tanh after `loudness`.
        name (str): for messages.
    """
    if strategy not in STRATEGIES:
        raise UserError(f'"{strategy}" is no way to normalize audio; there are {", ".join(STRATEGIES)}')
    if not wav.numel():
        return wav
    if strategy == 'loudness':
        if sample_rate is None:
            raise UserError('strategy "loudness" needs a sample_rate')
        wav = normalize_loudness(wav, sample_rate, 14. if headroom is None else headroom, compressor=compressor)
    elif strategy in ('peak', 'rms'):
        measured = wav.abs().max() if strategy == 'peak' else wav.mean(-2).pow(2).mean().sqrt()
        wanted = _amplitude(-(headroom if headroom is not None else 1. if strategy == 'peak' else 18.))
        gain = wanted / float(measured) if measured > 0 else 1.
        wav = wav * (min(gain, 1.) if only_down else gain)
    elif strategy == 'clip':
        limit = _amplitude(-(1. if headroom is None else headroom))
        wav = wav.clamp(-limit, limit)
    return _clamped(wav, name)


def normalize_loudness(wav: torch.Tensor, sample_rate: int, headroom: float = 14., *,
                       compressor: bool = False) -> torch.Tensor:
    """Bring `[C, T]` to `-headroom` LUFS; what is nearly silent, or shorter than 0.4 s, comes back as it is."""
    if wav.pow(2).mean().sqrt() < QUIET:
        return wav
    measured = loudness(wav, sample_rate)
    if not math.isfinite(measured):
        return wav
    wav = wav * _amplitude(-headroom - measured)
    return torch.tanh(wav) if compressor else wav


@functools.lru_cache(maxsize=8)
def _meter(sample_rate: int) -> tp.Callable[[torch.Tensor], torch.Tensor]:
    return torchaudio.transforms.Loudness(sample_rate)


def loudness(wav: torch.Tensor, sample_rate: int) -> float:
    """Return the loudness of `[C, T]` in LUFS (ITU-R BS.1770-4); not finite for silence and less than 0.4 s."""
    if wav.shape[-1] < round(0.4 * sample_rate):
        return float('-inf')
    return float(_meter(sample_rate)(wav))


def _amplitude(decibels: float) -> float:
    return 10. ** (decibels / 20.)


def _clamped(wav: torch.Tensor, name: str) -> torch.Tensor:
    largest = float(wav.abs().max())
    if largest > 1.:
        logger.warning('%s: samples up to %.2f are cut off at 1.', name, largest)
        wav = wav.clamp(-1., 1.)
    return wav


def to_int16(wav: torch.Tensor) -> torch.Tensor:
    """Return samples in [-1, 1] as int16: 1 is 2^15, rounded, and cut off where the type ends."""
    return (wav * 2 ** 15).round().clamp(-2 ** 15, 2 ** 15 - 1).to(torch.int16)


def to_float32(wav: torch.Tensor) -> torch.Tensor:
    """Return int16 or int32 samples as float32 in [-1, 1); float samples as they are, in float32."""
    scale = {torch.int16: 2 ** 15, torch.int32: 2 ** 31}
    if wav.dtype in scale:
        # Through float64: 32 bits do not fit into float32, and are to be rounded once.
        return (wav.double() / scale[wav.dtype]).float()
    if not wav.is_floating_point():
        raise ValueError(f'expected int16, int32 or floating point, got {wav.dtype}')
    return wav.float()
