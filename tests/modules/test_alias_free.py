"""Alias-free activations: what the filters pass and stop, and what the activations keep in low precision."""

import pytest
import torch

from audiocraft.modules.alias_free import AliasFree, Downsample, LowPass, SnakeBeta, Upsample, kaiser_sinc_filter


def tone(frequency: float, length: int = 256) -> torch.Tensor:
    """A tone `[1, 1, length]` of so many cycles per sample."""
    return torch.sin(2 * torch.pi * frequency * torch.arange(length, dtype=torch.float64)).float().view(1, 1, -1)


def level(x: torch.Tensor, frequency: float) -> float:
    """The amplitude of one frequency in the middle of `[1, 1, T]`."""
    x = x[0, 0, 32:-32].double()
    time = torch.arange(len(x), dtype=torch.float64)
    wave = torch.polar(torch.hann_window(len(x), dtype=torch.float64), -2 * torch.pi * frequency * time)
    return 2 * abs((x * wave).sum().item()) / (len(x) / 2)


@pytest.mark.parametrize('taps', [11, 12, 24])
def test_filter(taps: int) -> None:
    found = kaiser_sinc_filter(0.25, 0.3, taps)
    assert found.shape == (1, 1, taps)
    torch.testing.assert_close(found, found.flip(-1))
    torch.testing.assert_close(found.sum(), torch.tensor(1.))
    signs = torch.ones(taps)
    signs[::2] = -1
    assert abs((found[0, 0] * signs).sum()) < 0.02  # the highest frequency


def test_wide_bands_need_no_window() -> None:
    """Little attenuation is asked of a short filter: its window is flat, and the filter the bare sinc."""
    time = torch.arange(4) - 1.5
    sinc = torch.sinc(0.5 * time)
    torch.testing.assert_close(kaiser_sinc_filter(0.25, 0.01, 4).flatten(), sinc / sinc.sum())


@pytest.mark.parametrize('ratio, taps', [(2, 12), (3, 18), (4, 24)])
@pytest.mark.parametrize('length', [1, 7, 40])
def test_lengths(ratio: int, taps: int, length: int) -> None:
    x = torch.full((2, 3, length), 0.7)
    up = Upsample(ratio=ratio, taps=taps)(x)
    assert up.shape == (2, 3, ratio * length)
    torch.testing.assert_close(up, torch.full_like(up, 0.7), atol=0.01, rtol=0)  # phases differ a little
    torch.testing.assert_close(Downsample(ratio=ratio, taps=taps)(up), x, atol=0.01, rtol=0)
    assert LowPass(ratio=ratio, taps=taps)(torch.zeros(1, 1, length)).shape[-1] == -(-length // ratio)


def test_tones_keep_their_shape() -> None:
    x = tone(0.05)
    time = torch.arange(512, dtype=torch.float64) / 2 - 0.25  # half a sample of the doubled rate early
    expected = torch.sin(2 * torch.pi * 0.05 * time).float().view(1, 1, -1)
    torch.testing.assert_close(Upsample()(x)[..., 32:-32], expected[..., 32:-32], atol=0.01, rtol=0)
    torch.testing.assert_close(Downsample()(Upsample()(x))[..., 32:-32], x[..., 32:-32], atol=0.02, rtol=0)


def test_harmonics_are_not_aliased() -> None:
    x, act = tone(0.4), SnakeBeta(1)
    alias = 1 - 2 * 0.4  # where the second harmonic lands without a filter
    bare, filtered = level(act(x), alias), level(AliasFree(act)(x), alias)
    assert bare > 0.2 and filtered < bare / 2


@pytest.mark.parametrize('log_scale', [True, False])
def test_snake(log_scale: bool) -> None:
    x = torch.linspace(-3, 3, 20).view(1, 2, 10)
    expected = x + x.sin().square()
    for tied in (True, False):
        act = SnakeBeta(2, log_scale=log_scale, tied=tied)
        torch.testing.assert_close(act(x), expected)
        assert set(act.state_dict()) == ({'alpha'} if tied else {'alpha', 'beta'})
    with torch.no_grad():
        act.alpha[1], act.beta[1] = 3., 2.
    alpha, beta = (torch.tensor([3., 2.]).exp() if log_scale else torch.tensor([3., 2.]))
    torch.testing.assert_close(act(x)[:, 1], x[:, 1] + (alpha * x[:, 1]).sin().square() / beta)
    torch.testing.assert_close(act(x)[:, 0], expected[:, 0])


def test_many_turns_in_bfloat16() -> None:
    """A phase of hundreds is fine: only the input and the output are rounded."""
    act = SnakeBeta(1, log_scale=False)
    with torch.no_grad():
        act.alpha.fill_(50.)
    x = torch.linspace(-8, 8, 500).view(1, 1, -1).bfloat16()
    torch.testing.assert_close(act(x), act(x.float()).bfloat16(), atol=0, rtol=0)
    assert act.bfloat16()(x).dtype == torch.bfloat16
