"""Chroma: how strong each of the twelve pitch classes is, whatever the octave."""

import math

import torch
from torch import nn
from torch.nn import functional as F

A0 = 27.5  # Hz; octaves are counted from it


def chroma_filters(*, sample_rate: int, n_fft: int, n_chroma: int = 12, center_octave: float = 5.,
                   octave_width: float = 2.) -> torch.Tensor:
    """Filters from power spectra to pitch classes, the first one C, `[n_chroma, n_fft / 2 + 1]`.

    Each bin of the spectrum goes to the classes near its pitch by a Gaussian as wide as the bin (at least one class),
    with the squares of a bin's weights summing to one, times a Gaussian over octaves (D. Ellis 2007, "Chroma feature
    analysis and synthesis"; the same numbers as `librosa.filters.chroma(tuning=0)`).

    Args:
        sample_rate (int): of the waveforms.
        n_fft (int): samples of a window.
        n_chroma (int): classes of an octave.
        center_octave (float): octaves over A0 (27.5 Hz) that count most.
        octave_width (float): standard deviation around it, in octaves.
    """
    hertz = torch.arange(1, n_fft, dtype=torch.float64) * sample_rate / n_fft
    pitch = n_chroma * torch.log2(hertz / A0)
    # No pitch has 0 Hz: its bin is put well below the next one.
    pitch = torch.cat([pitch[:1] - 1.5 * n_chroma, pitch])
    width = torch.cat([pitch.diff().clamp_min(1.), pitch.new_ones(1)])
    half = round(n_chroma / 2)
    distance = torch.remainder(pitch - torch.arange(n_chroma)[:, None] + half, n_chroma) - half
    weights = F.normalize((-0.5 * (2 * distance / width).square()).exp(), dim=0)
    weights = weights * (-0.5 * ((pitch / n_chroma - center_octave) / octave_width).square()).exp()
    from_a_to_c = -3 * (n_chroma // 12)
    return weights.roll(from_a_to_c, dims=0)[:, :n_fft // 2 + 1].float()


class Chroma(nn.Module):
    """Waveforms to chroma, scaled so that the strongest class of every frame is 1.

    Args:
        sample_rate (int): of the waveforms.
        n_fft (int): samples of a window, long enough to tell the lowest semitones apart.
        hop (int or None): samples from one frame to the next; None: a quarter of the window.
        n_chroma (int): classes of an octave.
        one_hot (bool): only the strongest class of a frame counts, with 1; the others are 0.
    """
    filters: torch.Tensor
    window: torch.Tensor

    def __init__(self, *, sample_rate: int = 32_000, n_fft: int = 2 ** 14, hop: int | None = None, n_chroma: int = 12,
                 one_hot: bool = False):
        super().__init__()
        self.sample_rate, self.n_fft, self.hop = sample_rate, n_fft, hop or n_fft // 4
        self.n_chroma, self.one_hot = n_chroma, one_hot
        filters = chroma_filters(sample_rate=sample_rate, n_fft=n_fft, n_chroma=n_chroma)
        self.register_buffer('filters', filters, persistent=False)
        self.register_buffer('window', torch.hann_window(n_fft), persistent=False)

    def forward(self, wav: torch.Tensor) -> torch.Tensor:
        """Waveforms `[B, T]` to chroma `[B, T // hop + 1, n_chroma]`; a short one is put in the middle of a window."""
        missing = max(0, self.n_fft - wav.shape[-1])
        wav = F.pad(wav, (missing // 2, missing - missing // 2))
        spectrum = torch.stft(wav, self.n_fft, self.hop, window=self.window, return_complex=True)
        power = (spectrum.real.square() + spectrum.imag.square()) / self.window.square().sum()
        chroma = F.normalize(self.filters @ power, p=math.inf, dim=-2, eps=1e-6).transpose(-1, -2)
        return F.one_hot(chroma.argmax(-1), self.n_chroma).to(chroma) if self.one_hot else chroma
