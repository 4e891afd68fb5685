"""How much of its codebooks a discrete compression model uses, and what its codes cost."""

import math
import typing as tp

import torch

from ..data.samples import Clip
from .base import Metric, References, Results, unavailable


def entropy(counts: torch.Tensor) -> torch.Tensor:
    """Entropy in bits of the distributions whose counts are the rows of `[..., N]`; 0 for a row of zeros."""
    shares = counts.double() / counts.sum(dim=-1, keepdim=True).clamp_min(1)
    return -torch.special.xlogy(shares, shares).sum(dim=-1) / math.log(2)


class CodebookUse(Metric):
    """Statistics of the codes of all clips together, level by level.

    Gives `codebook_use`, the share of entries that occur at all, and `codebook_perplexity`, 2 to the entropy of their
    frequencies (the number of equally frequent entries with that entropy), as means over the levels and for each
    level as `codebook_use_0`, ...; and in kilobits per second `bitrate`, what codes of fixed size cost
    (`K * log2(bins) * frame_rate / 1000`), and `bitrate_entropy`, what they cost when each level is coded by its own
    frequencies. `codebook_use_frames` is the number of frames behind all of it: with no more of them than entries,
    not every entry can occur.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """See `Metric.reset`."""
        self.counts: torch.Tensor | None = None
        self.rates: set[float | None] = set()
        self.frames = 0

    def update(self, generated: tp.Sequence[Clip], reference: References) -> None:
        """See `Metric.update`. The codes are those of the generated clips; the true ones are not looked at.

        Raises:
            ValueError: when a code is outside of the codebook, or clips have other codebooks than those before.
        """
        for clip in generated:
            if clip.codes is None or not clip.codes.numel():
                continue
            if not clip.bins:
                raise ValueError(f'clip {clip.id!r} has codes, but does not say of how many bins')
            counts = count_codes(clip.codes, clip.bins)
            if self.counts is not None and self.counts.shape != counts.shape:
                raise ValueError(f'clip {clip.id!r} has codes of {list(counts.shape)} levels and bins, those before '
                                 f'had {list(self.counts.shape)}')
            self.counts = counts if self.counts is None else self.counts + counts
            self.rates.add(clip.frame_rate)
            self.frames += clip.codes.shape[-1]

    def compute(self) -> Results:
        """See `Metric.compute`."""
        if self.counts is None:
            return unavailable('codebook_use', 'the model has no codebooks: no clip has codes')
        bits = entropy(self.counts)
        used, perplexity = (self.counts > 0).double().mean(dim=1), 2 ** bits
        results: Results = {'codebook_use': float(used.mean()), 'codebook_perplexity': float(perplexity.mean())}
        for level, values in enumerate(zip(used.tolist(), perplexity.tolist())):
            results |= {f'codebook_use_{level}': values[0], f'codebook_perplexity_{level}': values[1]}
        return results | {'codebook_use_frames': float(self.frames)} | self._bitrates(float(bits.sum()))

    def _bitrates(self, bits: float) -> Results:
        """Nominal and effective bitrate, when the clips tell one frame rate."""
        assert self.counts is not None
        rate = next(iter(self.rates)) if len(self.rates) == 1 else None
        if rate is None:
            return unavailable('bitrate', 'the clips do not say how many frames a second has, or not all the same')
        levels, bins = self.counts.shape
        return {'bitrate': levels * math.log2(bins) * rate / 1000, 'bitrate_entropy': bits * rate / 1000}


def count_codes(codes: torch.Tensor, bins: int) -> torch.Tensor:
    """How often each of `bins` entries occurs in codes `[K, T']`, as `[K, bins]`, int64."""
    codes = codes.detach().cpu().long()
    low, high = (int(value) for value in codes.aminmax())
    if low < 0 or high >= bins:
        raise ValueError(f'codes lie between {low} and {high}, outside of a codebook of {bins} entries')
    levels = torch.arange(len(codes))[:, None] * bins
    return torch.bincount((codes + levels).flatten(), minlength=len(codes) * bins).view(len(codes), bins)
