"""Does it have the harmony of the true music?"""

import typing as tp

import torch
from torch.nn import functional as F

from ..data.samples import Clip
from ..modules.chroma import Chroma
from .base import Metric, References, Results, unavailable
from .pairs import NO_PAIRS, aligned


def frame_cosines(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Cosine similarity of paired chroma `[..., F, n_chroma]` for each frame, `[..., F]`."""
    return F.cosine_similarity(a, b, dim=-1)


class ChromaCosine(Metric):
    """Cosine similarity of the chroma of generated and true sound, averaged over all frames of all clips.

    Gives `chroma_cosine`, from 0 to 1.

    Args:
        n_fft (int): samples of a window; frames are a quarter of it apart.
        n_chroma (int): classes of an octave.
        one_hot (bool): compare the strongest classes only; the result is then the share of frames in which they
            are the same.
    """

    def __init__(self, *, n_fft: int = 2 ** 14, n_chroma: int = 12, one_hot: bool = False):
        self.options: dict[str, tp.Any] = dict(n_fft=n_fft, n_chroma=n_chroma, one_hot=one_hot)
        self.chroma: Chroma | None = None
        self.reset()

    def reset(self) -> None:
        """See `Metric.reset`."""
        self.total, self.frames = 0., 0

    def update(self, generated: tp.Sequence[Clip], reference: References) -> None:
        """See `Metric.update`."""
        for ours, theirs, sample_rate in aligned(generated, reference):
            if self.chroma is None or self.chroma.sample_rate != sample_rate:
                self.chroma = Chroma(sample_rate=sample_rate, **self.options)
            # The last window hangs over the end; only frames that begin within the sound count.
            frames = -(-ours.shape[-1] // self.chroma.hop)
            cosines = frame_cosines(self.chroma(ours)[0], self.chroma(theirs)[0])[:frames]
            self.total += float(cosines.sum())
            self.frames += len(cosines)

    def compute(self) -> Results:
        """See `Metric.compute`."""
        return {'chroma_cosine': self.total / self.frames} if self.frames else unavailable('chroma_cosine', NO_PAIRS)
