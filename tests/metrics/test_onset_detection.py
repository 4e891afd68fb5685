import pytest
import torch

from audiocraft.metrics.onset import detect_onsets, match, onset_scores
from audiocraft.modules.mel import LogMel

from .sounds import noise, random_times, struck


def scores_of(make, count=24, tolerance=0.05):
    pairs = [(detect_onsets(*make(random_times(seed), seed)), random_times(seed)) for seed in range(count)]
    return onset_scores(pairs, tolerance)


@pytest.mark.parametrize('sample_rate', [8_000, 16_000, 44_100])
@pytest.mark.parametrize('pitch', [120., 800.])
def test_strikes_on_noise_within_ten_milliseconds(sample_rate, pitch):
    make = lambda times, seed: (struck(times, sample_rate=sample_rate, pitch=pitch, seed=seed), sample_rate)  # noqa: E731
    precision, recall, _ = scores_of(make, tolerance=0.01)
    assert precision >= 0.98 and recall >= 0.98


@pytest.mark.parametrize('background', [0., 0.0003, 0.02])
def test_whatever_the_background(background):
    precision, recall, _ = scores_of(lambda times, seed: (struck(times, background=background, seed=seed), 16_000))
    assert precision >= 0.98 and recall >= 0.98


def test_sounds_that_ring_into_each_other():
    precision, recall, _ = scores_of(lambda times, seed: (struck(times, decay=0.3, seed=seed), 16_000))
    assert precision >= 0.98 and recall >= 0.98


def test_phases_made_by_griffin_lim():
    mel = LogMel()
    make = lambda times, seed: (mel.griffin_lim(mel(struck(times, seed=seed))), 16_000)  # noqa: E731
    precision, recall, _ = scores_of(make, count=12, tolerance=0.02)
    assert precision >= 0.98 and recall >= 0.98


def test_loudness_does_not_matter():
    wav = struck([0.5, 1.2])
    assert detect_onsets(wav, 16_000) == pytest.approx(detect_onsets(1e-3 * wav, 16_000))


def test_nothing_in_noise_or_silence():
    found = sum(len(detect_onsets(noise(4., 16_000, 0.1, seed), 16_000)) for seed in range(20))
    assert found <= 1
    for wav in (torch.zeros(16_000), torch.zeros(2, 100), torch.zeros(0), torch.full((16_000,), 0.5),
                torch.full((16_000,), float('nan'))):
        assert detect_onsets(wav, 16_000) == []


def test_a_steady_tone_that_is_cut_off_has_no_onset_at_its_end():
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(16_000) / 16_000)
    assert all(time < 0.05 for time in detect_onsets(tone, 16_000))


def test_stereo_is_mixed():
    wav = struck([0.5, 1.2])
    assert detect_onsets(wav.expand(2, -1), 16_000) == detect_onsets(wav, 16_000)


def test_matching_is_one_to_one_and_as_large_as_possible():
    assert match([1.0, 1.02], [1.01]) in ([(0, 0)], [(1, 0)])
    # The first could take either; only one choice leaves a partner for the second.
    assert match([1.0, 1.04], [0.96, 1.0], tolerance=0.04) == [(0, 0), (1, 1)]
    assert match([1.0, 0.95], [1.0, 1.05], tolerance=0.05) == [(0, 1), (1, 0)]
    assert match([1.0], [1.0501]) == [] and match([1.0], [1.05]) == [(0, 0)]
    assert match([], [1.]) == [] and match([1.], []) == []


def test_matching_equals_exhaustive_search():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        a, b = (torch.rand(5, generator=generator).mul(0.4).tolist() for _ in range(2))
        pairs = match(a, b)
        assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
        assert all(abs(a[i] - b[j]) <= 0.05 + 1e-9 for i, j in pairs)
        assert len(pairs) == _largest(a, b)


def _largest(a, b):
    if not a:
        return 0
    best = _largest(a[1:], b)
    for j, time in enumerate(b):
        if abs(time - a[0]) <= 0.05 + 1e-9:
            best = max(best, 1 + _largest(a[1:], b[:j] + b[j + 1:]))
    return best


def test_scores_are_over_all_onsets_together():
    assert onset_scores([([1.], [1.]), ([1., 2., 3.], [9.])]) == pytest.approx((1 / 4, 1 / 2, 1 / 3))
    assert onset_scores([([], [1.])]) == (0., 0., 0.)
