"""Scores of a reconstruction against the very sound that it should be."""

import math

import pytest
import torch

from audiocraft.data.samples import Clip
from audiocraft.metrics.chroma import ChromaCosine
from audiocraft.metrics.kl import kl_probabilities, kl_softmax
from audiocraft.metrics.relative_volume import RelativeMelVolume, RelativeVolume
from audiocraft.metrics.sisnr import SISNR
from audiocraft.metrics.spectral import SpectralDistance, stft_distances

from .sounds import noise

RATE = 16_000
METRICS = [(SISNR, 'si_snr'), (SpectralDistance, 'mel_distance'), (ChromaCosine, 'chroma_cosine'),
           (RelativeVolume, 'relative_volume')]


def clip(wav, rate=RATE, id='x'):
    return Clip(id=id, audio=wav.reshape(-1, wav.shape[-1]), sample_rate=rate)


def score(metric, made, true):
    metric.reset()
    metric.update([clip(made)], [clip(true)])
    return metric.compute()


def tone(pitch, seconds=1., rate=RATE):
    return 0.3 * torch.sin(2 * math.pi * pitch * torch.arange(round(seconds * rate)) / rate)


def chord(*pitches, seconds=2.):
    return sum(tone(pitch * octave, seconds) for pitch in pitches for octave in (1, 2)) / len(pitches)


@pytest.mark.parametrize('kind, name', METRICS)
def test_nothing_to_compare_is_no_number(kind, name):
    metric = kind()
    metric.update([clip(tone(440))], [None])
    results = metric.compute()
    assert results[name] is None and 'no generated clip has a true one' in results[f'{name}_reason']


@pytest.mark.parametrize('kind, name', METRICS)
def test_clips_of_one_sample_stereo_and_other_rates(kind, name):
    metric = kind()
    metric.update([clip(torch.ones(1)), clip(noise(0.3, RATE, 0.1, 0).expand(2, -1))],
                  [clip(torch.ones(1)), clip(noise(0.5, 22_050, 0.1, 0), 22_050)])
    value = metric.compute()[name]
    assert isinstance(value, float) and math.isfinite(value)
    metric.reset()
    assert metric.compute()[name] is None


def test_si_snr_is_the_ratio_of_powers_whatever_the_volume():
    true, error = noise(4., RATE, 0.1, 1), noise(4., RATE, 0.1, 2)
    for decibels in (-10., 0., 20.):
        made = true + error * 10 ** (-decibels / 20)
        expected = score(SISNR(), made, true)['si_snr']
        assert expected == pytest.approx(decibels, abs=0.3)
        assert score(SISNR(), -3 * made + 0.2, true)['si_snr'] == pytest.approx(expected, abs=1e-3)
    assert score(SISNR(), true, true)['si_snr'] > 100
    assert score(SISNR(), torch.zeros_like(true), true)['si_snr'] == -120


def test_si_snr_of_several_clips():
    true, error = noise(1., RATE, 0.1, 1), noise(1., RATE, 0.1, 2)
    metric, pairs = SISNR(), [(true + error * 10 ** (-decibels / 20), true) for decibels in (0., 10., 50.)]
    metric.update([clip(made) for made, _ in pairs[:2]], [clip(true) for _, true in pairs[:2]])
    metric.update([clip(pairs[2][0]), clip(error)], [clip(true), clip(torch.full_like(true, 0.1))])
    results = metric.compute()
    assert results['si_snr'] == pytest.approx(20., abs=0.3) and results['si_snr_n'] == 3.  # the silent one is left out
    assert results['si_snr_median'] == pytest.approx(10., abs=0.3)
    assert results['si_snr_worst'] == pytest.approx(1., abs=0.3)


