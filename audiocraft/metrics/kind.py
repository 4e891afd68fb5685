"""Does it sound like the right kind of thing?"""

import typing as tp

from ..data.samples import Clip
from .base import Metric, References, Results, unavailable
from .kind_classifier import KindClassifier, fitted_classifier, kind_of


class KindAccuracy(Metric):
    """Share of clips whose sound a classifier, fitted to real training sound, puts into the true kind.

    Gives `kind_accuracy`, and `kind_accuracy_truth`: the same for the true sounds, which is what the classifier can do.
    The true kind is that of the true clip's events.
    """
    fitted = True

    def __init__(self) -> None:
        self.classifier: KindClassifier | None = None
        self.reset()

    def prepare(self, train_media: tp.Sequence[Clip]) -> None:
        """See `Metric.prepare`."""
        self.classifier = fitted_classifier(train_media)

    def reset(self) -> None:
        """See `Metric.reset`."""
        self.right: list[bool] = []
        self.right_truth: list[bool] = []

    def update(self, generated: tp.Sequence[Clip], reference: References) -> None:
        """See `Metric.update`."""
        if self.classifier is None or self.classifier.missing:
            return
        pairs = [(a, b) for a, b in zip(generated, reference, strict=True) if b is not None and kind_of(b)]
        kinds = [kind_of(b) for _, b in pairs]
        self.right += self._right([a for a, _ in pairs], kinds)
        self.right_truth += self._right([b for _, b in pairs], kinds)

    def _right(self, clips: list[Clip], kinds: list[str | None]) -> list[bool]:
        assert self.classifier is not None
        heard = self.classifier.logits(clips).argmax(dim=1).tolist() if clips else []
        return [self.classifier.kinds[index] == kind for index, kind in zip(heard, kinds, strict=True)]

    def compute(self) -> Results:
        """See `Metric.compute`."""
        if self.classifier is None:
            return unavailable('kind_accuracy', 'prepare(train_media) was not called')
        if reason := self.classifier.missing:
            return unavailable('kind_accuracy', reason)
        if not self.right:
            return unavailable('kind_accuracy', 'no generated clip has a true one with events of a kind')
        return {'kind_accuracy': sum(self.right) / len(self.right),
                'kind_accuracy_truth': sum(self.right_truth) / len(self.right_truth)}
