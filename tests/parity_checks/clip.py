"""Checks of the features of pictures and words, and of the names in the published weights."""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from audiocraft.features.clip import ClipImage, ClipText
from audiocraft.utils.config import build

from .base import Fixture, Report


def _build(name: str, **arguments) -> ClipImage | ClipText:
    return build({'_target_': f'audiocraft.features.clip.{name}', **arguments})


@torch.no_grad()
def check_clip(fixture: Fixture, report: Report) -> None:
    """Both towers with the recorded weights, read from a file."""
    recorded = fixture.metadata['config']
    config = {'embed_dim': recorded['embed_dim'], 'quick_gelu': recorded['quick_gelu'],
              'vision_cfg': recorded['vision'], 'text_cfg': recorded['text']}
    with tempfile.TemporaryDirectory() as folder:
        weights = str(Path(folder) / 'clip.safetensors')
        save_file(fixture.state(), weights)
        image = _build('ClipImage', model=config, weights=weights, size=fixture['in.image'].shape[-1])
        text = _build('ClipText', model=config, weights=weights)
        report.close('image', image.encode(fixture['in.image']), fixture['out.image'])
        report.close('hidden', text.hidden(fixture['in.tokens']), fixture['out.text_hidden'])
        report.close('text', text(fixture['in.tokens'])['text_features'], fixture['out.text_hidden_normalized'])


def check_tokens(fixture: Fixture, report: Report) -> None:
    """The tokens of captions."""
    recorded = fixture.json
    length = len(recorded['tokens'][0])
    tiny = {'embed_dim': 8, 'vision_cfg': {'width': 64, 'layers': 1},
            'text_cfg': {'context_length': length, 'vocab_size': 49408, 'width': 8, 'heads': 1, 'layers': 1}}
    text = _build('ClipText', model=tiny, weights=None)
    for caption, tokens in zip(recorded['captions'], recorded['tokens'], strict=True):
        report.equal(caption, text.prepare(caption).tolist(), tokens)


def check_manifest(fixture: Fixture, report: Report) -> None:
    """The full-size towers, on the meta device: together they have exactly the names of the published weights."""
    manifest = fixture.json
    name = manifest['name'].removeprefix('clip_')
    with torch.device('meta'):
        towers = [_build('ClipImage', model=name, weights=None), _build('ClipText', model=name, weights=None)]
    report.equal('config', {key: towers[0].config[key] for key in manifest['config']}, manifest['config'])
    states = [tower.clip.state_dict() for tower in towers]
    state = states[0] | states[1]
    report.equal('no name in both', len(state), len(states[0]) + len(states[1]))
    report.equal('names', sorted(state), sorted(manifest['state_dict']))
    for key, entry in manifest['state_dict'].items():
        found = {'shape': list(state[key].shape), 'dtype': str(state[key].dtype).removeprefix('torch.')}
        report.equal(key, found, entry)
    report.equal('num_entries', len(state), manifest['num_entries'])
    report.equal('num_params', sum(value.numel() for value in state.values()), manifest['num_params'])
    report.equal('num_trainable', sum(value.numel() for value in state.values()), manifest['num_trainable'])
    report.equal('state_dict_bytes', sum(value.nbytes for value in state.values()), manifest['state_dict_bytes'])
    buffers = {key: list(value.shape) for tower in towers for key, value in tower.clip.named_buffers()}
    report.equal('non_persistent_buffers', buffers, manifest['non_persistent_buffers'])


CHECKS = {'mmaudio/clip_tiny': check_clip, 'mmaudio/clip_tokens': check_tokens,
          'mmaudio/clip_ViT-H-14-378-quickgelu': check_manifest}
