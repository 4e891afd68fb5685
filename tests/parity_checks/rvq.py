"""Checks of residual vector quantization: training updates, and the start by k-means."""

import re
import typing as tp
from unittest import mock

import torch

from audiocraft.quantization import codebook
from audiocraft.quantization.rvq import ResidualVectorQuantizer
from audiocraft.utils.config import build

from .base import Fixture, Report

TARGET = 'audiocraft.quantization.rvq.ResidualVectorQuantizer'


def _build(**config: tp.Any) -> ResidualVectorQuantizer:
    """The quantizer as AudioCraft has it: dead entries stay, running sums begin with the means alone."""
    return build({'_target_': TARGET, 'expire': 'upstream', 'kmeans_average': 'upstream', **config})


def _close_state(report: Report, name: str, quantizer: ResidualVectorQuantizer,
                 expected: dict[str, torch.Tensor]) -> None:
    state = quantizer.state_dict()
    report.equal(f'{name} names', sorted(state), sorted(expected))
    for key in sorted(state.keys() & expected.keys()):
        report.close(f'{name}.{key}', state[key], expected[key])


def check_training(fixture: Fixture, report: Report) -> None:
    """Some updates in training: what comes out, its gradient, and the buffers after each."""
    config = fixture.metadata['config']
    quantizer = _build(**config['kwargs'], kmeans_init=False,
                       threshold_ema_dead_code=config['threshold_ema_dead_code'])
    quantizer.load_state_dict(fixture.state('sd0.'))
    quantizer.train()
    steps = sorted({int(found[1]) for key in fixture.tensors if (found := re.match(r'step(\d+)\.', key))})
    for step in steps:
        x = fixture[f'step{step}.in.x'].clone().requires_grad_()
        output = quantizer(x, config['frame_rate'])
        ((output.x * fixture[f'step{step}.in.G']).sum() + output.penalty).backward()
        found = {'x': output.x, 'codes': output.codes, 'penalty': output.penalty, 'grad_x': x.grad,
                 'bandwidth': output.bandwidth}
        for key, expected in fixture.group(f'step{step}.out.').items():
            compare = report.close if expected.is_floating_point() else report.equal
            compare(f'step{step}.{key}', found[key], expected)
        _close_state(report, f'step{step}', quantizer, fixture.state(f'step{step}.sd.'))


def check_kmeans(fixture: Fixture, report: Report) -> None:
    """Clusters, the functions beside them, and a first training batch whose first means are its first vectors."""
    config = fixture.metadata['config']
    means, counts = codebook.kmeans(fixture['in.samples'], config['num_clusters'], config['iters'],
                                    means=fixture['in.init_means'])
    report.close('means', means, fixture['out.means'])
    report.equal('bins', counts.long(), fixture['out.bins'])
    report.close('laplace', codebook.laplace_smoothing(fixture['laplace.in']), fixture['laplace.out'])
    report.close('orthogonality', codebook.orthogonality(fixture['orth.in']), fixture['orth.out'])
    state, x = fixture.state('rvq.sd_after.'), fixture['rvq.in.x']
    bins, dimension = state['vq.layers.0._codebook.embed'].shape
    given = {'dimension': dimension, 'bins': bins, 'n_q': fixture['rvq.out.codes'].shape[1],
             'kmeans_iters': config['iters'], 'threshold_ema_dead_code': 0, **config.get('kwargs', {})}
    quantizer = _build(**given).train()
    with mock.patch.object(codebook, 'sample_rows', lambda rows, count: rows[:count]):
        output = quantizer(x, config.get('frame_rate', 50))
    report.equal('rvq.codes', output.codes, fixture['rvq.out.codes'])
    for key in ('x', 'penalty'):
        report.close(f'rvq.{key}', getattr(output, key), fixture[f'rvq.out.{key}'])
    _close_state(report, 'rvq', quantizer, state)


def check_rvq(fixture: Fixture, report: Report) -> None:
    """Either of the two, by what the file holds."""
    (check_kmeans if 'in.init_means' in fixture else check_training)(fixture, report)


CHECKS = {'audiocraft/rvq': check_rvq}
