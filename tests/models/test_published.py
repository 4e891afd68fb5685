"""Codecs in the layouts of AudioCraft and of `transformers`, read and written."""

import json
import typing as tp
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from audiocraft.models.encodec import EncodecModel
from audiocraft.models.published import transformers
from audiocraft.models.published.audiocraft import (
    FILE,
    export_audiocraft,
    load_codec,
    model_node,
    published_config,
    published_state,
)
from audiocraft.modules.norm_conv import rename_weight_norm
from audiocraft.utils.errors import UserError

from .codecs import audio, random_codec

KINDS = {'codes': {}, 'causal': {'causal': True, 'seanet': {'true_skip': False, 'pad_mode': 'constant'}},
         'stereo': {'channels': 2, 'renormalize': True},
         'continuous': {'continuous': True, 'channels': 2, 'seanet': {'activation': 'snake'}}}
# The keys that AudioCraft's builders read.
READ = {'encodec': {'autoencoder', 'quantizer', 'sample_rate', 'channels', 'causal', 'renormalize'},
        'seanet': {'dimension', 'channels', 'causal', 'n_filters', 'n_residual_layers', 'ratios', 'activation',
                   'activation_params', 'norm', 'norm_params', 'kernel_size', 'residual_kernel_size',
                   'last_kernel_size', 'dilation_base', 'pad_mode', 'true_skip', 'compress', 'lstm',
                   'disable_norm_outer_blocks', 'decoder', 'encoder'},
        'rvq': {'n_q', 'q_dropout', 'bins', 'decay', 'kmeans_init', 'kmeans_iters', 'threshold_ema_dead_code',
                'orthogonal_reg_weight'}, 'no_quant': set()}


def assert_same(model: EncodecModel, other: EncodecModel) -> None:
    """Equal weights, and so equal codes or latents, and sound."""
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key]) and '.latent_' not in key] == []
    with torch.no_grad():
        wav = audio(model.channels)
        assert torch.equal(model.decode(model.encode(wav)), other.decode(other.encode(wav)))


@pytest.mark.parametrize('kind', KINDS)
def test_round_trip(kind: str, tmp_path: Path) -> None:
    model = random_codec(**KINDS[kind])
    path = export_audiocraft(model, tmp_path)
    assert path == tmp_path / FILE
    for source in (path, tmp_path):
        assert_same(model, load_codec(source))
    package = torch.load(path, weights_only=True)
    assert package['exported'] is True and isinstance(package['version'], str)
    spelled = {key.rpartition('.')[2] for key in package['best_state']}
    assert ('weight_g' in spelled) == model.is_discrete and ('original0' in spelled) != model.is_discrete
    assert not any('latent' in key for key in package['best_state'])
    again = export_audiocraft(load_codec(path), tmp_path / 'again.bin')
    assert torch.load(again, weights_only=True)['xp.cfg'] == package['xp.cfg']


@pytest.mark.parametrize('kind', KINDS)
def test_written_config_has_what_builders_read(kind: str, tmp_path: Path) -> None:
    model = random_codec(**KINDS[kind])
    cfg = yaml.safe_load(torch.load(export_audiocraft(model, tmp_path), weights_only=True)['xp.cfg'])
    kind = 'rvq' if model.is_discrete else 'no_quant'
    assert cfg['compression_model'] == 'encodec' and cfg['encodec']['quantizer'] == kind
    for block in ('encodec', 'seanet', kind):
        assert set(cfg[block]) == READ[block], block
    assert set(cfg['seanet']['decoder']) == {'trim_right_ratio', 'final_activation', 'final_activation_params'}
    assert cfg['seanet']['encoder'] == ({} if model.is_discrete else {'dimension': 12})
    assert cfg['seanet']['dimension'] == 6 and cfg['seanet']['norm_params'] == {}
    assert (cfg['sample_rate'], cfg['channels']) == (800, model.channels)


def write(path: Path, model: EncodecModel, **changes: tp.Any) -> Path:
    """An AudioCraft file of the model, with some of its entries changed."""
    torch.save({'best_state': published_state(model), 'xp.cfg': yaml.safe_dump(published_config(model)),
                'version': '1.4', 'exported': True, **changes}, path)
    return path


