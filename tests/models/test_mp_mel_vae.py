"""MMAudio's mel VAE: shapes, training, vocoders, and the published files."""

import copy
import sys
import types

import pytest
import torch
from processes import run_ranks
from torch import nn

from audiocraft import distrib, optim
from audiocraft.models.loaders import load_compression_model
from audiocraft.models.mel_vae import MelVAE, VocoderReference
from audiocraft.models.mp_mel_vae import MPMelVAE
from audiocraft.models.published import mel_vae as published
from audiocraft.modules.activation_checkpoint import checkpoint_blocks
from audiocraft.modules.magnitude_preserving import MPConv1d
from audiocraft.utils.checkpoint import save_checkpoint, write_tensors
from audiocraft.utils.config import build, rebuild
from audiocraft.utils.errors import UserError
from audiocraft.utils.random import Draws

TINY = {'_target_': 'audiocraft.models.mp_mel_vae.MPMelVAE', 'latent_dim': 4, 'width': 8, 'griffin_lim_iter': 2}


def tones(count: int = 2, samples: int = 4096) -> torch.Tensor:
    """Decaying tones `[count, 1, samples]` with a little noise."""
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(samples) / 16000
    waves = [torch.sin(2 * torch.pi * (300 + 250 * i) * time) * torch.exp(-6 * time) for i in range(count)]
    return 0.5 * torch.stack(waves)[:, None] + 0.01 * torch.randn(count, 1, samples, generator=generator)


def publish(model: nn.Module, path) -> None:
    write_tensors(path, model.state_dict()) if path.suffix == '.safetensors' else torch.save(model.state_dict(), path)


@pytest.fixture
def model() -> MPMelVAE:
    torch.manual_seed(0)
    return build(TINY)


def train(model: MPMelVAE, updates: int, ema: optim.EMA | None = None) -> list[float]:
    wav, losses = tones(), []
    model.train()
    model.fit_statistics([wav])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, betas=(0.9, 0.99))
    for update in range(updates):
        result = model(wav, Draws(1, update, total=2))
        loss = (result.output - result.target).abs().mean() + 0.003 * result.penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if ema is not None:
            ema.step()
        losses.append(loss.item())
    return losses


def error(model: MPMelVAE) -> float:
    with torch.no_grad():
        result = model(tones())
    return (result.output - result.target).abs().mean().item()


def magnitudes(model: nn.Module) -> torch.Tensor:
    return torch.stack([conv.weight.detach().square().mean().sqrt() for conv in model.modules()
                        if isinstance(conv, MPConv1d)])


@pytest.mark.parametrize('samples', [8192, 8000, 8193])
def test_shapes_and_lengths(model: MPMelVAE, samples: int) -> None:
    wav = tones(2, samples)
    posterior = model.encode(wav)
    assert posterior.mean.shape == posterior.std.shape == (2, *model.latent_shape(samples))
    decoded = model.decode(posterior, num_samples=samples)
    assert decoded.shape == wav.shape and decoded.isfinite().all() and not model.is_discrete


def test_a_new_model_keeps_magnitudes(model: MPMelVAE) -> None:
    moments = model.encoder(torch.randn(4, 80, 200))
    assert moments.square().mean().sqrt().item() == pytest.approx(1., abs=0.4)
    assert model.decoder(torch.randn(4, 4, 100)).square().mean().sqrt().item() == pytest.approx(1., abs=0.4)


def test_it_learns_and_its_weights_stay_normalised(model: MPMelVAE) -> None:
    losses = train(model, 12)
    assert losses[-1] < 0.85 * losses[0]
    # One update after the last normalisation.
    torch.testing.assert_close(magnitudes(model), torch.ones(55 - 2), rtol=0.02, atol=0.)
    assert model.encoder.learnable_gain != 0 and model.decoder.learnable_gain != 0


def test_nothing_is_normalised_in_place_outside_of_training(model: MPMelVAE) -> None:
    model.encoder.conv_in.weight.data *= 3
    weight = model.encoder.conv_in.weight.clone()
    model.eval()(tones())
    with torch.no_grad():
        model.train()(tones())
    assert torch.equal(model.encoder.conv_in.weight, weight)
    model(tones())
    assert not torch.equal(model.encoder.conv_in.weight, weight)


