"""Kullback-Leibler divergence between what a classifier hears in the true and in the generated sound."""

import typing as tp

import torch
from torch.nn import functional as F

from ..data.samples import Clip
from .base import Metric, References, Results, unavailable
from .kind_classifier import KindClassifier, fitted_classifier
from .network_metric import NetworkMetric, Tensors


def kl_softmax(true: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
    """`KL(true || generated)` of paired logits `[N, K]` of exclusive classes, for each pair `[N]`."""
    return F.kl_div(generated.log_softmax(-1), true.log_softmax(-1), log_target=True, reduction='none').sum(-1)


def kl_sigmoid(true: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
    """The same for classes that do not exclude each other: `sum p (log p - log q)` over sigmoids.

    As av-benchmark defines it, without the terms of `1 - p`: it may be negative.
    """
    return (true.sigmoid() * (F.logsigmoid(true) - F.logsigmoid(generated))).sum(-1)


def kl_probabilities(true: torch.Tensor, generated: torch.Tensor, epsilon: float = 1e-6) -> torch.Tensor:
    """`KL(true || generated)` of paired probabilities `[N, K]`, for each pair `[N]`.

    `epsilon` is added to the generated ones, so that a class that was not heard at all costs much, but not everything:
    what AudioCraft's KLD does with the outputs of PaSST.
    """
    return (torch.special.xlogy(true, true) - true * (generated + epsilon).log()).sum(-1)


class KLDivergence(Metric):
    """Mean divergence over pairs, `kl_<classifier>`.

    Args:
        classifier: has `name` and `logits(clips)` `[N, K]`. Default: the kind classifier, fitted to the training media,
            whose results are named `embedded`.
        exclusive (bool): softmax for exclusive classes, else sigmoid.
    """
    fitted = True

    def __init__(self, *, classifier: tp.Any = None, exclusive: bool = True):
        self.classifier = classifier
        self.fitted = classifier is None
        self.divergence = kl_softmax if exclusive else kl_sigmoid
        self.name = f'kl_{getattr(classifier, "name", "embedded")}'
        self.reset()

    def prepare(self, train_media: tp.Sequence[Clip]) -> None:
        """See `Metric.prepare`."""
        if self.fitted:
            self.classifier = fitted_classifier(train_media)

    def reset(self) -> None:
        """See `Metric.reset`."""
        self.values: list[torch.Tensor] = []

    def update(self, generated: tp.Sequence[Clip], reference: References) -> None:
        """See `Metric.update`."""
        if _missing(self.classifier):
            return
        pairs = [(a, b) for a, b in zip(generated, reference, strict=True) if b is not None]
        true = self.classifier.logits([b for _, b in pairs])
        self.values.append(self.divergence(true, self.classifier.logits([a for a, _ in pairs])))

    def compute(self) -> Results:
        """See `Metric.compute`."""
        if reason := _missing(self.classifier):
            return unavailable(self.name, reason)
        values = torch.cat(self.values) if self.values else torch.zeros(0)
        if not len(values):
            return unavailable(self.name, 'no generated clip has a true one')
        return {self.name: float(values.mean())}


class NetworkKL(NetworkMetric):
    """Mean divergence over pairs between the classes that a network hears; `<name>_n` is the number of pairs.

    The classes exclude each other (softmax). `feature` should be `logits`.
    """

    def score(self, generated: Tensors, true: Tensors) -> Results:
        """See `NetworkMetric.score`."""
        values = kl_softmax(torch.stack(true).double(), torch.stack(generated).double())
        return {self.name: float(values.mean()), f'{self.name}_n': float(len(values))}


def _missing(classifier: tp.Any) -> str:
    """Why there are no logits, or ''."""
    if classifier is None:
        return 'prepare(train_media) was not called'
    return classifier.missing if isinstance(classifier, KindClassifier) else ''