@pytest.mark.parametrize('spelling', ['legacy', 'parametrizations', 'fused'])
def test_weight_norm_in_any_spelling(spelling: tp.Any, tmp_path: Path) -> None:
    model = random_codec()
    path = write(tmp_path / 'x.bin', model, best_state=rename_weight_norm(model.state_dict(), spelling))
    with torch.no_grad():
        wav, loaded = audio(), load_codec(path)
        assert torch.allclose(loaded.encoder(wav), model.encoder(wav), atol=1e-5)


def test_interpolations_unknown_keys_and_half_precision(tmp_path: Path) -> None:
    model = random_codec(seed=3)
    cfg = published_config(model)
    cfg['seanet'] |= {'channels': '${channels}', 'causal': '${encodec.causal}', 'novelty': 3}
    cfg |= {'rate': 800, 'rvq': {**cfg['rvq'], 'orthogonal_reg_active_codes_only': False}, 'other': {'a': None}}
    cfg['encodec']['sample_rate'] = '${rate}'
    half = {key: value.half() for key, value in published_state(model).items()}
    loaded = load_codec(write(tmp_path / 'x.bin', model, **{'xp.cfg': yaml.safe_dump(cfg), 'best_state': half}))
    assert loaded.sample_rate == 800 and loaded.channels == 1
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    assert torch.allclose(loaded.decoder.state_dict()['model.0.conv.conv.bias'],
                          model.decoder.state_dict()['model.0.conv.conv.bias'], atol=1e-3)


def test_what_a_config_leaves_out_has_their_defaults() -> None:
    cfg: dict[str, tp.Any] = {'encodec': {'sample_rate': 800}, 'seanet': {'ratios': [4, 2]}}
    built = model_node(cfg)
    assert built['seanet']['n_residual_layers'] == 3 and built['quantizer']['dimension'] == 128


def test_files_that_are_refused(tmp_path: Path) -> None:
    model = random_codec()
    cases: dict[str, tuple[tp.Any, str]] = {
        'other.bin': ({'model': 1}, 'no codec of AudioCraft'),
        'list.bin': ([1, 2], 'it has list'),
        'pickled.th': ({'xp.cfg': Path('x'), 'best_state': {}}, 'pickled objects.*export_encodec'),
    }
    for name, (content, message) in cases.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(UserError, match=message):
            load_codec(tmp_path / name)
    (tmp_path / 'junk.bin').write_bytes(b'junk')
    with pytest.raises(UserError, match='junk.bin'):
        load_codec(tmp_path / 'junk.bin')
    with pytest.raises(UserError, match='There is no'):
        load_codec(tmp_path / 'nowhere.bin')
    fewer = dict(list(published_state(model).items())[:-1])
    with pytest.raises(UserError, match='does not fit EncodecModel: it '):
        load_codec(write(tmp_path / 'fewer.bin', model, best_state=fewer))
    cfg = published_config(model) | {'encodec': {'sample_rate': 800, 'quantizer': 'no_quant'}}
    with pytest.raises(UserError, match='no_quant.*6 channels from the encoder'):
        load_codec(write(tmp_path / 'plain.bin', model, **{'xp.cfg': yaml.safe_dump(cfg)}))


