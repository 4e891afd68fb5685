import numpy as np
import pytest

from audiocraft.metrics.greatest_hits import Scores, average_precision, f1_score, mean, prune, score


def clicks(times, loud, sample_rate=22050):
    wav = np.zeros(8 * sample_rate, np.float32)
    wav[-1] = -1.
    for time, level in zip(times, loud):
        wav[int(time * sample_rate)] = level
    return wav, [int(time * sample_rate) for time in times]


def test_perfect_and_hopeless():
    wav, onsets = clicks([1., 2., 3.], [1., 0.9, 0.8])
    assert score(onsets, wav, [1., 2., 3.]) == Scores(1., 1., 1.)
    found = score(onsets, wav, [5., 6.])
    assert found.accuracy == 0. and found.f1 == 0. and found.average_precision < 0.5
    assert score(onsets, wav, [9.]) is None


def test_the_tolerance_is_wide_and_a_prediction_is_used_once():
    wav, onsets = clicks([1.], [1.])
    assert score(onsets, wav, [1.29]).accuracy == 1. and score(onsets, wav, [1.31]).accuracy == 0.
    found = score(onsets, wav, [1.1, 0.9])
    assert found.accuracy == 0.5 and found.f1 == 1., 'what is left when no prediction is, counts in the accuracy only'


def test_false_onsets_cost_precision():
    wav, onsets = clicks([1., 4.], [0.5, 1.])
    found = score(onsets, wav, [1.])
    assert found.average_precision == pytest.approx(0.5) and found.f1 == pytest.approx(2 / 3)


def test_pruning_leaves_every_second_neighbour():
    wav = np.zeros(22050, np.float32)
    for onset, level in ((5000, 1.), (5300, 0.2), (5600, 0.2), (15000, 0.5)):
        wav[onset] = level
    assert prune([5000, 15000], wav) == [5000, 15000]
    kept = prune([5000, 15000, 16200], wav)
    assert kept == [5000, 15000, 16200]
    assert len(prune([5000, 5300, 5600], wav)) == 2


def test_pieces():
    assert average_precision([1, 0, 1], [0.9, 0.8, 0.7]) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert average_precision([1, 0], [0.5, 0.5]) == pytest.approx(0.5)
    assert average_precision([0], [1.]) == 0. and average_precision([], []) == 0.
    assert f1_score([1, 1, 0], [1., 0., 1.]) == pytest.approx(0.5)
    assert mean([Scores(1., 0., 0.), Scores(0., 1., 0.5)]) == Scores(0.5, 0.5, 0.25)
