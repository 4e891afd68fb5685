"""Log-mel spectrograms and the way back."""

import math

import pytest
import torch

from audiocraft.modules.mel import MEL_16K, MEL_44K, LogMel, hz_to_mel, mel_to_hz


def tones(sample_rate, seconds=0.5):
    t = torch.arange(int(sample_rate * seconds)) / sample_rate
    freqs = torch.tensor([[440.], [1500.]])
    return 0.5 * torch.sin(2 * math.pi * freqs * t) * torch.exp(-3 * t)


@pytest.mark.parametrize('preset', [MEL_16K, MEL_44K])
def test_frames_and_floor(preset):
    mel = LogMel(**preset)
    spec = mel(torch.zeros(1, 10 * preset['hop']))
    assert spec.shape == (1, preset['n_mels'], 10)
    torch.testing.assert_close(spec, torch.full_like(spec, mel.floor))


def test_mel_scale_is_inverted():
    hz = torch.tensor([0., 200., 999., 1000., 6400., 20000.], dtype=torch.float64)
    torch.testing.assert_close(mel_to_hz(hz_to_mel(hz)), hz)
    assert hz_to_mel(torch.tensor([200., 1000.])).tolist() == pytest.approx([3, 15])


def test_a_tone_is_in_its_band():
    mel = LogMel(**MEL_16K)
    centers = (mel.mel_basis * torch.linspace(0, 8000, 513)).sum(1) / mel.mel_basis.sum(1)
    loudest = mel(tones(16000)).mean(-1).argmax(1)
    assert centers[loudest].tolist() == pytest.approx([440, 1500], rel=0.05)


def test_griffin_lim_gives_the_spectrogram_back():
    mel, wav = LogMel(**MEL_16K), tones(16000)[:, :7936]
    target = mel(wav)
    back = mel.griffin_lim(target, n_iter=16)
    assert back.shape == wav.shape
    error = (10 ** mel(back) - 10 ** target).norm() / (10 ** target).norm()
    assert error < 0.2
    assert torch.equal(back, mel.griffin_lim(target, n_iter=16))


def test_griffin_lim_keeps_the_time():
    mel = LogMel(**MEL_16K)
    wav = torch.zeros(1, 8192)
    wav[0, 4000:4200] = tones(16000)[0, :200]
    energy = mel.griffin_lim(mel(wav)).square().cumsum(-1)[0]
    middle = int((energy < energy[-1] / 2).sum())
    assert abs(middle - 4080) < 80


def test_griffin_lim_length():
    mel = LogMel(**MEL_16K)
    spec = mel(tones(16000)[:, :2560])
    assert mel.griffin_lim(spec, 2, num_samples=2500).shape == (2, 2500)
    assert mel.griffin_lim(spec, 2, num_samples=2600).shape == (2, 2600)


def test_errors():
    with pytest.raises(ValueError, match='384 samples, got 100'):
        LogMel(**MEL_16K)(torch.zeros(1, 100))
    with pytest.raises(ValueError, match="'log2'"):
        LogMel(log='log2')
