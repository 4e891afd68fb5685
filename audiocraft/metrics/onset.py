"""Do the sounds start when the events happen?"""

import typing as tp

from ..data.samples import Clip
from .base import Metric, References, Results, unavailable
from .onset_detection import OnsetDetector, detect_onsets, match

__all__ = ['OnsetDetector', 'OnsetF1', 'detect_onsets', 'match', 'onset_scores']

Times = list[float]


def onset_scores(pairs: tp.Iterable[tuple[Times, Times]], tolerance: float = 0.05) -> tuple[float, float, float]:
    """Precision, recall and F1 over all (estimated, true) times together; where nothing was found, precision is 0."""
    hits = estimated = true = 0
    for found, wanted in pairs:
        hits += len(match(found, wanted, tolerance))
        estimated, true = estimated + len(found), true + len(wanted)
    total = estimated + true
    return hits / estimated if estimated else 0., hits / true if true else 0., 2 * hits / total if total else 0.


class OnsetF1(Metric):
    """Onsets detected in the generated sound against the true events of the clip, one to one within a tolerance.

    Gives `onset_f1`, `onset_precision`, `onset_recall` over the onsets of all clips together, and
    `onset_f1_wrong_video`: the F1 against the events of other clips, averaged over pairings in which no clip has its
    own, which is what chance gives.

    Args:
        tolerance (float): seconds by which a pair may differ.
        wrong_pairings (int): number of pairings that the control averages.
        detector (dict or None): attributes of `OnsetDetector`.
    """

    def __init__(self, *, tolerance: float = 0.05, wrong_pairings: int = 8,
                 detector: dict[str, tp.Any] | None = None):
        self.tolerance, self.wrong_pairings = tolerance, wrong_pairings
        self.detector = OnsetDetector(**detector or {})
        self.reset()

    def reset(self) -> None:
        """See `Metric.reset`."""
        self.pairs: list[tuple[Times, Times]] = []

    def update(self, generated: tp.Sequence[Clip], reference: References) -> None:
        """See `Metric.update`. Pairs without a true clip, or whose true clip has no list of events, do not count."""
        for clip, true in zip(generated, reference, strict=True):
            if true is None or true.events is None:
                continue
            duration = clip.audio.shape[-1] / clip.sample_rate
            wanted = sorted(float(event['time']) for event in true.events if event['time'] < duration)
            self.pairs.append((self.detector(clip.audio, clip.sample_rate), wanted))

    def compute(self) -> Results:
        """See `Metric.compute`."""
        if not self.pairs:
            return unavailable('onset_f1', 'no generated clip has a true one with events')
        if not any(wanted for _, wanted in self.pairs):
            return unavailable('onset_f1', 'the true clips have no event at all')
        precision, recall, f1 = onset_scores(self.pairs, self.tolerance)
        results: Results = {'onset_f1': f1, 'onset_precision': precision, 'onset_recall': recall}
        if len(self.pairs) > 1:
            results['onset_f1_wrong_video'] = self._wrong_video()
        return results

    def _wrong_video(self) -> float:
        """Each clip against the events of the one `shift` places on: for no shift does a clip meet its own."""
        count = len(self.pairs)
        shifts = {1 + i * (count - 1) // self.wrong_pairings for i in range(self.wrong_pairings)}
        scores = []
        for shift in sorted(shifts):
            wrong = [(found, self.pairs[(i + shift) % count][1]) for i, (found, _) in enumerate(self.pairs)]
            scores.append(onset_scores(wrong, self.tolerance)[2])
        return sum(scores) / len(scores)
