"""How far the spectrum of a sound is from the true one, frame by frame."""

import typing as tp

import torch

from ..data.audio import resample, to_mono
from ..data.samples import Clip, fit_length
from ..modules.mel import LogMel
from .base import Metric, References, Results, unavailable


class SpectralDistance(Metric):
    """Distances of log spectra, for sounds that should be the same at the same time.

    Gives `mel_distance`, the mean absolute difference of log10-mel spectrograms, and `log_spectral_distance`, in dB:
    the root mean square over frequency of the difference of log power spectra, averaged over frames (Gray and Markel
    1976, "Distance measures for speech processing").

    Args:
        n_fft (int): samples of a window; the hop is a quarter of it.
        n_mels (int): mel bands.
        floor (float): power below which nothing is compared, so that digital silence does not count for everything.
    """

    def __init__(self, *, n_fft: int = 1024, n_mels: int = 80, floor: float = 1e-5):
        self.n_fft, self.n_mels, self.floor = n_fft, n_mels, floor
        self.mel: LogMel | None = None
        self.reset()

    def reset(self) -> None:
        """See `Metric.reset`."""
        self.mel_total = self.power_total = 0.
        self.count = 0

    def update(self, generated: tp.Sequence[Clip], reference: References) -> None:
        """See `Metric.update`. Pairs without a true clip do not count; a longer one is cut."""
        for clip, true in zip(generated, reference, strict=True):
            if true is None:
                continue
            ours = to_mono(clip.audio.detach().cpu().float())
            theirs = resample(to_mono(true.audio.float()), true.sample_rate, clip.sample_rate)
            theirs = fit_length(theirs, ours.shape[-1])
            mel, power = self._log_mel(ours, clip.sample_rate), self._log_power(ours)
            self.mel_total += float((mel - self._log_mel(theirs, clip.sample_rate)).abs().mean())
            self.power_total += float((power - self._log_power(theirs)).square().mean(dim=-2).sqrt().mean())
            self.count += 1

    def compute(self) -> Results:
        """See `Metric.compute`."""
        if not self.count:
            return unavailable('mel_distance', 'no generated clip has a true one')
        return {'mel_distance': self.mel_total / self.count, 'log_spectral_distance': self.power_total / self.count}

    def _log_mel(self, wav: torch.Tensor, sample_rate: int) -> torch.Tensor:
        if self.mel is None or self.mel.sample_rate != sample_rate:
            self.mel = LogMel(sample_rate=sample_rate, n_fft=self.n_fft, hop=self.n_fft // 4, n_mels=self.n_mels,
                              fmin=0., fmax=sample_rate / 2, log='log10')
        return self.mel(wav)

    def _log_power(self, wav: torch.Tensor) -> torch.Tensor:
        """Log power in dB, `[1, F, T]`."""
        window = torch.hann_window(self.n_fft)
        spectrum = torch.stft(wav, self.n_fft, self.n_fft // 4, window=window, return_complex=True)
        return 10 * torch.log10(spectrum.abs().square().clamp_min(self.floor))
