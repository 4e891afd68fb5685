"""How far the spectrum of a sound is from the true one, frame by frame."""

import typing as tp

import torch
from torch.nn import functional as F

from ..data.samples import Clip
from ..modules.mel import LogMel
from .base import Metric, References, Results, unavailable
from .pairs import NO_PAIRS, aligned


def magnitudes(wav: torch.Tensor, n_fft: int) -> torch.Tensor:
    """Magnitudes `[B, F, T']` of waveforms `[B, T]`, with a Hann window and a hop of a quarter of it."""
    return torch.stft(wav, n_fft, n_fft // 4, window=torch.hann_window(n_fft), return_complex=True).abs()


def stft_distances(estimate: torch.Tensor, reference: torch.Tensor, n_fft: int, floor: float) -> tuple[float, float]:
    """Spectral convergence, and the mean absolute difference of natural log magnitudes, of waveforms `[1, T]`.

    As in the loss of Yamamoto et al. 2020 (arXiv:1910.11480, equations 4 and 5).

    Args:
        floor (float): power below which nothing is compared.
    """
    ours, theirs = magnitudes(estimate, n_fft), magnitudes(reference, n_fft)
    size = theirs.norm().clamp_min((floor * theirs.numel()) ** 0.5)
    logs = [magnitude.clamp_min(floor ** 0.5).log() for magnitude in (ours, theirs)]
    return float((ours - theirs).norm() / size), float((logs[0] - logs[1]).abs().mean())


class SpectralDistance(Metric):
    """Distances of spectra, for sounds that should be the same at the same time.

    Gives `mel_distance`, the mean absolute difference of log10-mel spectrograms; `log_spectral_distance`, in dB: the
    root mean square over frequency of the difference of log power spectra, averaged over frames (Gray and Markel 1976,
    "Distance measures for speech processing"); and `stft_distance`, the sum of `stft_distance_convergence` and
    `stft_distance_log_magnitude`, each averaged over windows of several lengths (see `stft_distances`).

    Args:
        n_fft (int): samples of a window; the hop is a quarter of it.
        n_mels (int): mel bands.
        floor (float): power below which nothing is compared, so that digital silence does not count for everything.
        resolutions (list of int): samples of the windows of `stft_distance`.
    """

    def __init__(self, *, n_fft: int = 1024, n_mels: int = 80, floor: float = 1e-5,
                 resolutions: tp.Sequence[int] = (512, 1024, 2048)):
        self.n_fft, self.n_mels, self.floor, self.resolutions = n_fft, n_mels, floor, tuple(resolutions)
        self.mel: LogMel | None = None
        self.reset()

    def reset(self) -> None:
        """See `Metric.reset`."""
        self.values: list[list[float]] = []

    def update(self, generated: tp.Sequence[Clip], reference: References) -> None:
        """See `Metric.update`. Pairs without a true clip do not count; a longer one is cut."""
        longest = max(self.n_fft, *self.resolutions)
        for ours, theirs, sample_rate in aligned(generated, reference):
            short = max(0, longest - ours.shape[-1])
            self.values.append(self._distances(F.pad(ours, (0, short)), F.pad(theirs, (0, short)), sample_rate))

    def _distances(self, ours: torch.Tensor, theirs: torch.Tensor, sample_rate: int) -> list[float]:
        mel = self._log_mel(ours, sample_rate) - self._log_mel(theirs, sample_rate)
        power = self._log_power(ours) - self._log_power(theirs)
        stft = [stft_distances(ours, theirs, n_fft, self.floor) for n_fft in self.resolutions]
        return [float(mel.abs().mean()), float(power.square().mean(dim=-2).sqrt().mean()),
                *(sum(values) / len(values) for values in zip(*stft))]

    def compute(self) -> Results:
        """See `Metric.compute`."""
        if not self.values:
            return unavailable('mel_distance', NO_PAIRS)
        mel, power, convergence, log_magnitude = torch.tensor(self.values, dtype=torch.float64).mean(dim=0).tolist()
        return {'mel_distance': mel, 'log_spectral_distance': power, 'stft_distance': convergence + log_magnitude,
                'stft_distance_convergence': convergence, 'stft_distance_log_magnitude': log_magnitude}

    def _log_mel(self, wav: torch.Tensor, sample_rate: int) -> torch.Tensor:
        if self.mel is None or self.mel.sample_rate != sample_rate:
            self.mel = LogMel(sample_rate=sample_rate, n_fft=self.n_fft, hop=self.n_fft // 4, n_mels=self.n_mels,
                              fmin=0., fmax=sample_rate / 2, log='log10')
        return self.mel(wav)

    def _log_power(self, wav: torch.Tensor) -> torch.Tensor:
        """Log power in dB, `[1, F, T]`."""
        return 10 * torch.log10(magnitudes(wav, self.n_fft).square().clamp_min(self.floor))
