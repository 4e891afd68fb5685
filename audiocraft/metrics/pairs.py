"""A generated clip and the true one, made comparable sample by sample."""

import typing as tp

import torch

from ..data.audio import resample
from ..data.samples import Clip, fit_length
from .base import References, sound_of

NO_PAIRS = 'no generated clip has a true one'


def aligned(generated: tp.Sequence[Clip], reference: References, *,
            sample_rate: int | None = None) -> tp.Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
    """Yield (generated, true, sample rate) as mono float32 `[1, T]` on the CPU, for the clips that have a true one.

    Both have the length of the generated one: the true one is cut, or filled with zeros.

    Args:
        sample_rate (int or None): of both; None for that of each generated clip.
    """
    for clip, true in zip(generated, reference, strict=True):
        if true is None or not clip.audio.shape[-1]:
            continue
        rate = sample_rate or clip.sample_rate
        ours, theirs = (resample(sound_of(one)[None], one.sample_rate, rate) for one in (clip, true))
        yield ours, fit_length(theirs, ours.shape[-1]), rate