def test_a_checkpoint_that_is_plain_loads(tmp_path: Path) -> None:
    model = random_codec()
    path = write(tmp_path / 'checkpoint.th', model, best_state={'model': published_state(model)},
                 **{'xp.cfg': published_config(model)})
    assert_same(model, load_codec(path))


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    model = random_codec()
    model.build_cfg['quantizer']['codebook_dim'] = 4  # type: ignore[union-attr, index]
    with pytest.raises(UserError, match='codebook_dim'):
        export_audiocraft(model, tmp_path)
    del model.build_cfg
    with pytest.raises(UserError, match='how it was made'):
        export_audiocraft(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


# What `transformers` calls the layers of a decoder with one ratio and one residual layer, and we.
NAMES = {
    'encoder.layers.0.conv.weight_g': 'encoder.model.0.conv.conv.weight_g',
    'encoder.layers.1.block.3.conv.bias': 'encoder.model.1.block.3.conv.conv.bias',
    'encoder.layers.1.shortcut.norm.weight': 'encoder.model.1.shortcut.conv.norm.weight',
    'encoder.layers.4.lstm.weight_ih_l0': 'encoder.model.4.lstm.weight_ih_l0',
    'decoder.layers.0.conv.bias': 'decoder.model.0.conv.conv.bias',
    'decoder.layers.3.conv.parametrizations.weight.original0':
        'decoder.model.3.convtr.convtr.parametrizations.weight.original0',
    'decoder.layers.3.norm.bias': 'decoder.model.3.convtr.norm.bias',
    'decoder.layers.4.block.1.norm.bias': 'decoder.model.4.block.1.conv.norm.bias',
    'decoder.layers.4.shortcut.conv.bias': 'decoder.model.4.shortcut.conv.conv.bias',
    'decoder.layers.6.conv.bias': 'decoder.model.6.conv.conv.bias',
    'decoder.layers.6.norm.bias': 'decoder.model.6.conv.norm.bias',
    'quantizer.layers.2.codebook.embed': 'quantizer.vq.layers.2._codebook.embed',
}
HF: dict[str, tp.Any] = {'model_type': 'encodec', 'sampling_rate': 800, 'hidden_size': 6, 'num_filters': 4,
                         'upsampling_ratios': [4, 2], 'codebook_size': 16, 'target_bandwidths': [0.4, 1.2],
                         'num_lstm_layers': 1, 'use_causal_conv': False, 'use_conv_shortcut': False}


def test_names_of_transformers() -> None:
    assert transformers.native_names(NAMES) == NAMES


def save_as_transformers(model: EncodecModel, folder: Path, safe: bool = True, **changes: tp.Any) -> Path:
    """Write a model under the other names; what they do not name stays."""
    folder.mkdir()
    state = {}
    for key, value in rename_weight_norm(model.state_dict(), 'legacy').items():
        key = key.replace('.model.', '.layers.').replace('.vq.', '.').replace('_codebook', 'codebook')
        state[key.replace('convtr.convtr', 'conv').replace('conv.conv', 'conv')] = value.contiguous()
    (folder / 'config.json').write_text(json.dumps({**HF, **changes}))
    if safe:
        save_file(state, folder / 'model.safetensors')
    else:
        torch.save(state, folder / 'pytorch_model.bin')
    return folder


@pytest.mark.parametrize('safe', [True, False])
def test_folder_of_transformers(safe: bool, tmp_path: Path) -> None:
    model = random_codec()
    loaded = transformers.load_encodec(save_as_transformers(model, tmp_path / 'hf', safe))
    assert_same(model, loaded)
    assert loaded.num_codebooks == 3 and loaded.quantizer.q_dropout


def test_folders_of_transformers_that_are_refused(tmp_path: Path) -> None:
    folder = save_as_transformers(random_codec(), tmp_path / 'hf', codebook_dim=3)
    with pytest.raises(UserError, match='codebook_dim'):
        transformers.load_encodec(folder)
    (folder / 'config.json').write_text(json.dumps({**HF, 'target_bandwidths': [0.4]}))
    with pytest.raises(UserError, match='does not fit EncodecModel: it '):
        transformers.load_encodec(folder)
    (folder / 'model.safetensors').unlink()
    with pytest.raises(UserError, match='no weights: model.safetensors or pytorch_model.bin'):
        transformers.load_encodec(folder)
    (folder / 'config.json').write_text(json.dumps({'model_type': 'dac'}))
    with pytest.raises(UserError, match='not the config of an EnCodec'):
        transformers.load_encodec(folder)


def test_a_pointer_leads_to_the_published_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('AUDIOCRAFT_WEIGHTS', str(tmp_path / 'weights'))
    monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path / 'hub'))
    pointer = tmp_path / FILE
    torch.save({'pretrained': 'facebook/encodec_32khz', 'exported': True, 'version': '1'}, pointer)
    with pytest.raises(UserError, match='weights/encodec_32khz.*hub/models--facebook--encodec_32khz'):
        load_codec(pointer)
    model = random_codec()
    snapshots = tmp_path / 'hub' / 'models--facebook--encodec_32khz' / 'snapshots'
    snapshots.mkdir(parents=True)
    save_as_transformers(model, snapshots / 'abc', safe=False)
    assert_same(model, load_codec(pointer))
    torch.save({'pretrained': 'dac_44khz', 'exported': True}, pointer)
    with pytest.raises(UserError, match='dac_44khz'):
        load_codec(pointer)
