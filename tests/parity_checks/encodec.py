"""Checks of whole codecs: EnCodec with codes and with continuous latents, and the names of the full-size ones."""

import torch
from torch import nn

from audiocraft.models.encodec import EncodecModel
from audiocraft.models.interleave import InterleaveStereo
from audiocraft.models.published import audiocraft as published
from audiocraft.models.published import transformers
from audiocraft.modules.norm_conv import rename_weight_norm
from audiocraft.quantization.base import Codes, Posterior
from audiocraft.utils.config import build

from .base import Fixture, Report, build_loaded

MODEL = 'audiocraft.models.encodec.EncodecModel'
RVQ = 'audiocraft.quantization.rvq.ResidualVectorQuantizer'
GAUSSIAN = 'audiocraft.quantization.gaussian.GaussianBottleneck'
OF_MODEL = ('channels', 'causal', 'dimension')


def _seanet(config: dict) -> dict:
    """Our arguments of the convolutional networks; what a recording leaves out has the defaults of the recorded."""
    return published.SEANET_DEFAULTS | {key: value for key, value in config['seanet'].items() if key not in OF_MODEL}


def _recorded_model(fixture: Fixture) -> EncodecModel:
    config = fixture.metadata['config']
    quantizer = {'_target_': RVQ, 'dimension': config['seanet']['dimension'], **config['rvq']}
    return build_loaded(MODEL, {'sample_rate': config['sample_rate'], 'channels': config['channels'],
                                **config['encodec'], 'seanet': _seanet(config), 'quantizer': quantizer},
                        fixture.state())


def _check_fewer_codebooks(fixture: Fixture, report: Report, model: EncodecModel, n: int) -> None:
    x = fixture['in.x']
    model.set_num_codebooks(n)
    encoded = model.encode(x)
    report.equal(f'codes_nq{n}', encoded.codes, fixture[f'out.codes_nq{n}'])
    report.close(f'decode_nq{n}', model.decode(encoded), fixture[f'out.decode_nq{n}'])
    report.close(f'bandwidth_nq{n}', model(x).metrics['bandwidth'], fixture[f'out.bandwidth_nq{n}'])
    model.set_num_codebooks(model.quantizer.total_codebooks)


def _check_interleaved(fixture: Fixture, report: Report, model: EncodecModel) -> None:
    for per_timestep in (False, True):
        stereo, name = InterleaveStereo(model=model, per_timestep=per_timestep), f'pt{int(per_timestep)}'
        codes = fixture[f'out.interleave_codes_{name}']
        report.equal(f'interleave_codes_{name}', stereo.encode(fixture['in.stereo']).codes, codes)
        report.close(f'interleave_decode_{name}', stereo.decode(codes), fixture[f'out.interleave_decode_{name}'])
        report.equal(f'interleave codebooks {name}', stereo.num_codebooks, codes.shape[1])
        report.close(f'interleave rate {name}', stereo.frame_rate, model.frame_rate * (1 + per_timestep))


@torch.no_grad()
def check_encodec(fixture: Fixture, report: Report) -> None:
    """Encode, decode and reconstruct, with all codebooks and with fewer, in stereo and through two channels of mono."""
    model, x = _recorded_model(fixture), fixture['in.x']
    report.equal('frame_rate', model.frame_rate, float(fixture.metadata['config']['frame_rate']))
    normalized, _ = model._normalized(x)
    report.close('emb', model.encoder(normalized), fixture['out.emb'])
    encoded = model.encode(x)
    assert isinstance(encoded, Codes)
    report.equal('codes', encoded.codes, fixture['out.codes'])
    report.equal('has scale', encoded.scale is not None, 'out.scale' in fixture)
    if encoded.scale is not None:
        report.close('scale', encoded.scale, fixture['out.scale'])
    report.close('decode_latent', model.decode_latent(encoded.codes), fixture['out.decode_latent'])
    report.close('decode', model.decode(encoded), fixture['out.decode'])
    made = model(x)
    report.close('forward_x', made.output, fixture['out.forward_x'])
    report.equal('forward_codes', made.codes, fixture['out.forward_codes'])
    report.close('penalty_eval', made.penalty, fixture['out.penalty_eval'])
    report.close('bandwidth', made.metrics['bandwidth'], fixture['out.bandwidth'])
    for name in fixture.group('out.codes_nq'):
        _check_fewer_codebooks(fixture, report, model, int(name))
    if 'in.stereo' in fixture:
        _check_interleaved(fixture, report, model)


