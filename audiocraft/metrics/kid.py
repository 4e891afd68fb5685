"""Kernel inception distance: unbiased squared maximum mean discrepancy, cubic kernel (Binkowski et al., 2018)."""

import typing as tp

import numpy as np
import torch

from ..data.samples import Clip
from .base import Metric, References, Results, unavailable
from .embedded import CepstralStatistics


def squared_mmd(a: torch.Tensor, b: torch.Tensor, *, degree: int = 3, gamma: float | None = None,
                coef: float = 1.) -> float:
    """Unbiased squared MMD of `[N, D]` and `[M, D]` with the kernel `(gamma x.y + coef) ** degree`, gamma 1/D."""
    a, b = a.double(), b.double()
    gamma = 1 / a.shape[1] if gamma is None else gamma

    def kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (gamma * x @ y.T + coef) ** degree

    def within(x: torch.Tensor) -> torch.Tensor:
        values = kernel(x, x)
        return (values.sum() - values.trace()) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * kernel(a, b).mean())


def kernel_distance(a: torch.Tensor, b: torch.Tensor, *, subsets: int = 100, subset_size: int = 1000,
                    seed: int = 2020) -> tuple[float, float]:
    """Mean and deviation (ddof 0) of the squared MMD over random subsets; both sets need `subset_size` members."""
    if min(len(a), len(b)) < subset_size or subset_size < 2:
        raise ValueError(f'subsets of {subset_size} need as many features (at least 2), got {len(a)} and {len(b)}')
    rng = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        first = a[rng.choice(len(a), subset_size, replace=False)]
        second = b[rng.choice(len(b), subset_size, replace=False)]
        values.append(squared_mmd(first, second))
    return float(np.mean(values)), float(np.std(values))


class KernelDistance(Metric):
    """Kernel distance between generated and true clips: `kid_<extractor>` and `..._std`.

    Unlike the Fréchet distance it has no bias for few clips, and may come out slightly negative.

    Args:
        extractor: clips to features `[N, D]`, with a `name`. Default: the embedded one.
        subsets (int): number of random subsets.
        subset_size (int): their size; fewer features than that are all taken.
    """

    def __init__(self, *, extractor: tp.Any = None, subsets: int = 100, subset_size: int = 1000):
        self.extractor = CepstralStatistics() if extractor is None else extractor
        self.subsets, self.subset_size = subsets, subset_size
        self.name = f'kid_{self.extractor.name}'
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
        size = min(self.subset_size, *map(len, sets))
        if size < 2:
            return unavailable(self.name, f'needs 2 generated and 2 true feature vectors, has '
                                          f'{len(sets[0])} and {len(sets[1])}')
        value, std = kernel_distance(*sets, subsets=self.subsets, subset_size=size)
        return {self.name: value, f'{self.name}_std': std}
