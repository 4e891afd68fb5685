"""BigVGAN: shapes, the spellings of its weights, and the files that it is read from."""

import copy
import json
import typing as tp
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import save_file

from audiocraft import weights
from audiocraft.environment import CONFIG_ROOT
from audiocraft.models.bigvgan import BigVGAN, arguments_of_published, load_vocoder, reads
from audiocraft.models.exported import write_exported
from audiocraft.modules.norm_conv import rename_weight_norm
from audiocraft.utils.checkpoint import save_checkpoint
from audiocraft.utils.config import build, to_plain
from audiocraft.utils.errors import UserError

MANIFESTS = Path(__file__).parents[1] / 'golden' / 'mmaudio' / 'manifests'
TARGET = 'audiocraft.models.bigvgan.BigVGAN'
V1: dict[str, tp.Any] = {
    'n_mels': 5, 'upsample_rates': [4, 2], 'upsample_kernel_sizes': [8, 4], 'initial_channels': 12,
    'resblock_kernel_sizes': [3, 5], 'resblock_dilation_sizes': [[1, 3, 5], [1, 3, 5]]}
V2 = {**V1, 'use_tanh_at_final': False, 'use_bias_at_final': False}
# Nothing of this one but the sizes shows in its weights.
ODD = {**V2, 'upsample_rates': [2, 5], 'upsample_kernel_sizes': [6, 7], 'activation': 'snake', 'snake_logscale': False,
       'resblock_dilation_sizes': [[1, 2], [2, 4]], 'use_bias_at_final': True}


def tiny(seed: int = 0, **arguments: tp.Any) -> BigVGAN:
    """A model whose every weight is random, and large enough to matter, in evaluation mode."""
    model = build({'_target_': TARGET, **(arguments or V1)})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith(('alpha', 'beta', 'original0')):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            else:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    return model.eval()


