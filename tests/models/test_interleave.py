"""Two channels through a codec of one."""

import pytest
import torch

from audiocraft.models.interleave import InterleaveStereo
from audiocraft.quantization.base import Codes
from audiocraft.utils.config import build, rebuild

from .codecs import audio, node, random_codec


@pytest.mark.parametrize('renormalize', [False, True])
@pytest.mark.parametrize('per_timestep', [False, True])
@torch.no_grad()
def test_each_channel_is_encoded_by_itself(per_timestep: bool, renormalize: bool) -> None:
    mono = random_codec(renormalize=renormalize)
    stereo, wav = InterleaveStereo(model=mono, per_timestep=per_timestep), audio(channels=2)
    wav[:, 1] *= 3.
    assert stereo.renormalize == renormalize
    left, right = (mono.encode(wav[:, channel:channel + 1]) for channel in (0, 1))
    encoded = stereo.encode(wav)
    assert isinstance(left, Codes) and isinstance(right, Codes)
    first, second = (encoded.codes[:, :, 0::2], encoded.codes[:, :, 1::2]) if per_timestep else \
                    (encoded.codes[:, 0::2], encoded.codes[:, 1::2])
    assert torch.equal(first, left.codes) and torch.equal(second, right.codes)
    if renormalize:
        assert left.scale is not None and right.scale is not None and encoded.scale is not None
        assert torch.allclose(encoded.scale, torch.cat([left.scale, right.scale], dim=1))
    expected = torch.cat([mono.decode(left, 203), mono.decode(right, 203)], dim=1)
    assert torch.allclose(stereo.decode(encoded, 203), expected, atol=1e-6)
    made = stereo(wav)
    assert torch.allclose(made.output, expected, atol=1e-6) and torch.equal(made.target, wav)
    assert made.codes is not None and torch.equal(made.codes, encoded.codes)


@pytest.mark.parametrize('per_timestep, codebooks, frames', [(False, 6, 26), (True, 3, 52)])
def test_facts(per_timestep: bool, codebooks: int, frames: int) -> None:
    stereo = InterleaveStereo(model=random_codec(), per_timestep=per_timestep)
    assert (stereo.num_codebooks, stereo.codebook_size, stereo.channels) == (codebooks, 16, 2)
    assert stereo.latent_shape(203)[1] == frames == stereo.encode(audio(2)).codes.shape[2]
    assert stereo.frame_rate == 100 * frames / 26 and stereo.is_discrete
    stereo.set_num_codebooks(1)
    assert stereo.num_codebooks == codebooks // 3 == stereo.encode(audio(2)).codes.shape[1]


def test_it_is_built_and_rebuilt_from_a_config() -> None:
    config = {'_target_': 'audiocraft.models.interleave.InterleaveStereo', 'model': node(), 'per_timestep': True}
    assert build(config).build_cfg == config
    assert rebuild(config).per_timestep


def test_what_does_not_fit() -> None:
    for kwargs in ({'continuous': True}, {'channels': 2}):
        with pytest.raises(ValueError, match='of one channel, got'):
            InterleaveStereo(model=random_codec(**kwargs))
    stereo = InterleaveStereo(model=random_codec())
    with pytest.raises(ValueError, match=r'\[B, 2, T\]'):
        stereo.encode(audio(1))
    with pytest.raises(ValueError, match='odd number of codebooks'):
        stereo.decode(torch.zeros(1, 3, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match='latents'):
        stereo.decode(torch.zeros(1, 6, 4))
