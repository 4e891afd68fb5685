"""Checks of the MMAudio flow network, its layers, and its full-size state dicts."""

import torch
import yaml
from torch import nn

from audiocraft.environment import CONFIG_ROOT
from audiocraft.flow.path import flow_loss
from audiocraft.flow.samplers import euler, times
from audiocraft.models.mmaudio import Conditions
from audiocraft.modules.mlp import gated_width
from audiocraft.modules.rope import rotate, rotations
from audiocraft.modules.sequence import sequence_lengths
from audiocraft.utils.config import build

from .base import Fixture, Report, build_loaded

MODEL = 'audiocraft.models.mmaudio.MMAudio'
ODE_TIME = 0.37  # at which the guided velocities were recorded, one time for the whole batch
COND_NAMES = {'clip': 'clip_f', 'sync': 'sync_f', 'text': 'text_f', 'clip_c': 'clip_f_c', 'text_c': 'text_f_c'}


def _compare_conditions(report: Report, fixture: Fixture, prefix: str, cond: Conditions) -> None:
    for field, name in COND_NAMES.items():
        report.close(f'{prefix}.{name}', getattr(cond, field), fixture[f'{prefix}.{name}'])


def _record(modules: dict[str, nn.Module]) -> dict[str, tuple[torch.Tensor, ...]]:
    """Keep the last outputs of modules, by name."""
    outputs: dict[str, tuple[torch.Tensor, ...]] = {}

    def hook_for(name: str):
        def hook(module, args, output):
            outputs[name] = output if isinstance(output, tuple) else (output,)
        return hook
    for name, module in modules.items():
        module.register_forward_hook(hook_for(name))
    return outputs


def _inputs(fixture: Fixture, prefix: str = 'in.') -> list[torch.Tensor]:
    text = fixture['in.text_f']
    return [fixture[f'{prefix}clip_f'], fixture[f'{prefix}sync_f'], text]


@torch.no_grad()
def _check_flow(fixture: Fixture, report: Report, model: nn.Module) -> Conditions:
    blocks = {f'joint{i}': block for i, block in enumerate(model.joint_blocks)}
    blocks |= {f'fused{i}': block for i, block in enumerate(model.fused_blocks)}
    outputs = _record(blocks | {'audio_input_proj': model.audio_input_proj, 't_embed': model.t_embed,
                                'global': model.global_cond_mlp})
    cond = model.preprocess_conditions(*_inputs(fixture))
    _compare_conditions(report, fixture, 'out.cond', cond)
    report.close('flow', model.predict_flow(fixture['in.latent'], fixture['in.t'], cond), fixture['out.flow'])
    report.close('audio_input_proj', *outputs['audio_input_proj'], fixture['out.audio_input_proj'])
    report.close('t_embed', *outputs['t_embed'], fixture['out.t_embed'])
    report.close('global_c', (outputs['t_embed'][0] + outputs['global'][0])[:, None], fixture['out.global_c'])
    for name in blocks:
        for modality, output in zip(('latent', 'clip', 'text'), outputs[name]):
            report.close(f'{name}.{modality}', output, fixture[f'out.{name}.{modality}'])
    for name, value in (('latent_rot', model.latent_rot), ('clip_rot', model.clip_rot),
                        ('t_freqs', model.t_embed.freqs), ('normalize', model.normalize(fixture['in.latent'])),
                        ('unnormalize', model.unnormalize(fixture['in.latent']))):
        report.close(name, value, fixture[f'out.{name}'])
    return cond


@torch.no_grad()
def _check_guidance(fixture: Fixture, report: Report, model: nn.Module, cond: Conditions) -> None:
    batch = len(fixture['in.x0'])
    empty = model.empty_conditions(batch)
    negative = model.empty_conditions(batch, fixture['in.neg_text_f'])
    _compare_conditions(report, fixture, 'out.empty', empty)
    _compare_conditions(report, fixture, 'out.empty_neg', negative)
    for name, nulls, scale in (('4.5', empty, 4.5), ('4.5_neg', negative, 4.5), ('1.0', empty, 1.), ('0', empty, 0.)):
        velocity = model.field(cond, nulls, scale)(torch.tensor(ODE_TIME), fixture['in.latent'])
        report.close(f'ode_cfg{name}', velocity, fixture[f'out.ode_cfg{name}'])
    report.close('euler6_cfg4.5', euler(model.field(cond, empty, 4.5), fixture['in.x0'], times(6)),
                 fixture['out.euler6_cfg4.5'])


