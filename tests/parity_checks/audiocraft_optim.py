"""Checks of AudioCraft's averages, learning-rate schedules and optimizer."""

import re
import typing as tp

import torch
from torch import nn

from audiocraft import optim

from .base import Fixture, Report

States = dict[str, torch.Tensor]


class _Module(nn.Module):
    """Holds recorded tensors by name: floating ones as parameters, others as buffers."""

    def __init__(self, tensors: States):
        super().__init__()
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                self.register_parameter(name.replace('.', '_'), nn.Parameter(tensor.clone()))
            else:
                self.register_buffer(name.replace('.', '_'), tensor.clone())

    @torch.no_grad()
    def set(self, tensors: States) -> None:
        for name, tensor in tensors.items():
            getattr(self, name.replace('.', '_')).copy_(tensor)


def _same(a: States, b: States) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def check_ema(fixture: Fixture, report: Report) -> None:
    """The average after each step, without and with a bias towards the initial weights.

    Recordings may hold the states of the last step at every step, since they were taken by reference. Of these the
    counts of all steps and the last average can be checked, from the average before it, which follows from the count.
    """
    decay = fixture.metadata['config']['decay']
    for unbiased in (False, True):
        prefix = f'unbias{unbiased:d}.step'
        numbers = sorted({int(key[len(prefix):].split('.')[0]) for key in fixture.group('') if key.startswith(prefix)})
        models = [fixture.group(f'{prefix}{number}.model.') for number in numbers]
        averages = [fixture.group(f'{prefix}{number}.ema.') for number in numbers]
        by_reference = all(_same(one, many[-1]) for many in (models, averages) for one in many)
        module = _Module(models[0])
        ema = optim.build_ema({'model': module}, {'use': True, 'decay': decay, 'unbiased': unbiased})
        assert isinstance(ema, optim.EMA)
        for index, number in enumerate(numbers):
            weight = ema.weight(index + 1)
            # A plain average keeps no count, which is recorded as 0.
            report.close(f'{prefix}{number}.count', 1 / weight if unbiased else 0., fixture[f'{prefix}{number}.count'])
            if by_reference and index < len(numbers) - 1:
                continue
            before = None if by_reference or not index else averages[index - 1]
            _check_step(report, f'{prefix}{number}', ema, index, before, models[index], averages[index])


def _check_step(report: Report, name: str, ema: optim.EMA, index: int, before: States | None, model: States,
                expected: States) -> None:
    """One step from the average `before`; None: from the one that a recorded count and average follow from."""
    weight = ema.weight(index + 1)
    if before is None:
        before = {key: (value - weight * model[key]) / max(1e-12, 1 - weight) for key, value in expected.items()}
    names = {key: key.replace('.', '_') for key in expected}
    ema.load_state_dict({'steps': index, 'averages': {'model': {names[key]: before[key] for key in expected}}})
    tp.cast(_Module, ema.modules['model']).set(model)
    ema.step()
    averaged = ema.averaged()['model']
    for key, value in expected.items():
        report.close(f'{name}.{key}', averaged[names[key]], value)


def check_dadapt_adam(fixture: Fixture, report: Report) -> None:
    """The found rate after each step, and the weights."""
    config = fixture.metadata['config']
    names = sorted(key.removesuffix('.init') for key in fixture.group('') if key.endswith('.init'))
    steps = len(config['d'])
    recorded = [{name: fixture[f'{name}.{step}'] for name in names} for step in range(steps)]
    by_reference = all(_same(one, recorded[-1]) for one in recorded)
    weights = {name: nn.Parameter(fixture[f'{name}.init'].clone()) for name in names}
    options = {key: config[key] for key in ('betas', 'eps', 'weight_decay', 'd0', 'decouple', 'growth_rate')
               if key in config}
    optimizer = optim.build_optimizer(weights.values(), {'lr': config['lr'], 'optimizer': {
        '_target_': 'audiocraft.optim.dadapt_adam.DAdaptAdam', **options}})
    for step in range(steps):
        for name, weight in weights.items():
            weight.grad = fixture[f'g{name.removeprefix("p")}.{step}'].clone()
        optimizer.step()
        report.close(f'd.{step}', optimizer.param_groups[0]['d'], config['d'][step])
        if not by_reference or step == steps - 1:
            for name, weight in weights.items():
                _check_moved(report, f'{name}.{step}', weight, recorded[step][name], fixture[f'{name}.init'])