def test_si_snr_names_what_it_cannot_score():
    true = noise(1., RATE, 0.1, 1)
    assert 'silent' in score(SISNR(), true, torch.zeros_like(true))['si_snr_reason']
    broken = true.clone()
    broken[7] = float('nan')
    results = score(SISNR(), broken, true)
    assert results['si_snr'] is None and '1 of 1' in results['si_snr_reason']


def test_spectral_distances_are_zero_for_equals_and_grow_with_the_error():
    true, names = noise(1., RATE, 0.1, 1), ('mel_distance', 'log_spectral_distance', 'stft_distance')
    assert score(SpectralDistance(), true, true) == {name: pytest.approx(0., abs=1e-6) for name in (
        *names, 'stft_distance_convergence', 'stft_distance_log_magnitude')}
    near, far = (score(SpectralDistance(), true + noise(1., RATE, level, 2), true) for level in (0.01, 0.1))
    assert all(0 < near[name] < far[name] for name in names)
    assert far['stft_distance'] == pytest.approx(far['stft_distance_convergence'] + far['stft_distance_log_magnitude'])


def test_stft_distances_in_closed_form():
    true = noise(1., RATE, 0.3, 1)[None]
    convergence, log_magnitude = stft_distances(0.5 * true, true, 512, 1e-12)
    assert convergence == pytest.approx(0.5, abs=1e-5) and log_magnitude == pytest.approx(math.log(2), abs=1e-5)
    assert stft_distances(true, torch.zeros_like(true), 512, 1e-5)[0] < math.inf


def test_chroma_knows_the_chord_but_not_the_octave_or_the_volume():
    c_major, c_above, f_sharp = chord(261.6, 329.6, 392.), chord(523.2, 659.2, 784.), chord(185., 233.1, 277.2)
    metric = ChromaCosine(n_fft=4096)
    same, other = score(metric, 0.1 * c_above, c_major), score(metric, f_sharp, c_major)
    assert same['chroma_cosine'] > 0.9 > 0.4 > other['chroma_cosine']
    strict = ChromaCosine(n_fft=4096, one_hot=True)
    assert score(strict, c_major, c_major)['chroma_cosine'] == pytest.approx(1.)
    half = torch.cat([tone(440., 2.), tone(622.3, 2.)])
    assert score(strict, half, tone(440., 4.))['chroma_cosine'] == pytest.approx(0.5, abs=0.1)


def test_relative_volume_is_that_of_the_error():
    true = noise(2., RATE, 0.1, 1)
    for decibels in (-20., -10., 0.):
        made = true * (1 - 10 ** (decibels / 20))  # the error is the sound itself, softer
        results = score(RelativeVolume(), made, true)
        assert results['relative_volume'] == pytest.approx(decibels, abs=0.2)
        assert results['relative_volume_3'] == pytest.approx(decibels, abs=0.2)
    assert score(RelativeVolume(), true, true)['relative_volume'] == pytest.approx(-25.)
    assert score(RelativeVolume(), 100 * true, true)['relative_volume'] == pytest.approx(25., abs=0.5)


def test_bands_without_a_point_of_the_spectrum_do_not_count():
    true = noise(2., 2 * RATE, 0.1, 1)[None]
    right, recorded = (RelativeMelVolume(sample_rate=2 * RATE, count_empty=count) for count in (False, True))
    empty = ~right.counted
    assert empty.any() and recorded.counted.all()
    made = 0.5 * true
    assert right(made, true)[empty].isnan().all() and right(made, true)[~empty].mean() == pytest.approx(-6.02, abs=0.1)
    assert recorded(made, true)[empty].eq(recorded.floor).all()


def test_kl_of_probabilities():
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    assert kl_probabilities(p, q, 0.).item() == pytest.approx(kl_softmax(p.log(), q.log()).item())
    sure = torch.tensor([[1., 0.]])
    assert kl_probabilities(sure, sure).item() == pytest.approx(0., abs=1e-5)
    assert kl_probabilities(1 - sure, sure).item() == pytest.approx(-math.log(1e-6), rel=1e-3)
