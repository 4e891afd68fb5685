"""Checks of MMAudio's mel VAE: the network and its layers, and the full-size models of `config/model/compression`."""

import tempfile
from pathlib import Path

import torch
import yaml

from audiocraft.environment import CONFIG_ROOT
from audiocraft.models.mp_mel_vae import MPMelVAE
from audiocraft.models.published import mel_vae
from audiocraft.modules.magnitude_preserving import mp_cat, mp_silu, mp_sum, normalize
from audiocraft.quantization.base import Posterior
from audiocraft.utils.config import build

from .base import Fixture, Report


def _load(fixture: Fixture) -> MPMelVAE:
    """The model of the recorded weights, read from a file as a published one is."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'vae.pth'
        torch.save(fixture.state(), path)
        return mel_vae.load(path)


@torch.no_grad()
def check_vae(fixture: Fixture, report: Report) -> None:
    """Posterior, decoded mels, and parts of the encoder."""
    model, config = _load(fixture), fixture.metadata['config']
    found = {'data_dim': model.mel.n_mels, 'embed_dim': model.latent_dim,
             'hidden_dim': model.encoder.conv_in.weight.shape[0]}
    report.equal('config', found, config)
    normalized = model.normalize_mel(fixture['in.mel'])
    posterior = model.encode_mel(normalized)
    report.close('normalized', normalized, fixture['out.normalized'])
    report.close('mean', posterior.mean, fixture['out.mean'])
    report.close('std', posterior.std, fixture['out.std'])
    report.close('logvar', 2 * posterior.std.log(), fixture['out.logvar'])
    report.close('sample', posterior.sample(fixture['in.sample_noise']), fixture['out.sample'])
    report.close('kl', _recorded_kl(posterior), fixture['out.kl'])
    report.close('decode_z', model.decode_mel(fixture['in.z']), fixture['out.decode_z'])
    report.close('decode_mean', model.decode_mel(posterior.mean), fixture['out.decode_mean'])
    report.close('encoder', model.encoder(fixture['in.mel']), fixture['out.encoder_raw_unnormalized_input'])
    for name, expected in fixture.group('after.').items():
        conv = model.get_submodule(name.removesuffix('.weight'))
        report.close(f'after.{name}', conv.normalized_weight(), expected)
    _check_parts(fixture, report, model, normalized)
    _check_functions(fixture, report)


def _recorded_kl(posterior: Posterior) -> torch.Tensor:
    """The KL divergence of each element as it was recorded: `mean^2 / 2 + var - 1 - logvar`.

    Its terms of the variance lack their factor 1/2. They are the divergence of a posterior with mean zero, so that the
    recorded value is that one on top of the right one.
    """
    each = torch.vmap(lambda mean, std: Posterior(mean, std).kl_divergence())
    mean, std = posterior.mean.flatten(), posterior.std.flatten()
    return (each(mean, std) + each(torch.zeros_like(mean), std)).view_as(posterior.mean)


def _check_parts(fixture: Fixture, report: Report, model: MPMelVAE, normalized: torch.Tensor) -> None:
    encoder, middle = model.encoder, fixture['sub.in.mid']
    first = encoder.conv_in(normalized)
    block = encoder.down[0].block[0](first)
    parts = {'conv_in': first, 'down0.block0': block, 'down0.downsample_of_block0': encoder.down[0].downsample(block),
             'mid.block_1': encoder.mid.block_1(middle), 'mid.attn_1': encoder.mid.attn_1(middle)}
    for name, value in parts.items():
        report.close(f'sub.encoder.{name}', value, fixture[f'sub.encoder.{name}'])


def _check_functions(fixture: Fixture, report: Report) -> None:
    a, b = fixture['mp.a'], fixture['mp.b']
    results = {'normalize(a)': normalize(a), 'normalize(a,dim=1)': normalize(a, dim=1), 'silu(a)': mp_silu(a),
               'sum(a,b,0.3)': mp_sum(a, b, 0.3), 'cat(a,b)': mp_cat(a, b)}
    for name, value in results.items():
        report.close(f'mp.{name}', value, fixture[f'mp.{name}'])


def _preset(name: str, device: str = 'cpu', **changes) -> MPMelVAE:
    node = yaml.safe_load((CONFIG_ROOT / 'model' / 'compression' / f'mel_{name}.yaml').read_text())
    with torch.device(device):
        return build({**node, **changes})


def check_manifest(fixture: Fixture, report: Report) -> None:
    """The full-size model of `config/model/compression`, on the meta device: every name, shape and dtype."""
    manifest, model = fixture.json, _preset(fixture.kind, 'meta')
    state, parameters = model.state_dict(), dict(model.named_parameters())
    report.equal('names', sorted(state), sorted(manifest['state_dict']))
    for key, entry in manifest['state_dict'].items():
        found = dict(shape=list(state[key].shape), dtype=str(state[key].dtype).removeprefix('torch.'),
                     buffer=key not in parameters)
        report.equal(key, found, {'buffer': False, **entry})
    sizes = [parameter.numel() for parameter in parameters.values()]
    report.equal('num_entries', len(state), manifest['num_entries'])
    report.equal('num_params', sum(sizes), manifest['num_params'])
    report.equal('num_trainable', sum(p.numel() for p in parameters.values() if p.requires_grad),
                 manifest['num_trainable'])
    report.equal('state_dict_bytes', sum(value.numel() * value.element_size() for value in state.values()),
                 manifest['state_dict_bytes'])
    # What the loader makes of such a file is what the yaml describes.
    report.equal('node', {'griffin_lim_iter': 32, **mel_vae.model_node(state)}, model.build_cfg)


def check_constants(fixture: Fixture, report: Report) -> None:
    """The statistics of the mel bands that the presets begin with."""
    for name in ('vae_16k', 'vae_44k'):
        model = _preset(name, width=8)
        for kind in ('mean', 'std'):
            key = f'data_{kind}'
            report.numbers(f'{name} {key}', getattr(model, key).flatten().tolist(),
                           fixture.json[f'{key}_{model.mel.n_mels}'])


CHECKS = {
    'mmaudio/vae': check_vae,
    'mmaudio/constants_mel_stats': check_constants,
    'mmaudio/vae_16k': check_manifest,
    'mmaudio/vae_44k': check_manifest,
}