def test_an_average_of_weights_works_as_it_is(model: MPMelVAE) -> None:
    ema, untrained = optim.EMA({'model': model}, decay=0.9), copy.deepcopy(model)
    untrained.fit_statistics([tones()])
    train(model, 12, ema)
    averaged = build(TINY)
    averaged.load_state_dict(ema.averaged()['model'])
    assert (magnitudes(averaged) < 1).any()  # opposite steps cancel
    for conv in averaged.modules():
        if isinstance(conv, MPConv1d):
            norms = conv.normalized_weight().square().sum((1, 2))
            torch.testing.assert_close(norms, torch.ones_like(norms), rtol=1e-3, atol=0.)
    assert error(averaged.eval()) < 0.9 * error(untrained)


def test_bf16_autocast(model: MPMelVAE) -> None:
    wav = tones()
    model.fit_statistics([wav])
    expected = model(wav, Draws(1, 1, total=2))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        result = model(wav, Draws(1, 1, total=2))
    assert result.output.dtype == torch.bfloat16 and result.penalty.dtype == torch.float32
    torch.testing.assert_close(result.penalty, expected.penalty, rtol=0.05, atol=0.)
    assert (result.output.float() - expected.output).square().mean().sqrt() < 0.2
    (result.output.float().square().mean() + result.penalty).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


# -- statistics --------------------------------------------------------------------------------------------------------

def test_known_statistics_stay_and_others_are_found(model: MPMelVAE) -> None:
    known = build({**TINY, 'statistics': 'mmaudio_16k'})
    before = known.data_mean.clone()
    for each in (known, model):
        each.fit_statistics([tones()])
    assert torch.equal(known.data_mean, before) and before[0, 0, 0] == pytest.approx(-1.6058)
    assert model(tones()).target.mean().abs() < 1e-4
    for statistics in ('mmaudio_44k', 'nobodys'):
        with pytest.raises(UserError, match='80 mel bands, expected one of mmaudio_16k'):
            build({**TINY, 'statistics': statistics})


# -- checkpoints and published files -----------------------------------------------------------------------------------

def test_trained_saved_and_loaded(tmp_path, model: MPMelVAE) -> None:
    train(model, 3)
    model.eval()
    save_checkpoint(tmp_path / 'checkpoints', 3, models={'model': model.state_dict()},
                    state={'models': {'model': model.build_cfg}})
    loaded = load_compression_model(tmp_path)
    assert torch.equal(loaded.encode(tones()).mean, model.encode(tones()).mean)


@pytest.mark.parametrize('name', ['v1-16.pth', 'other.safetensors'])
def test_own_weights_in_the_published_form(tmp_path, model: MPMelVAE, name: str) -> None:
    train(model, 3)
    model.eval()
    publish(model, tmp_path / name)
    assert published.reads(tmp_path / name)
    loaded = published.load(tmp_path / name, vocoder=None)
    assert not loaded.training and rebuild(loaded.build_cfg).state_dict().keys() == model.state_dict().keys()
    assert torch.equal(loaded.encode(tones()).std, model.encode(tones()).std)
    latents = torch.randn(1, 4, 8)
    assert torch.equal(loaded.decode_mel(latents), model.decode_mel(latents))


def test_the_front_end_follows_from_the_bands(tmp_path) -> None:
    model = build({**TINY, 'n_mels': 128, 'sample_rate': 44100, 'n_fft': 2048, 'hop': 512, 'fmax': 22050., 'log': 'ln'})
    publish(model, tmp_path / 'x.pth')
    loaded = published.load(tmp_path / 'x.pth')
    assert (loaded.sample_rate, loaded.hop, loaded.latent_dim) == (44100, 512, 4)
    assert loaded.build_cfg['vocoder'] == '//pretrained/bigvgan_v2_44khz' and loaded.vocoder is not None
    torch.testing.assert_close(loaded.mel(torch.zeros(1, 8192)).min().item(), -11.5129, rtol=1e-4, atol=0.)


def test_files_that_are_something_else(tmp_path, model: MPMelVAE) -> None:
    torch.save(MelVAE(width=8, depth=1).state_dict(), tmp_path / 'small.pth')
    torch.save({'decoder.conv_in.weight': 1}, tmp_path / 'mapping.pt')
    (tmp_path / 'noise.pth').write_bytes(b'noise')
    for name in ('small.pth', 'mapping.pt', 'noise.pth', 'missing.pth'):
        assert name == 'noise.pth' or not published.reads(tmp_path / name)
        with pytest.raises(UserError, match=name):
            published.load(tmp_path / name)
    assert not published.reads(tmp_path)


def test_a_file_with_no_encoder(tmp_path, model: MPMelVAE) -> None:
    state = {name: value for name, value in model.state_dict().items() if not name.startswith('encoder.')}
    torch.save(state, tmp_path / 'stripped.pth')
    assert published.reads(tmp_path / 'stripped.pth')
    with pytest.raises(UserError, match=r'stripped.pth does not fit MPMelVAE: it lacks .*conv_in.* and 22 more'):
        published.load(tmp_path / 'stripped.pth')