def _check_gradients(fixture: Fixture, report: Report, model: nn.Module) -> None:
    """The loss of a batch whose first item has no video and whose second has no text, and its gradients."""
    clip, sync, text = (value.clone() for value in _inputs(fixture))
    nulls = model.null_features()
    clip[0], sync[0], text[1] = nulls['clip_features'], nulls['sync_features'], nulls['text_features']
    flow = model(fixture['in.latent'], clip, sync, text, fixture['in.t'])
    loss = flow_loss(flow, torch.zeros_like(flow), fixture['in.grad_target'])
    report.close('loss_per_item', loss, fixture['out.loss_per_item'])
    loss.mean().backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    for name, expected in fixture.group('out.grad.').items():
        report.close(f'grad.{name}', grads[name], expected)
    if 'grads' in fixture.files:
        recorded = fixture.read_json('grads')
        report.equal('grads.config', recorded['config'], fixture.metadata['config'])
        report.equal('grads.seed', str(recorded['seed']), str(fixture.metadata['seed']))
        norms = {name: grad.double().norm().item() for name, grad in grads.items()}
        report.numbers('grad_norm', norms, recorded['grad_norm_per_param'])
        total = torch.tensor(list(norms.values())).norm().item()
        report.close('total_grad_norm', total, recorded['total_grad_norm'])


@torch.no_grad()
def _check_variants(fixture: Fixture, report: Report, model: nn.Module) -> None:
    with torch.autocast('cpu', dtype=torch.bfloat16):
        flow = model(fixture['in.latent'], *_inputs(fixture), fixture['in.t'])
    report.close('flow_bf16_autocast_cpu', flow, fixture['out.flow_bf16_autocast_cpu'])
    clip, sync, text = _inputs(fixture, 'in2.')
    model.update_seq_lengths(fixture['in2.latent'].shape[1], clip.shape[1], sync.shape[1])
    report.close('out2.flow', model(fixture['in2.latent'], clip, sync, text, fixture['in.t']), fixture['out2.flow'])


def check_network(fixture: Fixture, report: Report) -> None:
    """The whole network: every block, guidance, sampling, gradients, half precision, other lengths."""
    model = build_loaded(MODEL, fixture.metadata['config'], fixture.state())
    cond = _check_flow(fixture, report, model)
    _check_guidance(fixture, report, model, cond)
    _check_gradients(fixture, report, model)
    _check_variants(fixture, report, model)


def _part(fixture: Fixture, name: str, target: str, **config) -> nn.Module:
    return build_loaded(f'audiocraft.modules.{target}', config, fixture.state(f'{name}.sd.'))


def _check_attention(fixture: Fixture, report: Report, config: dict) -> None:
    module = _part(fixture, 'self_attention', 'attention.SelfAttention', dim=config['dim'],
                   num_heads=config['nheads'])
    x, rot = fixture['self_attention.in.x'], fixture['self_attention.in.rot']
    found = dict(zip('qkv', module.pre_attention(x, rot)))
    found |= dict(zip(('q_norot', 'k_norot'), module.pre_attention(x)))
    found['attn'] = module(x, rot)
    for name, value in found.items():
        report.close(f'self_attention.{name}', value, fixture[f'self_attention.out.{name}'])


def _check_rms_norm(fixture: Fixture, report: Report) -> None:
    inputs, outputs = fixture.group('rms_norm.in.'), fixture.group('rms_norm.out.')
    module = _part(fixture, 'rms_norm', 'norm.RMSNorm', dim=inputs['bf16'].shape[-1])
    report.close('rms_norm.small_fp32', module(inputs['small_fp32']), outputs['small_fp32'])
    report.close('rms_norm.bf16_weight_fp32', module(inputs['bf16']), outputs['bf16_weight_fp32'])
    report.close('rms_norm.bf16_weight_bf16', module.bfloat16()(inputs['bf16']), outputs['bf16_weight_bf16'])
    report.equal('rms_norm dtype', str(module(inputs['bf16']).dtype), str(torch.bfloat16))


