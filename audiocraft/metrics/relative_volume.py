"""How loud the error is, relative to the true sound, in bands of the mel spectrum."""

import typing as tp
import warnings

import torch
import torchaudio.functional as AF
from torch import nn

from ..data.samples import Clip
from .base import Metric, References, Results, unavailable
from .pairs import NO_PAIRS, aligned


def decibels(amplitude: torch.Tensor, floor: float) -> torch.Tensor:
    """Amplitudes in dB, those under `floor` dB as `floor`."""
    return 20 * amplitude.clamp_min(10 ** (floor / 20)).log10()


class RelativeMelVolume(nn.Module):
    """Volume of the difference of two mel spectrograms, relative to the true one, in dB.

    -10 dB says that the error is, on average over time and frequency, 10 dB softer than the sound. Each point of the
    spectrogram is limited to `floor` and `ceiling`, so that neither silence nor a perfect copy counts for everything.

    Args:
        sample_rate (int): of the waveforms.
        n_fft (int): samples of a window.
        hop (int): samples from one frame to the next.
        n_mels (int): mel bands, up to half of the sample rate.
        floor (float): dB; less error than that does not count as better, and a softer sound is taken to be that loud.
        ceiling (float): dB; more error than that does not count as worse.
        max_gain (float): dB by which a soft pair is made louder at most; pairs are scaled to a true level of 0 dB.
        groups (int): the mel bands are averaged in that many groups, low to high.
        count_empty (bool): count bands that are too narrow to hold a point of the spectrum as having no error, as
            AudioCraft does; by default they do not count.
    """
    filters: torch.Tensor
    window: torch.Tensor
    counted: torch.Tensor

    def __init__(self, *, sample_rate: int, n_fft: int = 512, hop: int = 128, n_mels: int = 80, floor: float = -25.,
                 ceiling: float = 25., max_gain: float = 25., groups: int = 4, count_empty: bool = False):
        super().__init__()
        self.sample_rate, self.n_fft, self.hop = sample_rate, n_fft, hop
        self.floor, self.ceiling, self.max_gain, self.groups = floor, ceiling, max_gain, groups
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', 'At least one mel filterbank')
            filters = AF.melscale_fbanks(n_fft // 2 + 1, 0., sample_rate / 2, n_mels, sample_rate).T.contiguous()
        self.register_buffer('filters', filters, persistent=False)
        counted = torch.ones(n_mels, dtype=torch.bool) if count_empty else filters.any(dim=1)
        self.register_buffer('counted', counted, persistent=False)
        self.register_buffer('window', torch.hann_window(n_fft), persistent=False)

    def forward(self, estimate: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Waveforms `[B, T]` to the relative volume of the error in each mel band `[n_mels]`, over batch and time.

        NaN for bands that do not count.
        """
        level = reference.square().mean().sqrt().clamp_min(10 ** (-self.max_gain / 20))
        true = self._mel(reference / level)
        error = (true - self._mel(estimate / level)).abs()
        relative = decibels(error, -120.) - decibels(true, self.floor)
        bands = relative.clamp(self.floor, self.ceiling).mean(dim=(0, 2))
        return bands.where(self.counted, torch.nan)

    def grouped(self, bands: torch.Tensor) -> list[torch.Tensor]:
        """The means of each group of bands `[n_mels]`."""
        return [group.nanmean() for group in bands.chunk(self.groups)]

    def _mel(self, wav: torch.Tensor) -> torch.Tensor:
        """Mel amplitudes `[B, n_mels, F]`."""
        spectrum = torch.stft(wav, self.n_fft, self.hop, window=self.window, return_complex=True)
        power = (spectrum.real.square() + spectrum.imag.square()) / self.window.square().sum()
        return (self.filters @ power).sqrt()


class RelativeVolume(Metric):
    """`relative_volume` in dB, averaged over clips, and `relative_volume_0`, ... for groups of bands from low to high.

    Args: see `RelativeMelVolume`; the sample rate is that of each generated clip.
    """

    def __init__(self, *, n_fft: int = 512, hop: int = 128, n_mels: int = 80, floor: float = -25., ceiling: float = 25.,
                 groups: int = 4):
        self.options: dict[str, tp.Any] = dict(n_fft=n_fft, hop=hop, n_mels=n_mels, floor=floor, ceiling=ceiling,
                                               groups=groups)
        self.measure: RelativeMelVolume | None = None
        self.reset()

    def reset(self) -> None:
        """See `Metric.reset`."""
        self.bands: list[torch.Tensor] = []

    def update(self, generated: tp.Sequence[Clip], reference: References) -> None:
        """See `Metric.update`."""
        for ours, theirs, sample_rate in aligned(generated, reference):
            if self.measure is None or self.measure.sample_rate != sample_rate:
                self.measure = RelativeMelVolume(sample_rate=sample_rate, **self.options)
            short = max(0, self.measure.n_fft - ours.shape[-1])
            self.bands.append(self.measure(*(nn.functional.pad(wav, (0, short)) for wav in (ours, theirs))))

    def compute(self) -> Results:
        """See `Metric.compute`."""
        if self.measure is None or not self.bands:
            return unavailable('relative_volume', NO_PAIRS)
        bands = torch.stack(self.bands).mean(dim=0)
        groups = {f'relative_volume_{i}': float(value) for i, value in enumerate(self.measure.grouped(bands))}
        return {'relative_volume': float(bands.nanmean()), **groups}
