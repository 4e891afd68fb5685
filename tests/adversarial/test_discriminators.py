"""Discriminators: what they look at, the shapes of what they say, and what they refuse."""

import copy

import pytest
import torch
from torch.nn import functional as F

from audiocraft.adversarial.mpd import MultiPeriodDiscriminator
from audiocraft.adversarial.msd import MultiScaleDiscriminator
from audiocraft.adversarial.msstft import ComplexSpectrogram, MultiScaleSTFTDiscriminator
from audiocraft.modules.norm_conv import rename_weight_norm
from audiocraft.utils.errors import UserError

MSSTFT = dict(filters=2, n_ffts=[64, 32], hop_lengths=[16, 8], win_lengths=[64, 32])
MPD = dict(filters=2, filters_scale=2, n_layers=3, periods=[2, 3, 5])
MSD = dict(filters=4, downsample_scales=[2, 2], groups=[1, 2], max_filters=16)
TINY = [(MultiScaleSTFTDiscriminator, MSSTFT), (MultiPeriodDiscriminator, MPD), (MultiScaleDiscriminator, MSD)]
TINY = [pytest.param(cls, kwargs, id=cls.__name__) for cls, kwargs in TINY]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize('channels', [1, 2])
@pytest.mark.parametrize('cls, kwargs', TINY)
def test_two_halves_are_the_whole(cls, kwargs, channels):
    discriminator = cls(in_channels=channels, **kwargs)
    x = torch.randn(3, channels, 200)
    whole, halves = discriminator(x), discriminator.from_prepared(discriminator.prepare(x))
    assert len(whole.logits) == len(whole.fmaps) == len(discriminator.discriminators)
    assert all(logit.shape[:2] == (3, 1) for logit in whole.logits)
    assert all(map(torch.equal, whole.logits, halves.logits))
    for maps, others in zip(whole.fmaps, halves.fmaps):
        assert len(maps) == len(others) and all(map(torch.equal, maps, others))


@pytest.mark.parametrize('cls, kwargs', TINY)
def test_items_do_not_see_each_other(cls, kwargs):
    discriminator, x = cls(**kwargs).eval(), torch.randn(3, 1, 200)
    for together, alone in zip(discriminator(x).logits, discriminator(x[1:2]).logits):
        assert torch.allclose(together[1:2], alone, atol=1e-6)


@pytest.mark.parametrize('cls, kwargs', TINY)
def test_shortest_audio(cls, kwargs):
    discriminator = cls(**kwargs)
    least = discriminator.min_samples
    assert all(logit.numel() for logit in discriminator(torch.randn(1, 1, least)).logits)
    with pytest.raises(UserError, match=f'at least {least} samples of audio, got {least - 1}.*segment_duration'):
        discriminator(torch.randn(1, 1, least - 1))


@pytest.mark.parametrize('shape', [(2, 2, 200), (2, 200), (200,)])
@pytest.mark.parametrize('cls, kwargs', TINY)
def test_wrong_channels(cls, kwargs, shape):
    with pytest.raises(UserError, match='built for audio .B, 1, T.*in_channels'):
        cls(**kwargs)(torch.randn(shape))


@pytest.mark.parametrize('cls, kwargs', TINY)
def test_copies_and_both_spellings(cls, kwargs):
    discriminator, x = cls(**kwargs).eval(), torch.randn(2, 1, 200)
    again = cls(**kwargs).eval()
    again.load_state_dict(rename_weight_norm(discriminator.state_dict(), 'legacy'), strict=True)
    for other in (again, copy.deepcopy(discriminator)):
        assert all(map(torch.equal, discriminator(x).logits, other(x).logits))


class TestSpectrogram:
    def test_time_before_frequency_real_before_imaginary(self):
        x = torch.randn(2, 2, 160, dtype=torch.float64)
        spec = ComplexSpectrogram(n_fft=32, hop_length=8, win_length=32).double()
        found = spec(x)
        assert found.shape == (2, 4, 17, 17)
        window = torch.hann_window(32)
        for frame in (0, 16):
            expected = torch.fft.rfft(x[..., frame * 8:frame * 8 + 32] * window / window.square().sum().sqrt())
            assert torch.allclose(found[:, :2, frame], expected.real)
            assert torch.allclose(found[:, 2:, frame], expected.imag)

    def test_without_normalisation(self):
        x = torch.randn(1, 1, 64)
        spec, plain = (ComplexSpectrogram(n_fft=32, hop_length=8, win_length=32, normalized=normalized)
                       for normalized in (True, False))
        assert torch.allclose(spec(x) * spec.window.norm(), plain(x), atol=1e-5)

    def test_half_precision_is_transformed_in_full(self):
        spec = ComplexSpectrogram(n_fft=32, hop_length=8, win_length=32)
        assert spec(torch.randn(1, 1, 64).bfloat16()).dtype == torch.float32

    def test_one_number_for_each_spectrogram(self):
        with pytest.raises(UserError, match='there are 2, 1 and 2'):
            MultiScaleSTFTDiscriminator(n_ffts=[64, 32], hop_lengths=[16], win_lengths=[64, 32])


def test_more_filters_in_later_layers():
    discriminator = MultiScaleSTFTDiscriminator(**MSSTFT, filters_scale=2, max_filters=12)
    _, fmaps = discriminator(torch.randn(1, 1, 100))
    assert [fmap.shape[1] for fmap in fmaps[0]] == [2, 4, 8, 12, 12]


def test_periods_fold_the_audio():
    x = torch.arange(1., 9.).view(1, 1, 8)
    views = MultiPeriodDiscriminator(periods=[2, 3, 5], n_layers=1, filters=1).prepare(x)
    assert views[0][0, 0, :, 0].tolist() == [1, 3, 5, 7]
    assert views[1][0, 0].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 7]]
    assert views[2][0, 0].tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 7, 6]]


class TestRates:
    def test_each_network_has_its_own(self):
        x = torch.randn(1, 1, 256)
        views = MultiScaleDiscriminator(**MSD).prepare(x)
        assert [view.shape[-1] for view in views] == [256, 129, 65]
        inner = F.avg_pool1d(x, 4, 2)
        assert torch.allclose(views[1][..., 1:-1], inner, atol=1e-6)

    def test_ends_are_means_of_what_is_there(self):
        views = MultiScaleDiscriminator(**MSD).prepare(torch.ones(1, 1, 256))
        assert all(torch.allclose(view, torch.ones(())) for view in views)

    def test_recorded_one_has_the_full_rate(self):
        x = torch.randn(1, 1, 256)
        views = MultiScaleDiscriminator(**MSD, pool=False).prepare(x)
        assert len(views) == 3 and all(torch.equal(view, x) for view in views)
