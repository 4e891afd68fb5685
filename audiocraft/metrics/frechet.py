"""Fréchet distance between two sets of features (Heusel et al., 2017; as FAD, Kilgour et al., 2019)."""

import logging
import typing as tp

import torch

from ..data.samples import Clip
from .base import Metric, References, Results, unavailable
from .embedded import CepstralStatistics
from .network_metric import NetworkMetric, Tensors

logger = logging.getLogger(__name__)


def gaussian(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean `[D]` and unbiased covariance `[D, D]` of features `[N, D]`, in float64; N must be at least 2."""
    features = features.double()
    if features.dim() != 2 or len(features) < 2:
        raise ValueError(f'a covariance needs features [N, D] with N >= 2, got {list(features.shape)}')
    return features.mean(dim=0), torch.cov(features.T).reshape(features.shape[1], features.shape[1])


def frechet_distance(mean_a: torch.Tensor, cov_a: torch.Tensor, mean_b: torch.Tensor, cov_b: torch.Tensor) -> float:
    """Squared distance `|a - b|^2 + tr A + tr B - 2 tr (A B)^(1/2)` of two Gaussians, in float64.

    The last trace is that of `(A^(1/2) B A^(1/2))^(1/2)`, a symmetric matrix: no complex root, and no failure when a
    covariance is singular.
    """
    mean_a, cov_a, mean_b, cov_b = (x.double() for x in (mean_a, cov_a, mean_b, cov_b))
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    product = root @ cov_b @ root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
    value = float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross)
    return max(value, 0.)  # below zero there is only rounding


class FrechetDistance(Metric):
    """Fréchet distance between all generated and all true clips, which need not be paired.

    Gives `fd_<extractor>`, and `fd_<extractor>_n`, the smaller number of feature vectors: with no more of them than
    dims the covariance is singular and the distance biased, which is warned of.

    Args:
        extractor: clips to features `[N, D]`, with a `name`. Default: the embedded one, which needs no weights.
    """

    def __init__(self, *, extractor: tp.Any = None):
        self.extractor = CepstralStatistics() if extractor is None else extractor
        self.name = f'fd_{self.extractor.name}'
        self._warned = False
        self.reset()

    def reset(self) -> None:
        """See `Metric.reset`."""
        self.generated: list[torch.Tensor] = []
        self.true: list[torch.Tensor] = []

    def update(self, generated: tp.Sequence[Clip], reference: References) -> None:
        """See `Metric.update`."""
        self.generated.append(self.extractor(generated))
        self.true.append(self.extractor([clip for clip in reference if clip is not None]))

    def compute(self) -> Results:
        """See `Metric.compute`."""
        sets = [torch.cat(parts) if parts else torch.zeros(0, 1) for parts in (self.generated, self.true)]
        results = distance_of_sets(self.name, *sets, warn=not self._warned)
        self._warned |= min(map(len, sets)) <= sets[0].shape[1]
        return results


def distance_of_sets(name: str, generated: torch.Tensor, true: torch.Tensor, *, warn: bool = True) -> Results:
    """The result on features `[N, D]` and `[M, D]`, and `<name>_n`, the smaller of N and M; or why there is none."""
    count = min(len(generated), len(true))
    if count < 2:
        return unavailable(name, f'needs 2 generated and 2 true feature vectors, has {len(generated)} and {len(true)}')
    if not all(features.isfinite().all() for features in (generated, true)):
        return unavailable(name, 'features are not finite')
    if count <= generated.shape[1] and warn:
        logger.warning('%s: %d feature vectors for %d dims: the covariance is singular, read it with care.',
                       name, count, generated.shape[1])
    return {name: frechet_distance(*gaussian(generated), *gaussian(true)), f'{name}_n': float(count)}


class NetworkFrechet(NetworkMetric):
    """Fréchet distance on features of a network: `name`, and `<name>_n` as `FrechetDistance` gives it.

    Where a clip has several feature vectors (windows of VGGish), those of all clips are one set.
    """

    def score(self, generated: Tensors, true: Tensors) -> Results:
        """See `NetworkMetric.score`."""
        return distance_of_sets(self.name, *(torch.cat([torch.atleast_2d(one) for one in side]) if side else
                                             torch.zeros(0, 1) for side in (generated, true)))
