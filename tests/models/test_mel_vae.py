"""The mel VAE: shapes, statistics, learning, and loading without a solver."""

import pytest
import torch

from audiocraft.models.compression import CompressionModel, Posterior
from audiocraft.models.loaders import load_compression_model, load_model
from audiocraft.models.mel_vae import MelVAE
from audiocraft.utils.checkpoint import save_checkpoint
from audiocraft.utils.config import build
from audiocraft.utils.errors import UserError
from audiocraft.utils.random import Draws

TINY = {'_target_': 'audiocraft.models.mel_vae.MelVAE', 'latent_dim': 4, 'width': 16, 'depth': 1,
        'griffin_lim_iter': 2}


def tones(count: int = 4, samples: int = 8192) -> torch.Tensor:
    """Decaying tones `[count, 1, samples]` with a little noise."""
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(samples) / 16000
    waves = [torch.sin(2 * torch.pi * (300 + 250 * i) * time) * torch.exp(-6 * time) for i in range(count)]
    return 0.5 * torch.stack(waves)[:, None] + 0.01 * torch.randn(count, 1, samples, generator=generator)


@pytest.fixture
def model() -> MelVAE:
    torch.manual_seed(0)
    return build(TINY)


@pytest.mark.parametrize('samples', [8192, 8000, 8193])
def test_shapes_and_lengths(model: MelVAE, samples: int) -> None:
    wav = tones(2, samples)
    dim, frames = model.latent_shape(samples)
    posterior = model.encode(wav)
    assert posterior.mean.shape == posterior.std.shape == (2, dim, frames)
    assert frames == -(-samples // 512) and model.frame_rate == 31.25
    decoded = model.decode(posterior.mean, num_samples=samples)
    assert decoded.shape == wav.shape and decoded.isfinite().all()
    assert model.decode(posterior.mean).shape[-1] == frames * 512


def test_the_quickstart_clip_has_125_frames(model: MelVAE) -> None:
    assert model.latent_shape(64_000) == (4, 125)


def test_statistics_normalise_the_training_data(model: MelVAE) -> None:
    wav = tones()
    model.fit_statistics(wav.split(2))
    target = model(wav).target
    assert target.mean(dim=(0, 2)).abs().max() < 1e-4
    assert (target.std(dim=(0, 2)) - 1).abs().max() < 0.01
    assert {'data_mean', 'data_std'} <= model.state_dict().keys()


def test_silence_does_not_blow_up(model: MelVAE) -> None:
    silence = torch.zeros(2, 1, 8192)
    model.fit_statistics([silence])
    result = model(silence)
    assert result.output.isfinite().all() and result.target.abs().max() < 1e-3


def test_stereo_is_refused_in_words(model: MelVAE) -> None:
    with pytest.raises(ValueError, match=r'mono.*\[2, 2, 8192\]'):
        model.encode(torch.zeros(2, 2, 8192))


def test_kl_against_torch() -> None:
    mean, std = torch.randn(2, 3, 5), torch.rand(2, 3, 5) + 0.1
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, std), normal(0., 1.)).mean()
    torch.testing.assert_close(Posterior(mean, std).kl_divergence(), expected)


def test_noise_moves_the_latents_by_their_std(model: MelVAE) -> None:
    posterior = model.encode(tones())
    noise = torch.randn_like(posterior.mean)
    torch.testing.assert_close((posterior.sample(noise) - posterior.mean) / posterior.std, noise, rtol=1e-3, atol=1e-4)
    wav = tones()
    draws = Draws(1, 1, total=len(wav))
    assert not torch.equal(model(wav, draws).output, model(wav).output)


def test_it_learns_to_reconstruct(model: MelVAE) -> None:
    wav = tones()
    model.fit_statistics([wav])
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for update in range(40):
        result = model(wav, Draws(1, update, total=4))
        loss = (result.output - result.target).abs().mean() + 0.01 * result.penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_a_crop_inside_gives_the_latents_of_the_whole(model: MelVAE) -> None:
    wav = tones(1, 512 * 40)
    whole = model.encode(wav).mean
    part = model.encode(wav[..., 512 * 10:512 * 30]).mean
    torch.testing.assert_close(part[..., 6:-6], whole[..., 16:24], rtol=1e-3, atol=1e-4)


def test_a_vocoder_takes_the_place_of_griffin_lim(model: MelVAE) -> None:
    class Vocoder(torch.nn.Module):
        def forward(self, log_mel: torch.Tensor) -> torch.Tensor:
            return torch.full((len(log_mel), 1, log_mel.shape[-1] * 256), 0.25)

    with_vocoder = MelVAE(latent_dim=4, width=16, depth=1, vocoder=Vocoder())
    decoded = with_vocoder.decode(torch.zeros(1, 4, 8), num_samples=4000)
    assert decoded.shape == (1, 1, 4000) and (decoded == 0.25).all()


@pytest.fixture
def xp(tmp_path, model: MelVAE):
    """The folder of an XP with one checkpoint, whose best weights differ from the last ones."""
    best = {key: value + 1 for key, value in model.state_dict().items()}
    save_checkpoint(tmp_path / 'xp' / 'checkpoints', 7, models={'model': model.state_dict(), 'best': best},
                    state={'models': {'model': model.build_cfg}})
    return tmp_path / 'xp'


def test_loading_needs_no_solver(xp, model: MelVAE) -> None:
    loaded = load_compression_model(str(xp), which='model')
    wav = tones(1)
    assert isinstance(loaded, CompressionModel) and not loaded.training
    assert torch.equal(loaded.encode(wav).mean, model.eval().encode(wav).mean)
    for reference in (xp / 'checkpoints', xp / 'checkpoints' / '7'):
        assert load_model(reference).build_cfg == TINY


def test_the_best_weights_come_first(xp, model: MelVAE) -> None:
    for which, shift in ((None, 1), ('best', 1), ('model', 0), ('ema', 0)):
        loaded = load_model(xp, which=which)
        assert torch.equal(loaded.data_mean, model.data_mean + shift), which


def test_references_that_cannot_be_loaded(tmp_path, xp) -> None:
    (tmp_path / 'empty' / 'checkpoints').mkdir(parents=True)
    save_checkpoint(tmp_path / 'other' / 'checkpoints', 1, models={'model': {}},
                    state={'models': {'model': {'_target_': 'audiocraft.features.tiny.TinyText'}}})
    save_checkpoint(tmp_path / 'unnamed' / 'checkpoints', 1, models={'model': {}}, state={'models': {'model': None}})
    cases = {'nowhere': 'no such XP or checkpoint', 'empty': 'no checkpoint in .* yet',
             'other': 'not a compression model', 'unnamed': 'does not say how'}
    for name, message in cases.items():
        with pytest.raises(UserError, match=message):
            load_compression_model(str(tmp_path / name))
    with pytest.raises(UserError, match='weights "worst" are unknown'):
        load_model(xp, which='worst')


def test_weights_of_another_model_are_refused(tmp_path, model: MelVAE) -> None:
    save_checkpoint(tmp_path / 'checkpoints', 1, models={'model': model.state_dict()},
                    state={'models': {'model': {**TINY, 'width': 24}}})
    with pytest.raises(UserError, match='does not fit MelVAE'):
        load_model(tmp_path)
