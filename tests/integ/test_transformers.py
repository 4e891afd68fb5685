"""The library `transformers` and ours give the same codes and the same sound for the same files."""

import logging
import typing as tp
from pathlib import Path

import pytest
import torch

from audiocraft.models.encodec import EncodecModel
from audiocraft.models.loaders import load_compression_model
from audiocraft.quantization.base import Codes

pytestmark = pytest.mark.integ

TINY: dict[str, tp.Any] = {'hidden_size': 12, 'num_filters': 4, 'codebook_size': 32, 'upsampling_ratios': [4, 2]}
# As facebook/encodec_24khz, encodec_32khz and encodec_48khz, but for the sizes.
CONFIGS: dict[str, dict[str, tp.Any]] = {
    '24khz': {'sampling_rate': 600, 'target_bandwidths': [0.375, 0.75, 1.5], 'use_causal_conv': True,
              'use_conv_shortcut': True, 'norm_type': 'weight_norm'},
    '32khz': {'sampling_rate': 400, 'target_bandwidths': [1.], 'use_causal_conv': False, 'use_conv_shortcut': False,
              'norm_type': 'weight_norm', 'num_residual_layers': 2},
    '48khz': {'sampling_rate': 1200, 'target_bandwidths': [0.75, 1.5, 3.], 'audio_channels': 2, 'normalize': True,
              'chunk_length_s': 1., 'overlap': 0.01, 'use_causal_conv': False, 'use_conv_shortcut': True,
              'norm_type': 'time_group_norm'},
    'zeros': {'sampling_rate': 600, 'target_bandwidths': [1.5], 'use_causal_conv': True, 'pad_mode': 'constant',
              'num_lstm_layers': 1, 'trim_right_ratio': 0.5, 'norm_type': 'weight_norm'},
}


@torch.no_grad()
def random_model(name: str) -> tp.Any:
    """A model of the library with random weights and codebooks."""
    import transformers  # here, since all tests are collected where only the fast ones run: it is of `make tests_integ`
    model = transformers.EncodecModel(transformers.EncodecConfig(**TINY, **CONFIGS[name])).eval()
    generator = torch.Generator().manual_seed(len(name))
    for key, value in model.state_dict().items():
        if not key.endswith('inited'):
            value.copy_(0.4 * torch.randn(value.shape, generator=generator))
            if key.endswith(('original0', 'norm.weight')):
                value.abs_().add_(0.3)
    fit_codebooks(model, generator)
    return model


def fit_codebooks(model: tp.Any, generator: torch.Generator) -> None:
    """Entries where the latents are, so that many of them are used."""
    wav = torch.randn(16, model.config.audio_channels, model.config.sampling_rate, generator=generator)
    latents = model.encoder(0.5 * wav).transpose(1, 2).flatten(0, 1)
    for level in model.quantizer.layers:
        codebook = level.codebook
        codebook.embed.copy_(latents[torch.randperm(len(latents), generator=generator)[:len(codebook.embed)]])
        latents = latents - codebook.decode(codebook.quantize(latents))


def waveforms(model: EncodecModel, seconds: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    wav = 0.3 * torch.randn(2, model.channels, int(model.sample_rate * seconds) - 3, generator=generator)
    return wav * torch.tensor([1., 4.])[:, None, None]


@pytest.fixture(params=CONFIGS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[tp.Any, EncodecModel]:
    theirs = random_model(request.param)
    theirs.save_pretrained(tmp_path)
    ours = load_compression_model(tmp_path)
    assert isinstance(ours, EncodecModel)
    return theirs, ours


@torch.no_grad()
def test_same_codes_and_sound(pair: tuple[tp.Any, EncodecModel]) -> None:
    theirs, ours = pair
    wav = waveforms(ours, 0.9)  # less than a chunk
    assert ours.num_codebooks == theirs.config.num_quantizers
    for bandwidth in theirs.config.target_bandwidths:
        expected = theirs.encode(wav, bandwidth=bandwidth)
        codes = expected.audio_codes[0]
        ours.set_num_codebooks(codes.shape[1])
        encoded = ours.encode(wav)
        assert isinstance(encoded, Codes)
        assert torch.equal(encoded.codes, codes) and codes[:, 0].unique().numel() > 8
        assert ours.quantizer.bandwidth(ours.frame_rate) == pytest.approx(bandwidth)
        if theirs.config.normalize:
            torch.testing.assert_close(encoded.scale, expected.audio_scales[0])
        sound = theirs.decode(expected.audio_codes, expected.audio_scales).audio_values
        torch.testing.assert_close(ours.decode(encoded), sound, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_audio_is_encoded_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = random_model('48khz')
    theirs.save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO):
        ours = load_compression_model(tmp_path)
    assert 'chunks of 1.0 s' in caplog.text
    wav = waveforms(tp.cast(EncodecModel, ours), 2.)
    encoded = ours.encode(wav)
    assert isinstance(encoded, Codes) and encoded.codes.shape[-1] == ours.latent_shape(wav.shape[-1])[1]
    theirs.config.chunk_length_s = None
    expected = theirs.encode(wav, bandwidth=3.)
    assert torch.equal(encoded.codes, expected.audio_codes[0])