def test_other_bands_are_refused(tmp_path) -> None:
    publish(build({**TINY, 'n_mels': 64}), tmp_path / 'x.pth')
    with pytest.raises(UserError, match='64 mel bands.*80 or 128'):
        published.load(tmp_path / 'x.pth')


# -- vocoders ----------------------------------------------------------------------------------------------------------

class Flat(nn.Module):
    """A vocoder of a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.25))

    def forward(self, log_mel: torch.Tensor) -> torch.Tensor:
        assert log_mel.dtype == torch.float32
        return self.level.expand(len(log_mel), 1, log_mel.shape[-1] * 256)


@pytest.fixture
def loads(monkeypatch) -> list[str]:
    """The references that were loaded."""
    loaded: list[str] = []
    module = types.ModuleType('audiocraft.models.bigvgan')
    module.load_vocoder = lambda reference, device: loaded.append(reference) or Flat().to(device)
    monkeypatch.setitem(sys.modules, 'audiocraft.models.bigvgan', module)
    return loaded


@pytest.mark.parametrize('target', ['mp_mel_vae.MPMelVAE', 'mel_vae.MelVAE'])
def test_a_vocoder_by_reference_is_no_part_of_the_model(target: str, loads: list[str]) -> None:
    node = {'_target_': f'audiocraft.models.{target}', 'latent_dim': 4, 'width': 8}
    model, plain = build({**node, 'vocoder': '//pretrained/any'}), build(node)
    model(tones())
    model.train()(tones(), Draws(1, 1, total=2)).penalty.backward()
    assert loads == []
    for _ in range(2):
        wav = model.decode(torch.zeros(2, 4, 8), num_samples=4000)
        assert wav.shape == (2, 1, 4000) and (wav == 0.25).all() and not wav.requires_grad
    assert loads == ['//pretrained/any']
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert len(list(model.modules())) == len(list(plain.modules()))
    assert isinstance(copy.deepcopy(model).vocoder, VocoderReference)
    assert model.build_cfg['vocoder'] == '//pretrained/any'
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert model.decode(torch.zeros(1, 4, 8)).dtype == torch.float32
    assert len(loads) == 1


def test_gradients_go_through_a_vocoder_but_not_into_it(loads: list[str]) -> None:
    class Scale(Flat):
        def forward(self, log_mel: torch.Tensor) -> torch.Tensor:
            return self.level * log_mel.mean(1, keepdim=True)

    sys.modules['audiocraft.models.bigvgan'].load_vocoder = lambda reference, device: Scale()
    log_mel = torch.randn(1, 80, 4, requires_grad=True)
    vocoder = VocoderReference('any')
    vocoder(log_mel).sum().backward()
    assert log_mel.grad is not None and all(p.grad is None for p in vocoder._loaded.parameters())


def test_a_module_stays_a_part_of_the_model() -> None:
    model = MPMelVAE(latent_dim=4, width=8, vocoder=Flat())
    assert 'vocoder.level' in model.state_dict()
    assert (model.decode(torch.zeros(1, 4, 8)) == 0.25).all()


# -- trained in other ways ---------------------------------------------------------------------------------------------

def trained_together(mode: str, ranks: int, checkpointed: bool = False) -> dict[str, list]:
    """The weights after three updates of a batch of two, which the processes share."""
    torch.manual_seed(0)
    model = build(TINY).train()
    if checkpointed:
        checkpoint_blocks(distrib.blocks_of(model))
    distrib.parallelize(model, mode)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    updater, share = optim.Updater(model.parameters(), optimizer), 2 // ranks
    start = distrib.rank() * share
    for update in range(3):
        result = model(tones()[start:start + share], Draws(1, update, total=2, start=start, size=share))
        updater((result.output - result.target).square().mean() + result.penalty)
    return {name: distrib.whole(value.detach()).tolist() for name, value in model.state_dict().items()}


@pytest.mark.parametrize('mode, ranks, checkpointed', [('ddp', 2, False), ('fsdp', 2, False), ('none', 1, True)])
def test_the_same_in_other_ways(mode: str, ranks: int, checkpointed: bool) -> None:
    expected = trained_together('none', 1)
    found = run_ranks(trained_together, ranks, mode, ranks, checkpointed)[0]
    for name, value in expected.items():
        torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(value), rtol=1e-3, atol=1e-4)
