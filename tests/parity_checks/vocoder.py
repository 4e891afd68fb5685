"""Checks of BigVGAN and of its alias-free activations."""

import json
import tempfile
import typing as tp
from pathlib import Path

import torch

from audiocraft.models.bigvgan import BigVGAN, arguments_of_published, load_vocoder, reads
from audiocraft.modules.alias_free import kaiser_sinc_filter
from audiocraft.modules.norm_conv import rename_weight_norm
from audiocraft.utils.config import build

from .base import Fixture, Report, build_loaded

TARGET = 'audiocraft.models.bigvgan.BigVGAN'
MODULES = 'audiocraft.modules.alias_free'
# Sub-modules whose outputs are recorded.
PARTS = {'conv_pre': 'conv_pre', 'ups0': 'ups.0', 'resblock0': 'resblocks.0'}
State = dict[str, torch.Tensor]


def check_alias_free(fixture: Fixture, report: Report) -> None:
    """The filter, both changes of the rate, and each activation, alone and between them."""
    x, taps = fixture['x'], fixture['filter'].shape[-1]
    ratio = fixture['upsample.y'].shape[-1] // x.shape[-1]
    rates = {'ratio': ratio, 'taps': taps}
    report.close('filter', kaiser_sinc_filter(0.5 / ratio, 0.6 / ratio, taps), fixture['filter'])
    report.close('upsample', build({'_target_': f'{MODULES}.Upsample', **rates})(x), fixture['upsample.y'])
    report.close('downsample', build({'_target_': f'{MODULES}.Downsample', **rates})(x), fixture['downsample.y'])
    for name in sorted({key.rpartition('.')[0] for key in fixture.tensors if key.startswith('snake')}):
        kind, log = name.split('.log')
        config = {'channels': x.shape[1], 'log_scale': log == '1', 'tied': kind == 'snake'}
        state = {key: fixture[f'{name}.{key}'] for key in ('alpha', 'beta') if f'{name}.{key}' in fixture}
        act = build_loaded(f'{MODULES}.SnakeBeta', config, state)
        report.close(name, act(x), fixture[f'{name}.y'])
        between = build({'_target_': f'{MODULES}.AliasFree', **rates}, act=act)
        report.close(f'{name}.activation1d', between(x), fixture[f'{name}.activation1d'])


def _outputs(model: torch.nn.Module, log_mel: torch.Tensor) -> dict[str, torch.Tensor]:
    """The waveform and the recorded parts on the way to it."""
    found: dict[str, torch.Tensor] = {}
    hooks = [model.get_submodule(path).register_forward_hook(lambda _, __, out, name=name: found.update({name: out}))
             for name, path in PARTS.items()]
    with torch.no_grad():
        found['wave'] = model(log_mel)
    for hook in hooks:
        hook.remove()
    return found


def _from_file(state: State, config: dict[str, tp.Any]) -> torch.nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'bigvgan_generator.pt'
        torch.save({'generator': state}, path)
        (path.parent / 'config.json').write_text(json.dumps(config))
        assert reads(path)
        return load_vocoder(path.parent)


def check_bigvgan(fixture: Fixture, report: Report) -> None:
    """With weight normalisation in both spellings, without it, and from a file as it is published."""
    state, config, log_mel = fixture.state(), fixture.metadata['h'], fixture['in.mel']
    arguments = arguments_of_published(rename_weight_norm(state, 'fused'), config)
    model = tp.cast(BigVGAN, build_loaded(TARGET, arguments, state))
    found = _outputs(model, log_mel)
    for name in PARTS:
        report.close(f'sub.{name}', found[name], fixture[f'sub.{name}'])
    report.close('wave', found['wave'], fixture['out.wave'])
    report.equal('hop', model.hop * log_mel.shape[-1], fixture['out.wave'].shape[-1])
    legacy = build_loaded(TARGET, arguments, rename_weight_norm(state, 'legacy'))
    report.close('wave of old names', _outputs(legacy, log_mel)['wave'], fixture['out.wave'])
    removed = model.remove_weight_norm().state_dict()
    for name, expected in fixture.group('after.').items():
        report.close(f'after.{name}', removed[name], expected)
    expected = fixture['out.wave_after_remove_weight_norm']
    report.close('wave after', _outputs(model, log_mel)['wave'], expected)
    again = build_loaded(TARGET, arguments, removed)
    report.close('wave of fused weights', _outputs(again, log_mel)['wave'], expected)
    report.close('wave from a file', _outputs(_from_file(state, config), log_mel)['wave'], expected)


def check_manifest(fixture: Fixture, report: Report) -> None:
    """Names, shapes, dtypes and sizes of the full-size model, which is built on the meta device."""
    manifest = fixture.json
    state = {name: torch.empty(entry['shape'], dtype=getattr(torch, entry['dtype']), device='meta')
             for name, entry in manifest['state_dict'].items()}
    arguments = arguments_of_published(rename_weight_norm(state, 'fused'), manifest.get('h'))
    normalized = any('parametrizations' in name for name in state)
    with torch.device('meta'):
        model = build({'_target_': TARGET, **arguments})
    model.load_state_dict(rename_weight_norm(state, 'legacy'), strict=True)
    model = model if normalized else model.remove_weight_norm()
    model.load_state_dict(state, strict=True)
    found, buffers = model.state_dict(), dict(model.named_buffers())
    report.equal('state_dict', {name: {'shape': list(value.shape), 'dtype': str(value.dtype).removeprefix('torch.'),
                                       **({'buffer': True} if name in buffers else {})}
                                for name, value in found.items()}, manifest['state_dict'])
    parameters = list(model.parameters())
    sizes = {'num_entries': len(found), 'num_params': sum(value.numel() for value in parameters),
             'num_trainable': sum(value.numel() for value in parameters if value.requires_grad),
             'state_dict_bytes': sum(value.numel() * value.element_size() for value in found.values()),
             'non_persistent_buffers': {name: list(value.shape) for name, value in buffers.items()
                                        if name not in found}}
    for name, value in sizes.items():
        report.equal(name, value, manifest[name])


CHECKS = {
    'mmaudio/alias_free': check_alias_free,
    'mmaudio/bigvgan_v1': check_bigvgan,
    'mmaudio/bigvgan_v2': check_bigvgan,
    'mmaudio/bigvgan_v1_16k': check_manifest,
    'mmaudio/bigvgan_v1_16k_weightnorm_removed': check_manifest,
    'mmaudio/bigvgan_v2_44khz_128band_512x': check_manifest,
}
