"""Checks of flow matching: path, loss, time sampling and samplers."""

import re

import torch

from audiocraft.flow.guidance import Field
from audiocraft.flow.path import binned, flow_loss, interpolate, logit_normal
from audiocraft.flow.samplers import adaptive, euler, times

from .base import Fixture, Report


def check_flow_matching(fixture: Fixture, report: Report) -> None:
    """Everything recorded with the closed-form field `tanh(x W) (1 + t) + b t`."""
    weight, bias, x0, x1 = fixture['field.W'], fixture['field.b'], fixture['x0'], fixture['x1']

    def field(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ weight) * (1 + t) + bias * t

    def sampled(direction: str, n: int, min_sigma: float) -> torch.Tensor:
        start, end, x = (0., 1., x0) if direction == 'to_data' else (1., 0., x1)
        return euler(field, x, times(n, start, end - min_sigma))

    for name, expected in fixture.tensors.items():
        if match := re.fullmatch(r'xt\.min_sigma(.+)', name):
            report.close(name, interpolate(x0, x1, fixture['t'], float(match[1])), expected)
        elif match := re.fullmatch(r'loss\.min_sigma(.+)', name):
            report.close(name, flow_loss(fixture['pred_v'], x0, x1, float(match[1])), expected)
        elif match := re.fullmatch(r'euler\.(to_data|to_prior)\.n(\d+)\.min_sigma(.+)', name):
            report.close(name, sampled(match[1], int(match[2]), float(match[3])), expected)
        elif match := re.fullmatch(r'logitnormal\.m(.+)\.s(.+)\.seed(\d+)', name):
            report.close(name, logit_normal(fixture[f'logitnormal.z.seed{match[3]}'], float(match[1]), float(match[2])),
                         expected)
    _check_trajectory(fixture, report, field)
    # The recording holds the first and the last state.
    report.close('adaptive first', x0, fixture['adaptive.to_data_raw'][0])
    report.close('adaptive last', adaptive(field, x0, 0., 1., rtol=1e-7, atol=1e-9), fixture['adaptive.to_data_raw'][1])


def _check_trajectory(fixture: Fixture, report: Report, field: Field) -> None:
    """Where Euler's method calls the field."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def watched(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        seen.append((t, x))
        return field(t, x)
    euler(watched, fixture['x0'], times(len(fixture['euler.traj.t'])))
    report.close('euler.traj.t', torch.stack([t for t, _ in seen]), fixture['euler.traj.t'])
    report.close('euler.traj.x', torch.stack([x for _, x in seen]), fixture['euler.traj.x'])


def check_binned_loss(fixture: Fixture, report: Report) -> None:
    """Sums and counts of losses by time."""
    sums, counts = binned(fixture['loss'], fixture['t'], bins=len(fixture['count']))
    report.close('sums', sums, fixture['hist_sum'])
    report.equal('counts', counts, fixture['count'])


CHECKS = {'mmaudio/flow_matching': check_flow_matching, 'mmaudio/binned_loss': check_binned_loss}