def log_mel(frames: int = 6) -> torch.Tensor:
    return torch.randn(2, 5, frames, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def wave(model: torch.nn.Module) -> torch.Tensor:
    return model(log_mel())


def published_config(arguments: dict[str, tp.Any]) -> dict[str, tp.Any]:
    """The `config.json` of a model, with what it need not say left out, and with more in it."""
    names = {'n_mels': 'num_mels', 'initial_channels': 'upsample_initial_channel'}
    return {'resblock': '1', 'sampling_rate': 16_000, **{names.get(key, key): value
                                                         for key, value in arguments.items()}}


@pytest.mark.parametrize('arguments, hop', [(V1, 8), (V2, 8), (ODD, 10)], ids=['v1', 'v2', 'odd'])
def test_shapes(arguments: dict[str, tp.Any], hop: int) -> None:
    model = tiny(**arguments)
    assert model.hop == hop and model.n_mels == 5
    assert wave(model).shape == (2, 1, 6 * hop)


@pytest.mark.parametrize('arguments', [V1, V2], ids=['v1', 'v2'])
def test_ends(arguments: dict[str, tp.Any]) -> None:
    model = tiny(**arguments)
    found: list[torch.Tensor] = []
    model.conv_post.register_forward_hook(lambda _, __, out: found.append(out))
    out, last = wave(model), found[0]
    assert last.abs().max() > 1 and out.std() > 0.1
    assert torch.equal(out, last.tanh() if arguments is V1 else last.clamp(-1, 1))


def test_all_parameters_learn() -> None:
    model = tiny().train()
    model(log_mel() / 10).square().mean().backward()
    assert [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []


@pytest.mark.parametrize('normalized', [True, False])
@pytest.mark.parametrize('spelling', ['legacy', 'parametrizations', 'fused'])
def test_each_spelling_loads(spelling: tp.Any, normalized: bool) -> None:
    model = tiny()
    other = tiny(seed=1, **V1, weight_norm=normalized)
    other.load_state_dict(rename_weight_norm(model.state_dict(), spelling), strict=True)
    torch.testing.assert_close(wave(other), wave(model), atol=1e-5, rtol=1e-4)


def test_remove_weight_norm() -> None:
    model = tiny()
    expected = wave(model)
    assert model.remove_weight_norm() is model
    assert not any('parametrizations' in name for name in model.state_dict())
    assert model.conv_pre.weight.requires_grad
    assert torch.equal(wave(model), expected) and torch.equal(wave(copy.deepcopy(model)), expected)


@pytest.mark.parametrize('change, message', [
    ({'activation': 'relu'}, 'relu'), ({'upsample_kernel_sizes': [8, 3]}, 'kernel of 3'),
    ({'upsample_kernel_sizes': [2, 4]}, 'kernel of 2'), ({'upsample_rates': [4]}, 'zip'),
    ({'resblock_dilation_sizes': [[1, 3, 5]]}, 'zip')])
def test_wrong_arguments(change: dict[str, tp.Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BigVGAN(**{**V1, **change})


def test_autocast() -> None:
    model = tiny().remove_weight_norm()
    expected = wave(model)
    with torch.autocast('cpu', torch.bfloat16):
        found = wave(model).float()
    assert found.isfinite().all() and expected.std() > 0.1
    assert (found - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize('name, file', [('bigvgan_v1_16k', 'bigvgan_v1_16k'),
                                        ('bigvgan_v2_44k', 'bigvgan_v2_44khz_128band_512x')])
def test_configs_are_the_published_models(name: str, file: str) -> None:
    manifest = json.loads((MANIFESTS / f'{file}.json').read_text())
    with initialize_config_dir(str(CONFIG_ROOT), version_base='1.3'):
        config = to_plain(compose(overrides=[f'+model/vocoder={name}']))['model']['vocoder']
    with torch.device('meta'):
        model = build(config)
    state = {key: torch.empty(entry['shape'], device='meta') for key, entry in manifest['state_dict'].items()}
    model.load_state_dict(state, strict=True)
    fused = rename_weight_norm(state, 'fused')
    # Without its config it is recognised all the same.
    for published in (None, manifest['h']):
        assert {**config, **arguments_of_published(fused, published)} == config


# -- Files --

@pytest.mark.parametrize('arguments', [V1, V2], ids=['v1', 'v2'])
@pytest.mark.parametrize('spelling', ['legacy', 'parametrizations', 'fused'])
def test_published_file(tmp_path: Path, spelling: tp.Any, arguments: dict[str, tp.Any]) -> None:
    model = tiny(**arguments)
    torch.save({'generator': rename_weight_norm(model.state_dict(), spelling)}, tmp_path / 'best_netG.pt')
    for path in (tmp_path, tmp_path / 'best_netG.pt'):
        assert reads(path)
        loaded = load_vocoder(path)
        torch.testing.assert_close(wave(loaded), wave(model), atol=1e-5, rtol=1e-4)
    assert not loaded.training and not any(value.requires_grad for value in loaded.parameters())
    assert not any('parametrizations' in name for name in loaded.state_dict())
    # A model that contains it can be made again from a checkpoint.
    again = build(loaded.build_cfg)
    again.load_state_dict(loaded.state_dict(), strict=True)
    assert torch.equal(wave(again), wave(loaded))


@pytest.mark.parametrize('form', ['safetensors', 'plain', 'old torch', 'half'])
def test_other_forms_of_the_file(tmp_path: Path, form: str) -> None:
    model, path = tiny(), tmp_path / ('mine.safetensors' if form == 'safetensors' else 'mine.pth')
    state = model.state_dict()
    if form == 'safetensors':
        save_file(state, path)
    elif form == 'half':
        torch.save({name: value.half() for name, value in state.items()}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == 'plain')
    assert reads(path)
    loaded = load_vocoder(str(path))
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}
    tolerance = 0.2 if form == 'half' else 1e-5
    torch.testing.assert_close(wave(loaded), wave(model), atol=tolerance, rtol=0)


def test_config_beside_the_file(tmp_path: Path) -> None:
    model, path = tiny(**ODD), tmp_path / 'bigvgan_generator.pt'
    torch.save({'generator': model.state_dict()}, path)
    with pytest.raises(UserError, match='bigvgan_generator.pt cannot be loaded.*config.json of this one must lie'):
        load_vocoder(path)
    (tmp_path / 'config.json').write_text(json.dumps(published_config(ODD)))
    torch.testing.assert_close(wave(load_vocoder(tmp_path)), wave(model), atol=1e-5, rtol=1e-4)
    (tmp_path / 'config.json').write_text(json.dumps(published_config({**ODD, 'n_mels': 80})))
    with pytest.raises(UserError, match='has num_mels: 80, the weights have 5'):
        load_vocoder(path)
    (tmp_path / 'config.json').write_text(json.dumps(published_config({**ODD, 'upsample_rates': 10})))
    with pytest.raises(UserError, match='cannot be loaded'):
        load_vocoder(path)
    (tmp_path / 'config.json').write_text('{')
    with pytest.raises(UserError, match='config.json'):
        load_vocoder(path)


def test_config_of_something_else(tmp_path: Path) -> None:
    model = tiny()
    torch.save({'generator': model.state_dict()}, tmp_path / 'best_netG.pt')
    (tmp_path / 'config.json').write_text('{"model_type": "encodec"}')
    assert torch.equal(wave(load_vocoder(tmp_path)), wave(load_vocoder(tmp_path / 'best_netG.pt')))


def test_default_ends(tmp_path: Path) -> None:
    """A config that does not speak of the end means a tanh, as that of version 1."""
    model = tiny()
    torch.save({'generator': model.state_dict()}, tmp_path / 'best_netG.pt')
    (tmp_path / 'config.json').write_text(json.dumps(published_config(V1)))
    loaded = load_vocoder(tmp_path)
    assert isinstance(loaded, BigVGAN) and loaded.use_tanh_at_final


@pytest.mark.parametrize('file, config', [('best_netG.pt', V1), ('bigvgan_generator.pt', ODD)])
def test_pretrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, config: dict[str, tp.Any]) -> None:
    entry = next((entry for entry in weights.entries() if entry.file == file), None)
    if entry is None:
        pytest.skip(f'the registry does not list {file}')
    monkeypatch.setenv('AUDIOCRAFT_WEIGHTS', str(tmp_path))
    folder = tmp_path / entry.name
    folder.mkdir(parents=True)
    model = tiny(**config)
    torch.save({'generator': model.state_dict()}, folder / file)
    if config is ODD:
        (folder / 'config.json').write_text(json.dumps(published_config(config)))
    torch.testing.assert_close(wave(load_vocoder(f'//pretrained/{entry.name}')), wave(model), atol=1e-5, rtol=1e-4)


def test_wrong_files(tmp_path: Path) -> None:
    other = tmp_path / 'best_netG.pt'
    torch.save({'generator': {'conv_pre.weight': torch.zeros(2), 'strange': torch.zeros(1)}}, other)
    damaged = tmp_path / 'damaged.pt'
    damaged.write_bytes(b'PK\3\4 and no more')
    pickled = tmp_path / 'pickled.pt'
    torch.save({'generator': Path('x')}, pickled)
    empty = tmp_path / 'empty.safetensors'
    empty.write_bytes(b'')
    less = tmp_path / 'less.pt'
    torch.save({name: value for name, value in tiny().state_dict().items() if '.convs2.1.' not in name}, less)
    messages = {other: 'is no BigVGAN.*conv_post.weight.*it has 2: conv_pre.weight, strange',
                damaged: 'damaged.pt', pickled: 'pickled.pt', empty: 'empty.safetensors',
                less: 'less.pt does not fit BigVGAN: it lacks .*convs2.1', tmp_path / 'none.pt': 'none.pt'}
    for path, message in messages.items():
        assert reads(path) == (path == less)
        with pytest.raises(UserError, match=f'(?s){message}'):
            load_vocoder(path)
    assert not reads(tmp_path / 'none') and not reads(tmp_path)


def test_export_and_checkpoint(tmp_path: Path) -> None:
    model = tiny(**ODD)
    export = tmp_path / 'export'
    export.mkdir()
    write_exported(export, model.state_dict(), model.build_cfg)
    save_checkpoint(tmp_path / 'xp' / 'checkpoints', 1, models={'model': model.state_dict()},
                    state={'models': {'model': model.build_cfg}}, config='')
    for path in (export, export / 'model.safetensors', tmp_path / 'xp'):
        assert not reads(path)
        loaded = load_vocoder(path)
        torch.testing.assert_close(wave(loaded), wave(model), atol=1e-5, rtol=1e-4)
        assert not loaded.training and not any(value.requires_grad for value in loaded.parameters())


def test_no_vocoder(tmp_path: Path) -> None:
    codec = build({'_target_': 'audiocraft.models.mel_vae.MelVAE', 'latent_dim': 2, 'width': 4, 'depth': 1})
    write_exported(tmp_path, codec.state_dict(), codec.build_cfg)
    with pytest.raises(UserError, match='is a MelVAE, not a vocoder'):
        load_vocoder(tmp_path)
