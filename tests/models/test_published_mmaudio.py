"""The networks that MMAudio publishes, and what its training leaves, are read from their files."""

import json
import typing as tp
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from audiocraft.environment import CONFIG_ROOT
from audiocraft.models.exported import write_exported
from audiocraft.models.loaders import find_checkpoint, load_compression_model, load_model
from audiocraft.models.mmaudio import MMAudio
from audiocraft.models.published import files, mmaudio, mmaudio_training
from audiocraft.utils.checkpoint import save_checkpoint
from audiocraft.utils.config import build, from_yaml, rebuild
from audiocraft.utils.errors import UserError

DIMS: dict[str, tp.Any] = dict(
    _target_='audiocraft.models.mmaudio.MMAudio', latent_dim=20, clip_dim=6, sync_dim=5, text_dim=7, hidden_dim=16,
    depth=5, fused_depth=3, num_heads=2, latent_seq_len=250, clip_seq_len=64, sync_seq_len=192, text_seq_len=3)


def network(**changes: tp.Any) -> MMAudio:
    """A tiny network of the published kind, with random weights everywhere."""
    model: MMAudio = build({**DIMS, **changes})
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = torch.rand(parameter.shape, generator=generator) * 0.2 - 0.1
    return model.eval()


def old(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With the tables that old checkpoints hold."""
    return {**state, 't_embed.freqs': torch.zeros(2), 'latent_rot': torch.zeros(2), 'clip_rot': torch.zeros(2)}


@pytest.mark.parametrize('changes', [
    {}, {'v2': True}, {'latent_dim': 40, 'latent_seq_len': 345}, {'hidden_dim': 64, 'num_heads': 4, 'depth': 3,
                                                                'fused_depth': 1}, {'latent_dim': 8, 'text_dim': 4}])
def test_the_variant_follows_from_the_shapes(changes: dict, tmp_path: Path) -> None:
    model, path = network(**changes), tmp_path / 'any name.pth'
    torch.save(old(model.state_dict()), path)
    assert mmaudio.reads(path)
    before = torch.get_rng_state()
    loaded = load_model(path)
    assert torch.equal(torch.get_rng_state(), before), 'nothing is drawn'
    assert loaded.build_cfg == {'v2': False, **DIMS, **changes} and not loaded.training
    inputs = torch.rand(1, model.latent_seq_len, model.latent_dim), torch.rand(1, 64, 6), torch.rand(1, 192, 5), \
        torch.rand(1, 3, model.empty_string_feat.shape[1]), torch.rand(1)
    with torch.no_grad():
        assert torch.equal(loaded(*inputs), model(*inputs)) and model(*inputs).std() > 0
    frozen = {name for name, parameter in loaded.named_parameters() if not parameter.requires_grad}
    assert frozen == {'latent_mean', 'latent_std', 'empty_string_feat'}
    again = rebuild(loaded.build_cfg)
    again.load_state_dict(model.state_dict(), strict=True)


@pytest.mark.parametrize('sample_rate, latent_dim, codec, frame_rate', [
    (16_000, 20, 'vae_16k', 31.25), (44_100, 40, 'vae_44k', 44_100 / 1024)])
def test_the_checkpoint_has_facts_as_an_xp_has(sample_rate: int, latent_dim: int, codec: str, frame_rate: float,
                                               tmp_path: Path) -> None:
    save_file(network(latent_dim=latent_dim).state_dict(), tmp_path / 'x.safetensors')
    checkpoint = find_checkpoint(tmp_path / 'x.safetensors')
    facts = checkpoint.state['objects']['facts']
    assert facts == mmaudio.published_facts(sample_rate)
    assert (facts['sample_rate'], facts['frame_rate'], facts['duration']) == (sample_rate, frame_rate, 8.)
    assert facts['codec'] == f'//pretrained/mmaudio/{codec}' and facts['channels'] == 1
    assert {part['build_cfg']['_target_']: part['build_cfg']['weights'] for part in facts['extractors'].values()} == {
        'audiocraft.features.clip.ClipImage': '//pretrained/clip_dfn5b',
        'audiocraft.features.synchformer.Synchformer': '//pretrained/synchformer',
        'audiocraft.features.clip.ClipText': '//pretrained/clip_dfn5b'}
    assert [part['keys'] for part in facts['extractors'].values()] == [
        ['clip_features'], ['sync_features'], ['text_features']]
    assert from_yaml(checkpoint.config)['sampling']['guidance'] == 4.5
    with pytest.raises(UserError, match='8000'):
        mmaudio.published_facts(8000)


def test_found_by_name_in_the_layout_of_mmaudio_or_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path / 'hub'))
    for root in (tmp_path, tmp_path / 'weights', tmp_path / 'ext_weights'):
        root.mkdir(exist_ok=True)
        monkeypatch.setenv('AUDIOCRAFT_WEIGHTS', str(root))
        with pytest.raises(UserError, match='mmaudio_small_16k.pth at'):
            load_model('//pretrained/mmaudio/small_16k')
    torch.save(network().state_dict(), tmp_path / 'weights' / 'mmaudio_small_16k.pth')
    for root in (tmp_path, tmp_path / 'weights', tmp_path / 'ext_weights'):
        monkeypatch.setenv('AUDIOCRAFT_WEIGHTS', str(root))
        checkpoint = find_checkpoint('//pretrained/mmaudio/small_16k')
        assert checkpoint.path.name == 'mmaudio_small_16k.pth' and checkpoint.models['model']['latent_mean'].all()
    with pytest.raises(UserError, match='not a compression model'):
        load_compression_model('//pretrained/mmaudio/small_16k')


def test_networks_of_our_own_are_not_taken_for_published_ones(tmp_path: Path) -> None:
    model = network(latent_seq_len=10, clip_seq_len=4, sync_seq_len=16)
    save_checkpoint(tmp_path / 'xp' / 'checkpoints', 3, models={'model': model.state_dict()},
                    state={'models': {'model': model.build_cfg}})
    (tmp_path / 'export').mkdir()
    write_exported(tmp_path / 'export', model.state_dict(), model.build_cfg)  # type: ignore[arg-type]
    for reference in ('xp', 'xp/checkpoints', 'xp/checkpoints/3', 'export', 'export/model.safetensors'):
        assert load_model(tmp_path / reference).latent_seq_len == 10, reference
    # Weights alone, in a folder or as a file, are of a clip of 8 seconds.
    save_file(model.state_dict(), tmp_path / 'model.safetensors')
    assert load_model(tmp_path).latent_seq_len == load_model(tmp_path / 'model.safetensors').latent_seq_len == 250


def test_files_that_are_refused(tmp_path: Path) -> None:
    state = network().state_dict()
    torch.save({**state, 'surplus': torch.zeros(1)}, tmp_path / 'surplus.pth')
    with pytest.raises(UserError, match='surplus'):
        load_model(tmp_path / 'surplus.pth')
    torch.save({key: value for key, value in state.items() if key != 'clip_cond_proj.bias'}, tmp_path / 'missing.pth')
    with pytest.raises(UserError, match='clip_cond_proj.bias'):
        load_model(tmp_path / 'missing.pth')
    torch.save({'layer.weight': torch.zeros(1)}, tmp_path / 'other.pth')
    with pytest.raises(UserError, match=r'other.pth holds weights of another model \(layer.weight'):
        load_model(tmp_path / 'other.pth')
    torch.save({'weights': Path('x'), 'model': torch.nn.Linear(1, 1)}, tmp_path / 'pickled.pth')
    with pytest.raises(UserError, match='pickled.pth holds pickled objects.*torch.save'):
        load_model(tmp_path / 'pickled.pth')
    (tmp_path / 'damaged.pth').write_bytes(b'PK\x03\x04')
    with pytest.raises(UserError, match='damaged.pth'):
        load_model(tmp_path / 'damaged.pth')


def test_empty_string(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('AUDIOCRAFT_WEIGHTS', str(tmp_path))
    features = torch.rand(1, 77, 1024)
    torch.save(features, tmp_path / 'empty_string.pth')
    for given in (tmp_path / 'empty_string.pth', '//pretrained/mmaudio/empty_string'):
        assert torch.equal(mmaudio.empty_string(given), features[0])
    for wrong in (torch.rand(2, 77, 4), torch.rand(3), {'a': features}):
        torch.save(wrong, tmp_path / 'wrong.pth')
        with pytest.raises(UserError, match='the features of the empty text'):
            mmaudio.empty_string(tmp_path / 'wrong.pth')


# -- what a training leaves -------------------------------------------------------------------------------------------

def test_updates_done() -> None:
    assert mmaudio_training.updates_done(9_999, 10_000) == 10_000, 'written in the course of the training'
    assert mmaudio_training.updates_done(10_000, 10_000) == 10_000, 'written at its end'
    assert mmaudio_training.updates_done(9_999, None) == 10_000
    assert mmaudio_training.updates_done(19_999, 20_001) == 20_000, 'after a resume its schedule is one ahead'


def write_training(path: Path, model: MMAudio, **changes: tp.Any) -> Path:
    """A checkpoint with an optimizer of the trained weights, whose moments are their number in it."""
    state = dict(model.state_dict())
    trained = [name for name in state if name not in mmaudio_training.FROZEN]
    moments = {number: {'step': torch.tensor(3.), 'exp_avg': torch.full_like(state[name], float(number)),
                        'exp_avg_sq': torch.ones_like(state[name])} for number, name in enumerate(trained)}
    optimizer = {'state': moments, 'param_groups': [{'lr': 1e-4, 'params': list(range(len(trained)))}]}
    ema = {f'ema_models.{index}.{key}': value for index in range(2)
           for key, value in {'_extra_state': {'initted': True, 'step': 3},
                              **{f'ema_model.{name}': tensor + index for name, tensor in old(state).items()}}.items()}
    torch.save({'it': 2, 'weights': old(state), 'optimizer': optimizer, 'scheduler': {'last_epoch': 3}, 'ema': ema,
                **changes}, path)
    return path


def test_read_training(tmp_path: Path) -> None:
    model = network()
    path = write_training(tmp_path / 'x_ckpt_last.pth', model)
    assert mmaudio_training.reads(path)
    training = mmaudio_training.read(path)
    assert training.update == 3 and training.averaged == 3 and len(training.averages) == 2
    assert training.moments.keys() == model.state_dict().keys() - set(mmaudio_training.FROZEN)
    trained = [name for name in model.state_dict() if name not in mmaudio_training.FROZEN]
    assert training.moments[trained[7]]['exp_avg'].mean() == 7
    for index, average in enumerate(training.averages):
        assert average.keys() == model.state_dict().keys()
        assert torch.equal(average['latent_mean'], model.latent_mean + index)
    assert load_model(path).build_cfg == {**DIMS, 'v2': False}, 'its weights, when they alone are asked for'
    torch.save(model.state_dict(), tmp_path / 'x_last.pth')
    assert not mmaudio_training.reads(tmp_path / 'x_last.pth') and mmaudio.reads(tmp_path / 'x_last.pth')


def test_trainings_that_are_refused(tmp_path: Path) -> None:
    model, path = network(), tmp_path / 'x.pth'
    groups = [{'params': [0, 1]}]
    with pytest.raises(UserError, match='2 parameters in 1 groups, but there are'):
        mmaudio_training.read(write_training(path, model, optimizer={'state': {}, 'param_groups': groups}))
    with pytest.raises(UserError, match='missing or damaged'):
        mmaudio_training.read(write_training(path, model, it='x'))
    trained = len(model.state_dict()) - 3
    moments = {0: {'step': 1, 'exp_avg': torch.zeros(5), 'exp_avg_sq': torch.zeros(5)}}
    groups = [{'params': list(range(trained))}]
    with pytest.raises(UserError, match='not of the same network'):
        mmaudio_training.read(write_training(path, model, optimizer={'state': moments, 'param_groups': groups}))
    torch.save({'it': 3}, path)
    with pytest.raises(UserError, match='no checkpoint of a training'):
        mmaudio_training.read(path)


def test_snapshots(tmp_path: Path) -> None:
    model, folder = network(), tmp_path / 'ema_ckpts'
    folder.mkdir()
    for name in ('0.8', '0.16', '1.8', '1.16'):
        torch.save({'_extra_state': {'initted': True, 'step': 8},
                    **{f'ema_model.{key}': value for key, value in old(model.state_dict()).items()}},
                   folder / f'{name}.pt')
    (folder / 'notes.pt').touch()
    found = mmaudio_training.snapshots_beside(tmp_path / 'x_ckpt_last.pth')
    assert [(index, step) for index, step, _ in found] == [(0, 8), (1, 8), (0, 16), (1, 16)]
    assert mmaudio_training.read_snapshot(found[0][2]).keys() == model.state_dict().keys()
    with pytest.raises(UserError, match='no snapshot'):
        mmaudio_training.read_snapshot(write_training(tmp_path / 'y.pth', model))


# -- files in general -------------------------------------------------------------------------------------------------

def test_state_in_every_layout(tmp_path: Path) -> None:
    state = {'a': torch.rand(2, 3), 'b': torch.rand(4)}
    for key in (*files.NESTED, None):
        path = tmp_path / f'{key}.pt'
        torch.save(state if key is None else {key: {**state, 'note': 'x'}, 'steps': 5}, path)
        assert files.read_state(path)['a'].equal(state['a'])
        assert files.shapes_of(path) == {'a': (2, 3), 'b': (4,)}
    torch.save(state, tmp_path / 'old.pt', _use_new_zipfile_serialization=False)
    assert files.read_state(tmp_path / 'old.pt')['b'].equal(state['b'])
    assert files.shapes_of(tmp_path / 'no such.pt') == {} == files.shapes_of(tmp_path)
    torch.save([1, 2], tmp_path / 'list.pt')
    with pytest.raises(UserError, match='holds no weights'):
        files.read_state(tmp_path / 'list.pt')
    assert files.shapes_of(tmp_path / 'list.pt') == {}
    save_file(state, tmp_path / 'list.pt')  # the same name, another file
    with pytest.raises(UserError):
        files.shapes_of(tmp_path / 'list.pt')


MANIFESTS = sorted((Path(__file__).parents[1] / 'golden' / 'mmaudio' / 'manifests').glob('net_*.json'))


@pytest.mark.parametrize('path', MANIFESTS, ids=lambda path: path.stem)
def test_the_published_variants(path: Path) -> None:
    entries = json.loads(path.read_text(encoding='utf-8'))['state_dict']
    shapes = {name: tuple(entry['shape']) for name, entry in entries.items()}
    node = mmaudio.model_node(shapes)
    variant = CONFIG_ROOT / 'model' / 'mmaudio' / f'{path.stem.removeprefix("net_")}.yaml'
    expected = yaml.safe_load(variant.read_text(encoding='utf-8'))
    assert {**node, 'mlp_ratio': 4.} | expected == {**node, 'mlp_ratio': 4.}
    assert (node['clip_dim'], node['sync_dim'], node['text_dim'], node['text_seq_len']) == (1024, 768, 1024, 77)
    assert (node['latent_dim'], node['latent_seq_len']) in ((20, 250), (40, 345))
