"""Levels and integers; the recorded numbers are checked by tests/test_parity.py."""

import logging

import pytest
import torch

from audiocraft.data.levels import loudness, normalize_audio, normalize_loudness, to_float32, to_int16
from audiocraft.utils.errors import UserError

RATE = 16_000


def tone(level: float = 0.1, channels: int = 1, seconds: float = 1.) -> torch.Tensor:
    return (torch.sin(torch.arange(int(seconds * RATE)) * 2 * torch.pi * 1000 / RATE) * level).expand(channels, -1)


def decibels(value: torch.Tensor) -> float:
    return float(20 * value.log10())


def test_levels_are_where_they_should_be() -> None:
    assert decibels(normalize_audio(tone()).abs().max()) == pytest.approx(-1., abs=1e-3)
    assert decibels(normalize_audio(tone(), headroom=6.).abs().max()) == pytest.approx(-6., abs=1e-3)
    rms = normalize_audio(tone(0.2, 2), 'rms')
    assert decibels(rms.mean(0).pow(2).mean().sqrt()) == pytest.approx(-18., abs=1e-3)
    assert loudness(normalize_audio(tone(0.05), 'loudness', sample_rate=RATE), RATE) == pytest.approx(-14., abs=0.02)
    assert float(normalize_audio(tone(3.), 'clip').abs().max()) == pytest.approx(10 ** (-1 / 20))


def test_only_down() -> None:
    quiet, loud = tone(0.01), tone(0.99)
    for strategy in ('peak', 'rms'):
        assert torch.equal(normalize_audio(quiet, strategy, only_down=True), quiet)
        assert normalize_audio(loud, strategy, only_down=True).abs().max() < loud.abs().max()


def test_silence_and_short_pieces_stay() -> None:
    for wav in (torch.zeros(1, RATE), torch.zeros(2, 0), tone(1e-3)):
        for strategy in ('loudness', 'clip', 'none'):
            assert torch.equal(normalize_audio(wav, strategy, sample_rate=RATE), wav)
    assert not normalize_audio(torch.zeros(1, 10), 'peak').any() and not normalize_audio(torch.zeros(1, 9), 'rms').any()
    assert torch.equal(normalize_loudness(tone(0.5, seconds=0.3), RATE), tone(0.5, seconds=0.3))


def test_what_is_beyond_one_is_cut_off_with_a_warning(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        assert float(normalize_audio(tone(2.), 'none', name='loud.wav').abs().max()) == 1.
    assert 'loud.wav: samples up to 2.00' in caplog.text
    soft = normalize_audio(tone(1.), 'loudness', sample_rate=RATE, headroom=-6., compressor=True)
    assert 0.9 < float(soft.abs().max()) < 1.


def test_wrong_use() -> None:
    with pytest.raises(UserError, match='no way to normalize'):
        normalize_audio(tone(), 'rmz')
    with pytest.raises(UserError, match='needs a sample_rate'):
        normalize_audio(tone(), 'loudness')


def test_integers_and_back() -> None:
    wav = torch.tensor([-2., -1., -0.5, 0., 1 / 2 ** 16 + 1e-9, 0.5, 1.])
    assert to_int16(wav).tolist() == [-32768, -32768, -16384, 0, 1, 16384, 32767]
    every = torch.arange(-2 ** 15, 2 ** 15).to(torch.int16)
    assert torch.equal(to_int16(to_float32(every)), every)
    assert to_float32(torch.tensor([2 ** 30], dtype=torch.int32)).item() == 0.5
    assert to_float32(wav.double()).dtype == torch.float32
    with pytest.raises(ValueError):
        to_float32(torch.zeros(2, dtype=torch.int64))
