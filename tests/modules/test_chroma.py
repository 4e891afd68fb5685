import math

import pytest
import torch

from audiocraft.modules.chroma import Chroma, chroma_filters


def tone(pitch, seconds=1., rate=16_000):
    return torch.sin(2 * math.pi * pitch * torch.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize('pitch, name', [(261.63, 0), (293.66, 2), (440., 9), (880., 9), (220., 9), (493.88, 11)])
def test_a_tone_is_its_pitch_class(pitch, name):
    chroma = Chroma(sample_rate=16_000, n_fft=4096)(tone(pitch)[None])[0]
    middle = chroma[2:-2]
    assert (middle.argmax(dim=-1) == name).all() and torch.allclose(middle[:, name], torch.ones(len(middle)))


def test_shapes_and_short_sounds():
    chroma = Chroma(sample_rate=16_000, n_fft=1024, hop=100, n_chroma=24)
    assert chroma(torch.randn(3, 5000)).shape == (3, 51, 24)
    assert chroma(torch.randn(2, 1)).shape == (2, 11, 24)
    silence = chroma(torch.zeros(1, 2000))
    assert silence.isfinite().all() and not silence.any()
    one_hot = Chroma(sample_rate=16_000, n_fft=1024, one_hot=True)(torch.randn(2, 5000))
    assert (one_hot.sum(dim=-1) == 1).all() and one_hot.dtype == torch.float32
    assert not Chroma().state_dict()


def test_filters_of_a_bin_are_a_unit_vector_times_its_octave():
    filters = chroma_filters(sample_rate=32_000, n_fft=2048)
    hertz = torch.arange(1, 1025, dtype=torch.float64) * 32_000 / 2048
    expected = (-0.5 * ((torch.log2(hertz / 27.5) - 5) / 2) ** 2).exp()
    torch.testing.assert_close(filters[:, 1:].norm(dim=0).double(), expected, rtol=1e-5, atol=1e-6)