def _check_moved(report: Report, name: str, weight: torch.Tensor, expected: torch.Tensor, initial: torch.Tensor
                 ) -> None:
    """The weights, and how far they moved: little, so that the rounding of a weight is what one can ask for.

    How far is not known where the initial weights too were recorded by reference, and are those of the end.
    """
    report.close(name, weight, expected)
    if torch.equal(expected, initial):
        return
    moved, way = (weight - initial).detach(), expected - initial
    rounding = 4 * torch.finfo(torch.float32).eps * float(initial.abs().max()) / max(1e-30, float(way.abs().max()))
    report.close(f'{name}.moved', moved, way, tolerance=max(report.tolerance, rounding))


def _numbers_of(name: str) -> dict[str, float]:
    """The numbers in the name of a table: `cosine_warm10_total50` has `warm` and `total`."""
    return {key: float(value) for key, value in re.findall(r'_([a-z]+?)_?(\d*\.?\d+)', name)}


def _nodes(name: str, table: list[float]) -> tp.Iterator[dict[str, tp.Any]]:
    """Schedules that a table may be of: what its name does not tell is read from the table itself."""
    given = _numbers_of(name)
    peak = table.index(max(table))
    changing = [index for index, value in enumerate(table) if value != table[-1]]
    last = changing[-1] if changing else 0
    common = {'warmup': int(given.get('warm', peak)), 'warmup_start': given.get('init', 0.)}
    # A curve may end at its floor, or jump there after its end.
    totals = [int(given['total'])] if 'total' in given else [last + 1, last]
    kind = name.split('_')[0]
    for total in totals:
        if kind == 'cosine':
            yield {'class': 'Cosine', 'total': total, **common, 'min_ratio': given.get('minratio', 0.),
                   'cycle_length': given.get('cycle', 1.)}
        elif kind == 'poly':
            zero = int(given.get('zero', 0))
            warmup = int(given.get('warm', peak - zero))
            yield {'class': 'Polynomial', 'total': total, 'zero_updates': zero, 'warmup': warmup, 'warmup_start': 0.,
                   'min_ratio': given.get('end', 0.), 'power': given.get('pow', 1.)}
        elif kind == 'inverse':
            # The recording counts updates from 1.
            yield {'class': 'InverseSqrt', 'total': total, **common, 'warmup': int(given.get('warm', peak + 1)),
                   'ahead': 1}
        elif kind == 'linear':
            yield {'class': 'Constant', 'total': total, **common, 'warmup_start': given.get('init', table[0])}
        elif kind in ('step', 'exponential'):
            gamma = given.get('gamma') or table[-1] / table[-2]
            yield {'class': 'Exponential', 'total': total, 'gamma': gamma, 'every': int(given.get('size', 1)),
                   'smooth': kind == 'exponential'}


def _rates(node: dict[str, tp.Any], count: int) -> list[float]:
    options = {key: value for key, value in node.items() if key not in ('class', 'total')}
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.)
    schedule = optim.build_lr_scheduler(optimizer, {
        '_target_': f'audiocraft.optim.schedules.{node["class"]}', **options}, max(1, node['total']))
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]['lr'])
        schedule.step()
    return found


def check_lr_schedules(fixture: Fixture, report: Report) -> None:
    """The rate at every update of every table."""
    for name, table in fixture.json.items():
        if name == 'note':
            continue
        candidates = [_rates(node, len(table)) for node in _nodes(name, table)]
        report.check(f'{name} is known', bool(candidates), 'no schedule has such a name')
        if candidates:
            report.close(name, min(candidates, key=lambda rates: _distance(rates, table)), table)


def _distance(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


CHECKS = {
    'audiocraft/ema': check_ema,
    'audiocraft/dadapt_adam': check_dadapt_adam,
    'audiocraft/lr_schedules': check_lr_schedules,
}