def _check_time(fixture: Fixture, report: Report, name: str, config: dict) -> None:
    module = _part(fixture, name, 'embeddings.TimestepEmbedder', dim=config['dim'], max_period=config['max_period'],
                   frequency_dim=config['frequency_embedding_size'])
    t = fixture[f'{name}.in.t']
    for key, value in (('freqs', module.freqs), ('embedding', module.sinusoids(t)), ('y', module(t))):
        report.close(f'{name}.{key}', value, fixture[f'{name}.out.{key}'])


def _check_single_block(fixture: Fixture, report: Report, name: str, config: dict) -> None:
    module = _part(fixture, name, 'joint_blocks.FusedBlock', dim=config['dim'], num_heads=config['nhead'],
                   mlp_ratio=config.get('mlp_ratio', 4.), kernel_size=config['kernel_size'],
                   pre_only=config['pre_only'])
    inputs = fixture.group(f'{name}.in.')
    x, cond, rot = inputs['x'], inputs['cond'], inputs.get('rot')
    if config['pre_only']:
        found = dict(zip('qkv', module.pre_attention(x, cond, rot)[0]))
    else:
        found = {'y': module(x, cond, rot)}
    if 'cond_global' in inputs:
        found |= {'y_norot': module(x, cond), 'y_global': module(x, inputs['cond_global'], rot)}
    for key, expected in fixture.group(f'{name}.out.').items():
        report.close(f'{name}.{key}', found[key], expected)


@torch.no_grad()
def check_blocks(fixture: Fixture, report: Report) -> None:
    """Each layer alone."""
    config = fixture.metadata['config']
    conv, mlp, conv_mlp = (config[name] for name in ('channel_last_conv1d', 'mlp', 'conv_mlp_k3'))
    final = config['final_block']
    parts = {
        'channel_last_conv1d': _part(fixture, 'channel_last_conv1d', 'conv.ChannelLastConv1d', **conv),
        'mlp': _part(fixture, 'mlp', 'mlp.MLP', dim=mlp['dim'], hidden_dim=mlp['hidden_dim']),
        'conv_mlp_k3': _part(fixture, 'conv_mlp_k3', 'mlp.ConvMLP', dim=conv_mlp['dim'],
                             hidden_dim=conv_mlp['hidden_dim'], kernel_size=conv_mlp['kernel_size'])}
    for name, module in parts.items():
        report.close(name, module(fixture[f'{name}.in.x']), fixture[f'{name}.out.y'])
    for name in ('mlp', 'conv_mlp_k3'):
        report.equal(f'{name} width', gated_width(config[name]['hidden_dim']), config[name]['actual_hidden'])
    block = _part(fixture, 'final_block', 'joint_blocks.FinalBlock', **final)
    report.close('final_block', block(fixture['final_block.in.x'], fixture['final_block.in.cond']),
                 fixture['final_block.out.y'])
    _check_attention(fixture, report, config['self_attention'])
    _check_rms_norm(fixture, report)
    for version in ('v1', 'v2'):
        _check_time(fixture, report, f'timestep_embedder_{version}', config[f'timestep_embedder_{version}'])
    for name in ('single_block_k3', 'single_block_k1', 'single_block_preonly'):
        _check_single_block(fixture, report, name, config[name])


@torch.no_grad()
def check_joint_blocks(fixture: Fixture, report: Report) -> None:
    """The block over three modalities, whole and as the last one."""
    for name, config in fixture.metadata['config'].items():
        module = _part(fixture, name, 'joint_blocks.JointBlock', dim=config['dim'], num_heads=config['nhead'],
                       mlp_ratio=config['mlp_ratio'], pre_only=config['pre_only'])
        inputs = fixture.group(f'{name}.in.')
        outputs = module(*(inputs[key] for key in (
            'latent', 'clip_f', 'text_f', 'global_c', 'extended_c', 'latent_rot', 'clip_rot')))
        for key, value in zip(('latent', 'clip_f', 'text_f'), outputs):
            report.close(f'{name}.{key}', value, fixture[f'{name}.out.{key}'])


