"""What every metric is: fed with clips, asked once for its results."""

import typing as tp

import torch

from ..data.audio import to_mono
from ..data.samples import Clip

Results = dict[str, float | str | None]
References = tp.Sequence[Clip | None]


class Metric:
    """Compares generated clips with true ones.

    `update` may be called for any number of batches; `compute` gives the results of all since the last `reset`. A value
    that could not be computed is None, with a second entry `<name>_reason` that says why: never 0, never -1.

    Attributes:
        fitted (bool): whether `prepare` must be called with real training clips first. A fit outlives `reset`.
    """
    fitted: bool = False

    def prepare(self, train_media: tp.Sequence[Clip]) -> None:
        """Fit what the metric needs to real training clips."""

    def reset(self) -> None:
        """Forget the clips, not the fit."""
        raise NotImplementedError(f'{type(self).__name__} has no reset()')

    def update(self, generated: tp.Sequence[Clip], reference: References) -> None:
        """Take generated clips, and for each of them the true clip or None."""
        raise NotImplementedError(f'{type(self).__name__} has no update(generated, reference)')

    def compute(self) -> Results:
        """The results by name."""
        raise NotImplementedError(f'{type(self).__name__} has no compute()')


def sound_of(clip: Clip) -> torch.Tensor:
    """The sound of a clip as mono float32 `[T]` on the CPU."""
    return to_mono(clip.audio.detach().cpu().float()).reshape(-1)


def unavailable(name: str, reason: str) -> Results:
    """The results of a metric that has none, and why."""
    return {name: None, f'{name}_reason': reason}
