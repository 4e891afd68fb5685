"""Inception score: are the classes of single clips certain, and those of all clips varied? (Salimans et al., 2016)"""

import typing as tp

import numpy as np
import torch

from ..data.samples import Clip
from .base import Metric, References, Results, unavailable
from .kind_classifier import fitted_classifier
from .kl import _missing
from .network_metric import NetworkMetric, Tensors


def inception_score(logits: torch.Tensor, *, splits: int = 10, seed: int = 2020) -> tuple[float, float]:
    """Mean and deviation (ddof 0) over splits of `exp(mean KL(p_i || mean p))` for logits `[N, K]`, in float64.

    The clips are shuffled with numpy's `RandomState(seed)` before they are split; N must be at least `splits`.
    """
    if not 1 <= splits <= len(logits):
        raise ValueError(f'{splits} splits need as many clips, got {len(logits)}')
    logits = logits.double()[np.random.RandomState(seed).permutation(len(logits))]
    scores = []
    for i in range(splits):
        logp = logits[i * len(logits) // splits:(i + 1) * len(logits) // splits].log_softmax(-1)
        p = logp.exp()
        scores.append(float((p * (logp - p.mean(dim=0, keepdim=True).log())).sum(-1).mean().exp()))
    return float(np.mean(scores)), float(np.std(scores))


class InceptionScore(Metric):
    """Inception score of the generated clips: `isc_<classifier>` and `..._std`, from 1 to the number of classes.

    Args:
        classifier: has `name` and `logits(clips)` `[N, K]`. Default: the kind classifier, fitted to the training media,
            whose results are named `embedded`.
        splits (int): parts of which each gives a score. Small parts give small scores: compare equal sizes only.
    """
    fitted = True

    def __init__(self, *, classifier: tp.Any = None, splits: int = 1):
        self.classifier, self.splits = classifier, splits
        self.fitted = classifier is None
        self.name = f'isc_{getattr(classifier, "name", "embedded")}'
        self.reset()

    def prepare(self, train_media: tp.Sequence[Clip]) -> None:
        """See `Metric.prepare`."""
        if self.fitted:
            self.classifier = fitted_classifier(train_media)

    def reset(self) -> None:
        """See `Metric.reset`."""
        self.logits: list[torch.Tensor] = []

    def update(self, generated: tp.Sequence[Clip], reference: References) -> None:
        """See `Metric.update`."""
        if not _missing(self.classifier):
            self.logits.append(self.classifier.logits(generated))

    def compute(self) -> Results:
        """See `Metric.compute`."""
        if reason := _missing(self.classifier):
            return unavailable(self.name, reason)
        count = sum(map(len, self.logits))
        if count < self.splits:
            return unavailable(self.name, f'{self.splits} splits need as many clips, there are {count}')
        mean, std = inception_score(torch.cat(self.logits), splits=self.splits)
        return {self.name: mean, f'{self.name}_std': std}


class NetworkInception(NetworkMetric):
    """Inception score of the generated clips by the classes of a network: `<name>-mean` and `<name>-std`.

    Args:
        splits (int): parts of which each gives a score.
        name (str): beginning of the names of the results.
        network, feature, generated_cache: see `NetworkMetric`.
        cache (str or None): not read: true clips do not count here.
    """
    needs_truth = False

    def __init__(self, *, network: tp.Any, name: str, splits: int = 10, feature: str = 'logits',
                 cache: str | None = None, generated_cache: str | None = None):
        self.splits, self.std = splits, f'{name}-std'
        super().__init__(network=network, name=f'{name}-mean', feature=feature, cache=cache, paired=False,
                         generated_cache=generated_cache)

    def compute(self) -> Results:
        """See `Metric.compute`; where there is no result, both are null."""
        results = super().compute()
        return results if self.std in results else results | unavailable(self.std, str(results[f'{self.name}_reason']))

    def score(self, generated: Tensors, true: Tensors) -> Results:
        """See `NetworkMetric.score`."""
        if len(generated) < self.splits:
            return unavailable(self.name, f'{self.splits} splits need as many clips, there are {len(generated)}')
        mean, std = inception_score(torch.stack(generated), splits=self.splits)
        return {self.name: mean, self.std: std, f'{self.name}_n': float(len(generated))}
