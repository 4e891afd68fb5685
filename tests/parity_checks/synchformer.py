"""Checks of Synchformer: the visual encoder on recorded numbers, the spectrogram, and the full-size state dicts."""

import re
import tempfile
from pathlib import Path

import torch
from torch import nn

from audiocraft.features.nets.synchformer import SegmentMel
from audiocraft.features.synchformer import SAMPLES, cut
from audiocraft.utils.config import build

from .base import Fixture, Report

EXTRACTOR = 'audiocraft.features.synchformer.Synchformer'
NETWORK = 'audiocraft.features.nets.synchformer.SynchformerNetwork'


def _numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r'-?\d*\.?\d+', text)]


def _segments(fixture: Fixture, size: int) -> torch.Tensor:
    """The recorded input `[B * S, frames, 3, size, size]`: pixels repeated, and a slope over the picture added."""
    recipe = fixture.metadata['input_recipe']
    times, scale = re.search(r'x(\d+) on H,W', recipe), re.search(r'([\d.]+)\*outer', recipe)
    slope = re.search(r'linspace\((.*?)\)', recipe)
    assert times and scale and slope, f'cannot read the recipe {recipe!r}'
    start, end, points = _numbers(slope[1])
    line = torch.linspace(start, end, int(points))
    base = next(value for key, value in fixture.group('in.').items() if key.startswith('base')).float()
    big = base.repeat_interleave(int(times[1]), -1).repeat_interleave(int(times[1]), -2)
    assert big.shape[-1] == size
    return (big + float(scale[1]) * torch.outer(line, line)).flatten(0, 1)


@torch.no_grad()
def check_visual_tiny(fixture: Fixture, report: Report) -> None:
    """Features of segments; the weights are read from a file as the published ones are, with other tensors beside."""
    config = fixture.metadata['config']
    names = {'embed_dim': 'dim', 'patch_temporal': 'patch_frames'}
    dims = {names.get(key, key): value for key, value in config.items() if key != 'img'}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'weights.pth'
        torch.save({**fixture.state(), 'transformer.OFF_tok': torch.zeros(1)}, path)
        extractor = build({'_target_': EXTRACTOR, 'weights': str(path), 'size': config['img'], 'network': dims})
    found = extractor.vfeat_extractor(_segments(fixture, config['img']))
    report.close('features', found, fixture['out.features'].flatten(0, 1))


def _compare_names(fixture: Fixture, report: Report, module: nn.Module) -> None:
    """Every name, shape and dtype, and their sums."""
    manifest = fixture.json
    state, frozen = module.state_dict(), {key for key, p in module.named_parameters() if not p.requires_grad}
    report.equal('names', sorted(state), sorted(manifest['state_dict']))
    for key, entry in manifest['state_dict'].items():
        found = dict(shape=list(state[key].shape), dtype=str(state[key].dtype).removeprefix('torch.'),
                     requires_grad=key not in frozen)
        report.equal(key, found, {'requires_grad': True, **entry})
    sizes = {key: value.numel() for key, value in state.items()}
    report.equal('num_entries', len(state), manifest['num_entries'])
    report.equal('num_params', sum(sizes.values()), manifest['num_params'])
    report.equal('num_trainable', sum(size for key, size in sizes.items() if key not in frozen),
                 manifest['num_trainable'])
    report.equal('state_dict_bytes', sum(value.nbytes for value in state.values()), manifest['state_dict_bytes'])


def check_manifest(fixture: Fixture, report: Report) -> None:
    """The full-size network on the meta device, or its visual encoder alone."""
    with torch.device('meta'):
        network = build({'_target_': NETWORK})
    if fixture.kind == 'synchformer_visual':
        extractor = _extractor_names(report)
        report.equal('names of the extractor', extractor, sorted(fixture.json['state_dict']))
        network = nn.ModuleDict({'vfeat_extractor': network.vfeat_extractor})
    _compare_names(fixture, report, network)


def _extractor_names(report: Report) -> list[str]:
    with torch.device('meta'):
        extractor = build({'_target_': EXTRACTOR, 'weights': None})
    report.equal('features of 8 s', list(extractor.spec(8.)['sync_features'][0]), [192, extractor.vfeat_extractor.dim])
    report.check('frozen', not any(p.requires_grad for p in extractor.parameters()))
    return sorted(extractor.state_dict())


def check_synchformer_audio(fixture: Fixture, report: Report) -> None:
    """The spectrograms of the first segments; a part of the check of `mmaudio/eval_frontends`."""
    expected = fixture['synchformer.audio_mel']
    segments = cut(fixture['wave16k'].flatten(), SAMPLES, 'samples')
    report.close('synchformer.audio_mel', SegmentMel()(segments)[:len(expected)], expected)


CHECKS = {'mmaudio/synchformer_visual_tiny': check_visual_tiny} | {
    f'mmaudio/{name}': check_manifest for name in ('synchformer_visual', 'synchformer_full_avbench')}