@torch.no_grad()
def check_melodyflow_codec(fixture: Fixture, report: Report) -> None:
    """Posterior, a sample of it, its sound; and the names once weight normalisation is multiplied out."""
    config = fixture.metadata['config']
    quantizer = {'_target_': GAUSSIAN, 'dimension': config['seanet']['dimension']}
    model = build_loaded(MODEL, {'sample_rate': config['sample_rate'], 'channels': config['seanet']['channels'],
                                 'seanet': _seanet(config), 'quantizer': quantizer}, fixture.state())
    report.equal('encoder_dimension', model.quantizer.input_dimension, config['encoder_dimension'])
    report.equal('hop', model.hop_length, config['hop'])
    raw = model.encoder(fixture['in.x'])
    report.close('codes', raw[:, None], fixture['out.codes'])
    report.close('scale', raw.chunk(2, dim=1)[1], fixture['out.scale'])
    posterior = model.encode(fixture['in.x'])
    assert isinstance(posterior, Posterior)
    report.close('mean', posterior.mean, fixture['out.mean'])
    latents = posterior.sample(fixture['in.eps'])
    report.close('z', latents, fixture['out.z'])
    report.close('audio', model.decode(latents), fixture['out.audio'])
    fused = sorted(rename_weight_norm(published.published_state(model), to='fused'))
    listed = config['keys_after_removing_weight_norm']
    report.equal('names without weight norm', [key for key in fused if key in listed], sorted(listed))


def _composed(solver: str, *overrides: str) -> nn.Module:
    """The full-size model of a solver's config, on the meta device."""
    from audiocraft.train import main
    node = main.get_xp([f'solver={solver}', *overrides]).cfg.model
    with torch.device('meta'):
        return build(node)


def _compare_names(fixture: Fixture, report: Report, state: dict[str, torch.Tensor]) -> None:
    """Names, shapes and dtypes of a published file, each of them and no other."""
    manifest = fixture.json
    expected = manifest['keys']
    report.equal('names', sorted(state), sorted(expected))
    for key in expected:
        found = [str(state[key].dtype).removeprefix('torch.'), list(state[key].shape)] if key in state else None
        report.equal(key, found, expected[key])
    report.equal('n_tensors', len(state), manifest['n_tensors'])
    report.equal('total_elements', sum(value.numel() for value in state.values()), manifest['total_elements'])


def _compare_rates(fixture: Fixture, report: Report, model: EncodecModel) -> None:
    for key in ('sample_rate', 'frame_rate'):
        report.equal(key, float(getattr(model, key)), float(fixture.json[key]))


def check_audiocraft_manifest(fixture: Fixture, report: Report) -> None:
    """The full-size codec of a solver's config, with the edits that the file names, as it would be exported."""
    manifest = fixture.json
    edits = [f'model.{key}={str(value).lower() if isinstance(value, bool) else value}'
             for key, value in manifest['edits'].items()]
    model = _composed(manifest['built_from'][0], *edits)
    _compare_names(fixture, report, published.published_state(model))
    _compare_rates(fixture, report, model)
    # The config that goes with the weights describes the same model.
    with torch.device('meta'):
        again = build(published.model_node(published.published_config(model)))
    report.equal('names from the config', sorted(again.state_dict()), sorted(model.state_dict()))


def check_melodyflow_manifest(fixture: Fixture, report: Report) -> None:
    """The full-size continuous codec, and that its config is the published one."""
    manifest = fixture.json
    model = _composed('compression/vae_melodyflow_48khz_stereo')
    _compare_names(fixture, report, published.published_state(model))
    _compare_rates(fixture, report, model)
    config = published.published_config(model)['seanet']
    report.equal('config', {key: config[key] for key in manifest['config']}, manifest['config'])
    report.equal('encoder_dimension', config['encoder']['dimension'], manifest['encoder_dimension'])


def check_transformers_manifest(fixture: Fixture, report: Report) -> None:
    """The EnCodec of `transformers` with this config has these names; each is one of ours, and ours are all there."""
    config = {**transformers.DEFAULTS, **fixture.json['hf_config']}
    with torch.device('meta'):
        model = build(transformers.model_node(config))
    ours, names = published.published_state(model), transformers.native_names(fixture.json['keys'])
    report.equal('names of ours', sorted(names.values()), sorted(ours))
    _compare_names(fixture, report, {theirs: ours[name] for theirs, name in names.items() if name in ours})
    for bandwidth in config['target_bandwidths']:
        count = transformers.num_codebooks(config, bandwidth)
        report.close(f'{bandwidth} kb/s', model.quantizer.bandwidth(model.frame_rate, count), bandwidth)


CHECKS = {
    'audiocraft/encodec': check_encodec,
    'audiocraft/melodyflow_codec': check_melodyflow_codec,
    'audiocraft/melodyflow_t24_codec': check_melodyflow_manifest,
} | {f'audiocraft/encodec_{name}': check_audiocraft_manifest for name in (
    '16khz_audiogen_audiocraft', '24khz_audiocraft_true_skip_false', '24khz_audiocraft_yaml',
    '32khz_musicgen_audiocraft')
} | {f'audiocraft/encodec_{rate}_hf': check_transformers_manifest for rate in ('24khz', '32khz')}
