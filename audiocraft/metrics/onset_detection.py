"""Finding onsets in sound, and pairing them one to one with the true ones."""

import dataclasses
import functools
import typing as tp

import torch
from torch.nn import functional as F

from ..modules.mel import mel_filters


@dataclasses.dataclass(frozen=True)
class OnsetDetector:
    """Spectral-flux onset detection with a whitened spectrum (after Bello et al. 2005, and Boeck and Widmer 2013).

    The power in mel bands is divided by the level that the band usually has in this clip, and compressed:
    `log10(1 + power / level)`. So noise stays near zero, and a rise above it counts in decades. The flux is the mean
    rise over the bands. Its peaks are candidates; each one's time is then found in the waveform itself.

    Attributes:
        threshold (float): how far a peak must stand above the local median of the flux, in decades averaged over bands.
        wait (float): least time between two onsets, in seconds.
        window (float): length of the analysis window, in seconds; a frame is a sixth of that.
        bands (int): number of mel bands.
        level (float): the usual level of a band is this multiple of its 30th percentile over time.
        dynamic (float): and at least this much below the loudest band of the clip, in dB.
        relative (float): a peak of the flux must reach this share of the clip's highest.
        silence (float): a clip that never reaches this root mean square has no onsets.
    """
    threshold: float = 0.12
    wait: float = 0.08
    window: float = 0.03
    bands: int = 40
    level: float = 6.
    dynamic: float = 60.
    relative: float = 0.12
    silence: float = 1e-5

    def __call__(self, wav: torch.Tensor, sample_rate: int) -> list[float]:
        """Times of the onsets in `wav` `[T]` or `[C, T]`, in seconds from its start, in order."""
        mono = wav.detach().cpu().float()
        mono = torch.nan_to_num(mono.mean(dim=0) if mono.dim() == 2 else mono)
        mono = mono - mono.mean() if mono.numel() else mono
        if mono.numel() < self.window * sample_rate or mono.abs().max() < self.silence:
            return []
        hop = max(1, round(self.window * sample_rate / 6))
        peaks = self._peaks(self.flux(mono, sample_rate, hop), sample_rate / hop)
        envelope = _attack(mono, sample_rate)
        times = sorted(_refine(envelope, index * hop / sample_rate) for index in peaks)
        return [time for i, time in enumerate(times) if i == 0 or time - times[i - 1] >= self.wait / 2]

    def flux(self, mono: torch.Tensor, sample_rate: int, hop: int) -> torch.Tensor:
        """Mean rise over the bands, `[frames]`; frame i is centred at sample `i * hop`."""
        n_fft = 6 * hop
        # Silence in front, so that a sound that starts with the clip rises too. Nothing after the end: where a sound
        # that still rings is cut off, the edge itself would be a click.
        padded = F.pad(mono, (n_fft // 2, 0))
        spectrum = torch.stft(padded, n_fft, hop, window=torch.hann_window(n_fft), center=False, return_complex=True)
        power = _bands(sample_rate, n_fft, self.bands) @ spectrum.abs().square()
        usual = self.level * power.quantile(0.3, dim=1, keepdim=True)
        least = power.max() * 10 ** (-self.dynamic / 10)
        compressed = torch.log10(1 + power / torch.maximum(usual, least).clamp_min(1e-20))
        # Against the largest of the neighbouring bands before: a tone that glides is not an onset.
        before = F.max_pool1d(compressed.T, 3, stride=1, padding=1).T
        before = F.pad(before, (3, 0))[:, :compressed.shape[1]]
        return (compressed - before).clamp_min(0).mean(dim=0)

    def _peaks(self, flux: torch.Tensor, rate: float) -> list[int]:
        """Frames where the flux is the highest around and high enough."""
        near, wide = max(1, round(0.5 * self.wait * rate)), max(1, round(0.15 * rate))
        highest = F.max_pool1d(flux[None], 2 * near + 1, stride=1, padding=near)[0]
        median = F.pad(flux, (wide, wide)).unfold(0, 2 * wide + 1, 1).median(dim=1).values
        needed = torch.maximum(median + self.threshold, self.relative * flux.max())
        return ((flux == highest) & (flux >= needed)).nonzero()[:, 0].tolist()


@functools.lru_cache(maxsize=16)
def _bands(sample_rate: int, n_fft: int, bands: int) -> torch.Tensor:
    """Mel filters without the empty ones that a short window leaves, each summing to one `[bands, n_fft / 2 + 1]`."""
    highest = min(8000., sample_rate / 2)
    filters = mel_filters(sample_rate=sample_rate, n_fft=n_fft, n_mels=bands, fmin=30., fmax=highest)
    filters = filters[filters.sum(dim=1) > 0]
    return filters / filters.sum(dim=1, keepdim=True)


def _attack(mono: torch.Tensor, sample_rate: int, step: float = 0.001, span: float = 0.012) -> torch.Tensor:
    """How much louder the `span` after each millisecond is than the `span` before it, in amplitude `[T / step]`."""
    sharp = mono - 0.9 * F.pad(mono, (1, 0))[:-1]
    per_step = max(1, round(step * sample_rate))
    energy = F.pad(sharp.square(), (0, -len(sharp) % per_step)).unflatten(0, (-1, per_step)).mean(dim=1)
    steps = round(span / step)
    sums = F.pad(energy, (steps, steps)).unfold(0, steps, 1).mean(dim=1).sqrt()
    return (sums[steps:] - sums[:-steps])[:len(energy)]


def _refine(attack: torch.Tensor, time: float, step: float = 0.001, before: float = 0.03, after: float = 0.04) -> float:
    """The time of the steepest attack around a coarse `time`."""
    start = max(0, round((time - before) / step))
    piece = attack[start:max(start + 1, round((time + after) / step))]
    return (start + int(piece.argmax())) * step if len(piece) else time


def detect_onsets(wav: torch.Tensor, sample_rate: int, **options: tp.Any) -> list[float]:
    """Times in seconds of the onsets in `wav` `[T]` or `[C, T]`; options are the attributes of `OnsetDetector`."""
    return OnsetDetector(**options)(wav, sample_rate)


def match(estimated: tp.Sequence[float], true: tp.Sequence[float], tolerance: float = 0.05) -> list[tuple[int, int]]:
    """The largest one-to-one pairing of times that differ by at most `tolerance` seconds, as index pairs.

    Both lists may be in any order. Maximum bipartite matching by augmenting paths, so that no choice of a nearest
    neighbour takes a partner that another one needed.
    """
    near = [[j for j, t in enumerate(true) if abs(t - time) <= tolerance + 1e-9] for time in estimated]
    partner: dict[int, int] = {}

    def place(i: int, tried: set[int]) -> bool:
        for j in near[i]:
            if j not in tried:
                tried.add(j)
                if j not in partner or place(partner[j], tried):
                    partner[j] = i
                    return True
        return False

    for i in range(len(near)):
        place(i, set())
    return sorted((i, j) for j, i in partner.items())
