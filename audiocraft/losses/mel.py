"""Distances of mel spectrograms."""

import typing as tp
import warnings

import torch
import torch.nn.functional as F
import torchaudio.functional as AF
from torch import nn

from .base import WaveformLoss, power


def htk_filters(*, sample_rate: int, n_fft: int, n_mels: int, f_min: float, f_max: float | None) -> torch.Tensor:
    """Triangular filters of height 1, evenly spaced on the HTK mel scale, `[n_mels, n_fft / 2 + 1]`."""
    with warnings.catch_warnings():
        # With a short window the low filters fall between two bins and stay empty: they add a constant to both sides.
        warnings.filterwarnings('ignore', message='At least one mel filterbank')
        filters = AF.melscale_fbanks(n_fft // 2 + 1, f_min=f_min, f_max=sample_rate / 2 if f_max is None else f_max,
                                     n_mels=n_mels, sample_rate=sample_rate, norm=None, mel_scale='htk')
    return filters.t().contiguous()


class MelSpectrogram(nn.Module):
    """Waveforms to mel spectrograms of their power, one frame for each hop or part of one.

    Args:
        sample_rate (int): of the waveforms.
        n_fft (int): samples of a transform.
        hop_length (int): samples from one frame to the next.
        win_length (int or None): samples of the Hann window; None: `n_fft`.
        n_mels (int): mel bands.
        f_min (float), f_max (float or None): lowest and highest frequency in Hz; None: half the sample rate.
        normalized (bool): divide the spectrogram by the L2 norm of the window before its power is taken.
    """
    window: torch.Tensor
    filters: torch.Tensor

    def __init__(self, *, sample_rate: int, n_fft: int = 1024, hop_length: int = 256, win_length: int | None = None,
                 n_mels: int = 64, f_min: float = 64., f_max: float | None = None, normalized: bool = False):
        super().__init__()
        self.n_fft, self.hop_length, self.win_length = n_fft, hop_length, win_length or n_fft
        window = torch.hann_window(self.win_length)
        if normalized:
            window = window / window.square().sum().sqrt()
        filters = htk_filters(sample_rate=sample_rate, n_fft=n_fft, n_mels=n_mels, f_min=f_min, f_max=f_max)
        self.register_buffer('window', window, persistent=False)
        self.register_buffer('filters', filters, persistent=False)

    @property
    def min_samples(self) -> int:
        """Shortest waveform that can be reflected at its ends."""
        return (self.n_fft - self.hop_length) // 2 + 1

    def forward(self, wav: torch.Tensor) -> torch.Tensor:
        """Waveforms `[B, C, T]` in fp32 to `[B, C, n_mels, ceil(T / hop_length)]`."""
        side = self.min_samples - 1
        padded = F.pad(wav, (side, side), mode='reflect')
        padded = F.pad(padded, (0, -(padded.shape[-1] - self.n_fft) % self.hop_length))  # the last frame is full
        spec = torch.stft(padded.flatten(0, 1), self.n_fft, self.hop_length, self.win_length, self.window,
                          center=False, return_complex=True)
        return (self.filters @ power(spec)).unflatten(0, wav.shape[:2])


class MelLoss(WaveformLoss):
    """Mean absolute difference of mel spectrograms, or of their logarithms.

    Args:
        sample_rate, n_fft, hop_length, win_length, n_mels, f_min, f_max, normalized: see `MelSpectrogram`.
        log (bool): compare log10(floor_level + mel).
        floor_level (float): power that silence has before the logarithm.
    """

    def __init__(self, *, sample_rate: int, n_fft: int = 1024, hop_length: int = 256, win_length: int | None = None,
                 n_mels: int = 64, f_min: float = 64., f_max: float | None = None, normalized: bool = False,
                 log: bool = True, floor_level: float = 1e-5):
        mel = MelSpectrogram(sample_rate=sample_rate, n_fft=n_fft, hop_length=hop_length, win_length=win_length,
                             n_mels=n_mels, f_min=f_min, f_max=f_max, normalized=normalized)
        super().__init__(min_samples=mel.min_samples)
        self.mel, self.log, self.floor_level = mel, log, floor_level

    def features(self, wav: torch.Tensor) -> torch.Tensor:
        """What is compared of `[B, C, T]`: `[B, C, n_mels, frames]`."""
        mel = self.mel(wav)
        return (self.floor_level + mel).log10() if self.log else mel

    def distance(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """See `WaveformLoss`."""
        return F.l1_loss(self.features(output), self.features(target))


class MultiScaleMelLoss(WaveformLoss):
    """Distance of mel spectrograms and of their logarithms, with windows of several lengths.

    With S_i the mel spectrogram with windows of 2^i samples, hops of a quarter of that, and i from `range_start` to
    `range_end - 1`: the sum of |S_i(x) - S_i(y)|_1 + alpha_i |log S_i(x) - log S_i(y)|_2^2, both as means (after
    Défossez et al. 2022, arXiv:2210.13438, equation 3, and Gritsenko et al. 2020, arXiv:2008.01160).

    Args:
        sample_rate, n_mels, f_min, f_max: see `MelSpectrogram`.
        range_start (int), range_end (int): log2 of the shortest window, and one more than that of the longest.
        normalized (bool): normalise the transforms, as `MelSpectrogram`, and divide by the sum of all weights.
        alphas (bool): alpha_i = sqrt(2^i - 1) instead of 1.
        floor_level (float): power that silence has before the logarithm.
    """

    def __init__(self, *, sample_rate: int, range_start: int = 6, range_end: int = 11, n_mels: int = 64,
                 f_min: float = 64., f_max: float | None = None, normalized: bool = True, alphas: bool = False,
                 floor_level: float = 1e-5):
        if not 2 <= range_start < range_end:
            raise ValueError(f'range_start must be at least 2, and less than range_end: got {range_start}, {range_end}')
        sizes = [2 ** i for i in range(range_start, range_end)]
        mels = [MelSpectrogram(sample_rate=sample_rate, n_fft=size, hop_length=size // 4, n_mels=n_mels, f_min=f_min,
                               f_max=f_max, normalized=normalized) for size in sizes]
        super().__init__(min_samples=max(mel.min_samples for mel in mels))
        self.mels: tp.Iterable[tp.Any] = nn.ModuleList(mels)
        self.alphas = [(size - 1) ** 0.5 if alphas else 1. for size in sizes]
        self.divisor = sum(alpha + 1 for alpha in self.alphas) if normalized else 1.
        self.floor_level = floor_level

    def distance(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """See `WaveformLoss`."""
        total = output.new_zeros(())
        for mel, alpha in zip(self.mels, self.alphas):
            made, true = mel(output), mel(target)
            logs = [(self.floor_level + value).log10() for value in (made, true)]
            total = total + F.l1_loss(made, true) + alpha * F.mse_loss(logs[0], logs[1])
        return total / self.divisor