def check_rope(fixture: Fixture, report: Report) -> None:
    """Rotation tables, and rotated vectors in both precisions."""
    for index, case in enumerate(fixture.metadata['cases']):
        rot = rotations(case['length'], case['dim'], scale=case['freq_scaling'], theta=case['theta'])
        report.close(f'{index}.rot', rot, fixture[f'{index}.rot'])
        report.close(f'{index}.y', rotate(fixture[f'{index}.x'], rot), fixture[f'{index}.y'])
        report.close(f'{index}.y_bf16', rotate(fixture[f'{index}.x_bf16'], rot), fixture[f'{index}.y_bf16'])


def check_sequence_config(fixture: Fixture, report: Report) -> None:
    """Lengths of the sequences for some durations, at both sample rates."""
    rates = {'16k': (16000, 256), '44k': (44100, 512)}
    for case in fixture.json:
        sample_rate, hop = rates[case['mode']]
        found = sequence_lengths(case['duration'], sample_rate, hop=hop)
        name = f'{case["mode"]} {case["duration"]} s'
        for key, value in (('latent_seq_len', found.latent), ('clip_seq_len', found.clip),
                           ('sync_seq_len', found.sync), ('num_audio_frames', found.samples)):
            report.equal(f'{name} {key}', value, case[key])


def _dims(manifest: dict) -> dict[str, int]:
    """The dims that come from the data, read off the shapes of a state dict."""
    shapes = {name: entry['shape'] for name, entry in manifest['state_dict'].items()}
    buffers = manifest['non_persistent_buffers']
    return dict(latent_dim=shapes['latent_mean'][-1], clip_dim=shapes['empty_clip_feat'][-1],
                sync_dim=shapes['empty_sync_feat'][-1], text_dim=shapes['empty_string_feat'][-1],
                text_seq_len=shapes['empty_string_feat'][0], latent_seq_len=buffers['latent_rot'][1],
                clip_seq_len=buffers['clip_rot'][1], sync_seq_len=sequence_lengths(8., 16000, hop=256).sync)


def check_manifest(fixture: Fixture, report: Report) -> None:
    """The full-size network of `config/model/mmaudio`, on the meta device: every name, shape and dtype."""
    manifest = fixture.json
    name = fixture.kind.removeprefix('net_')
    node = yaml.safe_load((CONFIG_ROOT / 'model' / 'mmaudio' / f'{name}.yaml').read_text())
    with torch.device('meta'):
        model = build(node, **_dims(manifest))
    state, trainable = model.state_dict(), {key: p.requires_grad for key, p in model.named_parameters()}
    report.equal('names', sorted(state), sorted(manifest['state_dict']))
    for key, entry in manifest['state_dict'].items():
        found = dict(shape=list(state[key].shape), dtype=str(state[key].dtype).removeprefix('torch.'),
                     requires_grad=trainable[key])
        report.equal(key, found, {'requires_grad': True, **entry})
    sizes = {key: state[key].numel() for key in state}
    report.equal('num_entries', len(state), manifest['num_entries'])
    report.equal('num_params', sum(sizes.values()), manifest['num_params'])
    report.equal('num_trainable', sum(size for key, size in sizes.items() if trainable[key]), manifest['num_trainable'])
    report.equal('state_dict_bytes', sum(v.numel() * v.element_size() for v in state.values()),
                 manifest['state_dict_bytes'])
    buffers = {key: list(value.shape) for key, value in model.named_buffers()}
    report.equal('non_persistent_buffers', buffers, manifest['non_persistent_buffers'])
    lengths = sequence_lengths(8., 16000, hop=256) if '16k' in name else sequence_lengths(8., 44100, hop=512)
    report.equal('latents of 8 s', buffers['latent_rot'][1], lengths.latent)
    report.equal('visual features of 8 s', buffers['clip_rot'][1], lengths.clip)


CHECKS = {
    'mmaudio/network': check_network,
    'mmaudio/network_v2': check_network,
    'mmaudio/blocks': check_blocks,
    'mmaudio/joint_blocks': check_joint_blocks,
    'mmaudio/rope': check_rope,
    'mmaudio/sequence_config': check_sequence_config,
} | {f'mmaudio/net_{size}': check_manifest for size in (
    'small_16k', 'small_44k', 'medium_44k', 'large_44k', 'large_44k_v2')}
