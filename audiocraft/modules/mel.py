"""Log-mel spectrograms, and the way back by Griffin-Lim."""

import math
import typing as tp

import torch
import torch.nn.functional as F
import torchaudio.functional as AF
from torch import nn

FLOOR = 1e-5  # smallest mel amplitude before the logarithm

# What MMAudio's autoencoders take, at 16 kHz and at 44.1 kHz.
MEL_16K: dict[str, tp.Any] = dict(sample_rate=16000, n_fft=1024, hop=256, n_mels=80, fmin=0., fmax=8000., log='log10')
MEL_44K: dict[str, tp.Any] = dict(sample_rate=44100, n_fft=2048, hop=512, n_mels=128, fmin=0., fmax=22050., log='ln')


def hz_to_mel(hz: torch.Tensor) -> torch.Tensor:
    """Frequencies to Slaney's mel scale: linear below 1 kHz with 3 mel per 200 Hz, logarithmic above."""
    return torch.where(hz < 1000., hz * 3 / 200, 15 + (hz / 1000.).log() * 27 / math.log(6.4))


def mel_to_hz(mel: torch.Tensor) -> torch.Tensor:
    """The inverse of `hz_to_mel`."""
    return torch.where(mel < 15., mel * 200 / 3, 1000. * ((mel - 15) * math.log(6.4) / 27).exp())


def mel_filters(*, sample_rate: int, n_fft: int, n_mels: int, fmin: float, fmax: float) -> torch.Tensor:
    """Triangular filters of equal area, evenly spaced on the mel scale, `[n_mels, n_fft / 2 + 1]`."""
    bins = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    low, high = hz_to_mel(torch.tensor([fmin, fmax], dtype=torch.float64)).tolist()
    corners = mel_to_hz(torch.linspace(low, high, n_mels + 2, dtype=torch.float64))
    widths = corners.diff()[:, None]
    slopes = corners[:, None] - bins
    rising, falling = -slopes[:-2] / widths[:-1], slopes[2:] / widths[1:]
    triangles = torch.minimum(rising, falling).clamp(min=0)
    return (triangles * (2 / (corners[2:] - corners[:-2]))[:, None]).float()


class LogMel(nn.Module):
    """Waveforms to log-mel spectrograms, and back as well as it goes.

    Args:
        sample_rate (int): of the waveforms.
        n_fft (int): samples of a window.
        hop (int): samples from one frame to the next.
        n_mels (int): number of mel bands.
        fmin (float): lowest frequency in Hz; `fmax` the highest.
        log (str): `log10` or `ln`.
    """
    mel_basis: torch.Tensor
    hann_window: torch.Tensor

    def __init__(self, *, sample_rate: int = 16000, n_fft: int = 1024, hop: int = 256, n_mels: int = 80,
                 fmin: float = 0., fmax: float = 8000., log: str = 'log10'):
        super().__init__()
        if log not in ('log10', 'ln'):
            raise ValueError(f"log must be 'log10' or 'ln', got {log!r}")
        self.sample_rate, self.n_fft, self.hop, self.n_mels = sample_rate, n_fft, hop, n_mels
        self.base = 10. if log == 'log10' else math.e
        basis = mel_filters(sample_rate=sample_rate, n_fft=n_fft, n_mels=n_mels, fmin=fmin, fmax=fmax)
        self.register_buffer('mel_basis', basis, persistent=False)
        self.register_buffer('hann_window', torch.hann_window(n_fft), persistent=False)

    @property
    def floor(self) -> float:
        """The value of silence."""
        return math.log(FLOOR) / math.log(self.base)

    def _pad(self, wav: torch.Tensor) -> torch.Tensor:
        return F.pad(wav[:, None], [(self.n_fft - self.hop) // 2] * 2, mode='reflect')[:, 0]

    def forward(self, wav: torch.Tensor) -> torch.Tensor:
        """Waveforms `[B, T]`, clamped to [-1, 1], to log-mel `[B, n_mels, T // hop]`.

        Raises:
            ValueError: when the waveform is too short to be padded.
        """
        if wav.shape[-1] <= (self.n_fft - self.hop) // 2:
            raise ValueError(f'needs more than {(self.n_fft - self.hop) // 2} samples, got {wav.shape[-1]}')
        spec = torch.stft(self._pad(wav.clamp(-1., 1.)), self.n_fft, self.hop, window=self.hann_window, center=False,
                          return_complex=True)
        magnitude = (spec.real.square() + spec.imag.square() + 1e-9).sqrt()
        return (self.mel_basis @ magnitude).clamp(min=FLOOR).log() / math.log(self.base)

    def magnitudes(self, logmel: torch.Tensor, n_iter: int = 30) -> torch.Tensor:
        """Log-mel `[B, n_mels, F]` to magnitudes `[B, n_fft / 2 + 1, F]`, none of them negative.

        Least squares, by multiplicative updates from the pseudo-inverse (Lee and Seung, 2001).
        """
        mel = self.base ** logmel.float()
        spec = (torch.linalg.pinv(self.mel_basis) @ mel).clamp(min=FLOOR)
        target, gram = self.mel_basis.T @ mel, self.mel_basis.T @ self.mel_basis
        for _ in range(n_iter):
            spec = spec * target / (gram @ spec).clamp(min=1e-12)
        return spec

    def griffin_lim(self, logmel: torch.Tensor, n_iter: int = 32, num_samples: tp.Optional[int] = None) -> torch.Tensor:
        """Log-mel `[B, n_mels, F]` to waveforms `[B, F * hop]`, with phases found by iteration.

        Fast Griffin-Lim with momentum 0.99 (Perraudin et al., 2013), from zero phases: nothing in it is random.

        Args:
            logmel (torch.Tensor): as `forward` gives them.
            n_iter (int): number of iterations.
            num_samples (int): samples to return, cut or filled with zeros. Default: those of all frames.
        """
        # Frame i is centered at (i + 1/2) hop here, but at i hop in the transform below. With one frame more at either
        # end, its output begins half a hop before ours, and covers ours.
        spec = F.pad(self.magnitudes(logmel), (1, 1), mode='replicate')
        wav = AF.griffinlim(spec, self.hann_window, self.n_fft, self.hop, self.n_fft, power=1., n_iter=n_iter,
                            momentum=0.99, length=None, rand_init=False)
        length = logmel.shape[-1] * self.hop
        wav = wav[:, self.hop // 2:self.hop // 2 + length]
        return wav if num_samples is None else F.pad(wav, (0, num_samples - length))
