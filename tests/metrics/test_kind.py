import dataclasses

import pytest
import torch

from audiocraft.metrics.inception_score import InceptionScore
from audiocraft.metrics.kind import KindAccuracy
from audiocraft.metrics.kind_classifier import KindClassifier, fitted_classifier, kind_of
from audiocraft.metrics.kl import KLDivergence

from .sounds import clips


@pytest.fixture(scope='module')
def training():
    return clips(16, seed=1)


def results(metric, generated, reference, training):
    metric.prepare(training)
    metric.update(generated, reference)
    return metric.compute()


def test_right_and_wrong_kinds(training):
    true = clips(8, seed=2)
    assert results(KindAccuracy(), true, true, training) == {'kind_accuracy': 1., 'kind_accuracy_truth': 1.}
    swapped = [true[i ^ 1] for i in range(8)]
    assert results(KindAccuracy(), swapped, true, training) == {'kind_accuracy': 0., 'kind_accuracy_truth': 1.}


def test_level_does_not_matter(training):
    true = clips(8, seed=2)
    quiet = [dataclasses.replace(clip, audio=0.05 * clip.audio) for clip in true]
    assert results(KindAccuracy(), quiet, true, training)['kind_accuracy'] == 1.


def test_sound_without_any_onset_is_scored_too(training):
    true = clips(4, seed=2)
    silent = [dataclasses.replace(clip, audio=torch.zeros(1, 1000)) for clip in true]
    assert results(KindAccuracy(), silent, true, training)['kind_accuracy'] == 0.5


def test_divergence_and_score_hear_the_kind(training):
    true = clips(8, seed=2)
    swapped = [true[i ^ 1] for i in range(8)]
    same = results(KLDivergence(), true, true, training)['kl_embedded']
    other = results(KLDivergence(), swapped, true, training)['kl_embedded']
    assert same == pytest.approx(0., abs=1e-9) and other > 1.
    varied = results(InceptionScore(), true, true, training)
    single = results(InceptionScore(), true[::2], true[::2], training)
    assert varied['isc_embedded'] > 1.6 and single['isc_embedded'] < 1.1 and varied['isc_embedded_std'] == 0.


@pytest.mark.parametrize('metric, name', [
    (KindAccuracy, 'kind_accuracy'), (KLDivergence, 'kl_embedded'), (InceptionScore, 'isc_embedded')])
def test_reasons_instead_of_numbers(metric, name, training):
    true = clips(2, seed=2)
    assert metric.fitted
    unprepared = metric()
    unprepared.update(true, true)
    assert unprepared.compute()[name] is None and 'prepare' in unprepared.compute()[f'{name}_reason']
    for media in ([], [dataclasses.replace(clip, events=None) for clip in training], training[::2]):
        found = results(metric(), true, true, media)
        assert found[name] is None and 'two kinds' in found[f'{name}_reason']
    prepared = metric()
    prepared.prepare(training)
    assert prepared.compute()[name] is None


def test_kind_of_a_clip():
    clip = clips(1)[0]
    events = [{'time': 1., 'kind': kind} for kind in ('a', 'b', 'b', '')]
    assert kind_of(dataclasses.replace(clip, events=events)) == 'b'
    assert kind_of(dataclasses.replace(clip, events=[])) is kind_of(dataclasses.replace(clip, events=None)) is None


def test_metrics_share_one_fit(training):
    assert fitted_classifier(training) is fitted_classifier(list(training))
    assert fitted_classifier(training) is not fitted_classifier(training[:8])
    again = KindClassifier().fit(training)
    torch.testing.assert_close(again.weight, fitted_classifier(training).weight)


def test_paired_by_position(training):
    metric = KindAccuracy()
    metric.prepare(training)
    with pytest.raises(ValueError):
        metric.update(training[:2], training[:1])
