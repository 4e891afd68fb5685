"""Onset scores after the Greatest-Hits protocol (Owens et al., 2016), as published video-to-audio papers report them.

For comparison with those papers only: its tolerance is 0.3 s, it credits loud onsets, and it has quirks (kept here, and
named where they are) that make its numbers differ from a plain matching. `metrics.onset` is the plain one.
It starts from given onsets: the papers take librosa's detector at 22050 Hz.
"""

import dataclasses
import typing as tp

import numpy as np

SAMPLE_RATE = 22050
SECONDS = 8.
HALF_WINDOW = 1102  # samples on each side of an onset in which its loudness is taken
DISTANCE = 0.05     # seconds between two onsets that both count
TOLERANCE = 0.3     # seconds between an onset and the true time


def normalize(wav: np.ndarray) -> np.ndarray:
    """A waveform `[T]` mapped to the range from 0 to 1 by its extremes, in its own precision."""
    return (wav - wav.min()) / (wav.max() - wav.min() + 1e-6)


def loudness(onsets: tp.Sequence[int], wav_norm: np.ndarray) -> np.ndarray:
    """The largest value of `wav_norm` `[T]` around each onset (samples), `[N]`."""
    # A window that would begin before the clip is cut: in the original protocol it is empty, which is an error.
    return np.array([wav_norm[max(0, onset - HALF_WINDOW):onset + HALF_WINDOW].max() for onset in onsets])


def prune(onsets: tp.Sequence[int], wav_norm: np.ndarray, sample_rate: int = SAMPLE_RATE) -> list[int]:
    """Leave the loudest of onsets that are closer than 0.05 s, roughly.

    Quirk: neighbours are removed from a list while it is being walked, so that every second one survives. Equally loud
    ones come in the order of numpy's default sort.
    """
    left, kept = list(onsets), []
    for index in np.argsort(loudness(onsets, wav_norm))[::-1]:
        onset = onsets[index]
        if onset not in left:
            continue
        left.remove(onset)
        kept.append(onset)
        for other in left:
            if abs(other - onset) < DISTANCE * sample_rate:
                left.remove(other)
    return sorted(kept)


@dataclasses.dataclass
class Scores:
    """Of one file or of the mean over files."""
    accuracy: float
    average_precision: float
    f1: float


def score(onsets: tp.Sequence[int], wav: np.ndarray, true_times: tp.Sequence[float],
          sample_rate: int = SAMPLE_RATE) -> Scores | None:
    """Scores of the detected `onsets` (samples, before `prune`) in `wav` `[T]`; None when there is no true time.

    Each true time takes the loudest free onset within 0.3 s. When no onset is free any more the remaining true times
    are left out of precision and F1, but not of the accuracy (a quirk).
    """
    wav_norm = normalize(wav[:int(SECONDS * sample_rate)])
    onsets = prune([onset for onset in onsets if onset < len(wav_norm)], wav_norm, sample_rate)
    true_times = [time for time in true_times if time < SECONDS]
    if not true_times:
        return None
    labels, confidences, hits = _assign(onsets, wav_norm, true_times, sample_rate)
    return Scores(hits / len(true_times), average_precision(labels, confidences), f1_score(labels, confidences))


def _assign(onsets: list[int], wav_norm: np.ndarray, true_times: tp.Sequence[float],
            sample_rate: int) -> tuple[list[int], list[float], int]:
    free, levels = list(onsets), loudness(onsets, wav_norm).tolist()
    labels, confidences, hits = [], [], 0
    for time in true_times:
        if not free:
            break
        near = [i for i, onset in enumerate(free) if abs(onset - time * sample_rate) < TOLERANCE * sample_rate]
        labels.append(1)
        if not near:
            confidences.append(0.)
            continue
        # Quirk: positions in the shortened list are looked up in the full one.
        best = max(near, key=lambda i: wav_norm[onsets[i]])
        hits += 1
        confidences.append(levels.pop(best))
        del free[best]
    return labels + [0] * len(free), confidences + levels, hits


def average_precision(labels: tp.Sequence[int], confidences: tp.Sequence[float]) -> float:
    """The area under the steps of precision over recall, with equal confidences taken together."""
    order = np.argsort(-np.asarray(confidences), kind='stable')
    ordered, hits = np.asarray(confidences)[order], np.cumsum(np.asarray(labels)[order])
    if not len(ordered) or not hits[-1]:
        return 0.
    last = np.append(np.diff(ordered) != 0, True)
    precision, recall = (hits / np.arange(1, len(hits) + 1))[last], hits[last] / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.) * precision))


def f1_score(labels: tp.Sequence[int], confidences: tp.Sequence[float]) -> float:
    """F1 of calling positive whatever has a confidence above zero."""
    positive, true = np.asarray(confidences) > 0, np.asarray(labels) == 1
    both, total = float((positive & true).sum()), float(positive.sum() + true.sum())
    return 2 * both / total if total else 0.


def mean(scores: tp.Sequence[Scores]) -> Scores:
    """The mean over files."""
    rows = np.array([dataclasses.astuple(item) for item in scores])
    return Scores(*rows.mean(axis=0).tolist())
