"""The resampler that codecs are trained with: its filter, its lengths, and that it is made once."""

import math

import pytest
import torch

from audiocraft.data.resampling import ROLLOFF, ZEROS, SincResampler, resample_sinc, sinc_resampler


def directly(wav: torch.Tensor, old: int, new: int) -> torch.Tensor:
    """Output sample n is a sum over all inputs, weighted by the window around the place n * old / new."""
    cutoff = min(old, new) * ROLLOFF / old
    width = math.ceil(ZEROS * old // math.gcd(old, new) / (min(old, new) // math.gcd(old, new) * ROLLOFF))
    padded = torch.cat([wav[:1].expand(width), wav, wav[-1:].expand(width + old)]).double()
    places = torch.arange(len(wav) * new // old)[:, None].double() * old / new
    t = ((torch.arange(len(padded)) - width - places) * cutoff).clamp(-ZEROS, ZEROS)
    kernel = torch.sinc(t) * torch.cos(t * math.pi / ZEROS / 2) ** 2
    return ((kernel / kernel.sum(1, keepdim=True)).double() @ padded).float()


@pytest.mark.parametrize('old, new, samples', [
    (3, 2, 100), (2, 3, 100), (441, 320, 700), (320, 441, 500), (7, 5, 1), (1, 4, 33), (4, 1, 333),
    (1001, 1000, 2500), (4800, 4409, 700)])
def test_every_sample_is_the_windowed_sum(old: int, new: int, samples: int) -> None:
    wav = torch.randn(samples, generator=torch.Generator().manual_seed(old))
    made, expected = resample_sinc(wav, old, new), directly(wav, old, new)
    assert made.shape == expected.shape == (samples * new // old,)
    torch.testing.assert_close(made, expected, atol=3e-6, rtol=1e-5)


def test_rows_are_independent_and_shapes_kept() -> None:
    wav = torch.randn(2, 3, 400)
    made = resample_sinc(wav, 4, 5)
    assert made.shape == (2, 3, 500)
    assert torch.equal(made[1, 2], resample_sinc(wav[1, 2], 4, 5))
    assert torch.equal(made, resample_sinc(wav.transpose(0, 1).contiguous().transpose(0, 1), 4, 5))
    assert resample_sinc(wav, 5, 5) is wav
    assert resample_sinc(wav[..., :0], 4, 5).shape == (2, 3, 0) and resample_sinc(wav[..., :1], 5, 4).shape[-1] == 0
    assert resample_sinc(wav.double(), 4, 5).dtype == torch.float64


def test_a_tone_stays_and_what_is_too_high_goes() -> None:
    t = torch.arange(48_000, dtype=torch.float64) / 48_000
    low, high = torch.sin(2 * torch.pi * 1000 * t).float(), torch.sin(2 * torch.pi * 15_000 * t).float()
    made = resample_sinc(low, 48_000, 24_000)
    torch.testing.assert_close(made[500:-500], low[::2][500:-500], atol=1e-3, rtol=0)
    assert resample_sinc(high, 48_000, 24_000)[500:-500].abs().max() < 1e-3


def test_lengths() -> None:
    for old, new in ((44_100, 32_000), (2, 3), (16_000, 48_000), (44_101, 44_100)):
        resampler = sinc_resampler(old, new)
        for wanted in (1, 7, 1000, 32_001):
            needed = resampler.needed(wanted)
            assert resampler.length(needed) >= wanted > resampler.length(needed - 1)


def test_the_filter_is_made_once_and_is_small() -> None:
    sinc_resampler.cache_clear()
    for _ in range(3):
        resample_sinc(torch.zeros(50), 16_000, 24_000)
    assert (sinc_resampler.cache_info().misses, sinc_resampler.cache_info().hits) == (1, 2)
    # All phases over a whole period would be 4,409 x 4,464 numbers.
    assert sum(block.kernel.numel() for block in SincResampler(4410, 4409).blocks) < 8e5


@pytest.mark.parametrize('old, new', [(0, 1), (1, -1), (1.5, 1)])
def test_wrong_rates(old: int, new: int) -> None:
    with pytest.raises(ValueError, match='whole numbers'):
        SincResampler(old, new)
    with pytest.raises(ValueError, match='floating point'):
        resample_sinc(torch.zeros(5, dtype=torch.int16), 1, 2)
