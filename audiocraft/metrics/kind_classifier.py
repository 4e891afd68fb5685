"""Which kind of event sounds in a clip: a small classifier that is fitted to real sound when it is needed."""

import logging
import typing as tp
from collections import Counter

import torch
from torch.nn import functional as F

from ..data.samples import Clip
from ..modules.mel import LogMel
from .embedded import SAMPLE_RATE, cosines, mono_16k
from .onset_detection import OnsetDetector

logger = logging.getLogger(__name__)

HOP = 80
SPANS = ((0., 0.04), (0.04, 0.12), (0.12, 0.25))  # seconds after an onset
FLOOR = 4.6  # nepers of amplitude (40 dB) below the loudest band: what is softer tells of the noise, not of the kind


def kind_of(clip: Clip) -> str | None:
    """The kind of most of a clip's events; None when it has no events, or they have no kind."""
    kinds = Counter(str(event['kind']) for event in clip.events or [] if event.get('kind'))
    return kinds.most_common(1)[0][0] if kinds else None


class OnsetTimbre:
    """The shape of the spectrum just after an onset and how it decays, averaged over a clip's onsets."""

    def __init__(self, *, n_mels: int = 48, coefficients: int = 16):
        self.mel = LogMel(sample_rate=SAMPLE_RATE, n_fft=512, hop=HOP, n_mels=n_mels, fmin=40., fmax=8000., log='ln')
        self.table = cosines(n_mels, coefficients)
        self.detector = OnsetDetector()

    def __call__(self, clip: Clip) -> torch.Tensor:
        """Features `[D]` of one clip; where nothing is heard to begin, the loudest moment counts as the onset."""
        wav = mono_16k(clip)
        wav = F.pad(wav, (0, max(0, SAMPLE_RATE // 2 - len(wav))))
        logmel = self.mel(wav[None])[0]
        times = self.detector(wav, SAMPLE_RATE)
        frames = [round(time * SAMPLE_RATE / HOP) for time in times] or [int(logmel.logsumexp(0).argmax())]
        shapes, levels = zip(*(self._event(logmel, frame) for frame in frames))
        # Loud events count more: a faint one may be no event at all.
        weights = (torch.stack(levels) - max(levels)).exp()
        return (weights[:, None] / weights.sum() * torch.stack(shapes)).sum(dim=0).double()

    def _event(self, logmel: torch.Tensor, frame: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cepstra of the spans after an onset `[D]`, and the level of its loudest band."""
        spans = []
        for start, end in SPANS:
            first = min(frame + round(start * SAMPLE_RATE / HOP), logmel.shape[1] - 1)
            last = max(first + 1, frame + round(end * SAMPLE_RATE / HOP))
            spans.append(logmel[:, first:last].mean(dim=1))
        bands = torch.stack(spans)
        # Relative to the loudest band of the event: how loud a strike is does not say what was struck.
        return (self.table @ (bands - bands.max()).clamp_min(-FLOOR).T).flatten(), bands.max()


class KindClassifier:
    """Multinomial logistic regression on standardized features, one kind per clip.

    Args:
        features: clip to features `[D]`. Default: `OnsetTimbre`.
        decay (float): L2 penalty of the weights, which also keeps the probabilities from 0 and 1.
        steps (int): of the optimization.
    """

    def __init__(self, *, features: tp.Callable[[Clip], torch.Tensor] | None = None, decay: float = 0.01,
                 steps: int = 400):
        self.features = OnsetTimbre() if features is None else features
        self.decay, self.steps = decay, steps
        self.kinds: list[str] = []

    def fit(self, clips: tp.Sequence[Clip]) -> 'KindClassifier':
        """Fit to the clips whose kind is known; with fewer than two kinds there is nothing to tell apart."""
        known = [(clip, kind) for clip in clips if (kind := kind_of(clip)) is not None]
        self.kinds = sorted({kind for _, kind in known})
        if len(self.kinds) < 2:
            self.kinds = []
            return self
        features = torch.stack([self.features(clip) for clip, _ in known])
        labels = torch.tensor([self.kinds.index(kind) for _, kind in known])
        self.mean, self.scale = features.mean(dim=0), features.std(dim=0).clamp_min(1e-3)
        self.weight, self.bias = self._solve((features - self.mean) / self.scale, labels)
        return self

    def _solve(self, features: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights `[D, K]` and bias `[K]` by Nesterov's accelerated gradient; the problem is convex."""
        inputs = F.pad(features, (0, 1), value=1.)
        penalty = torch.full((inputs.shape[1], 1), 2 * self.decay, dtype=torch.float64)
        penalty[-1] = 0.
        target = F.one_hot(labels, len(self.kinds)).double()
        smoothness = torch.linalg.matrix_norm(inputs, 2) ** 2 / (2 * len(inputs)) + 2 * self.decay
        solution = previous = torch.zeros(inputs.shape[1], len(self.kinds), dtype=torch.float64)
        for step in range(self.steps):
            ahead = solution + step / (step + 3) * (solution - previous)
            gradient = inputs.T @ ((inputs @ ahead).softmax(1) - target) / len(inputs) + penalty * ahead
            previous, solution = solution, ahead - gradient / smoothness
        return solution[:-1], solution[-1]

    @property
    def missing(self) -> str:
        """Why there is no classifier, or ''."""
        return '' if self.kinds else 'no classifier: the training media have no events of at least two kinds'

    def logits(self, clips: tp.Sequence[Clip]) -> torch.Tensor:
        """Unnormalized log-probabilities of the kinds `[N, K]`."""
        if not clips:
            return torch.zeros(0, len(self.kinds), dtype=torch.float64)
        features = torch.stack([self.features(clip) for clip in clips])
        return (features - self.mean) / self.scale @ self.weight + self.bias


_latest: tuple[tuple[tuple[str, int], ...], KindClassifier] | None = None


def fitted_classifier(clips: tp.Sequence[Clip]) -> KindClassifier:
    """A classifier fitted to `clips`; metrics that are prepared with the same clips share one."""
    global _latest
    key = tuple((clip.id, clip.audio.data_ptr()) for clip in clips)
    if _latest is None or _latest[0] != key:
        _latest = key, KindClassifier().fit(clips)
    return _latest[1]
