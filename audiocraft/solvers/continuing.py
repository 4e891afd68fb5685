"""Going on with a training that MMAudio's own code began."""

import functools
import logging
import math
import typing as tp

import torch

from .. import distrib
from ..models.published.mmaudio_training import Training, option, read_snapshot
from ..optim import PostHocEMA, Schedule, optimizer_state
from ..utils.errors import UserError

logger = logging.getLogger(__name__)

OPTIONS = ('betas', 'eps', 'weight_decay')


def go_on(solver: tp.Any, training: Training) -> None:
    """Take everything but the weights, which are loaded already, and say what was taken and what was not.

    Raises:
        UserError: a part does not fit what the solver trains.
    """
    if not solver.cfg.execute_only:
        _check_length(solver, training)
    lines = [f'weights: {len(training.weights)} tensors of "model"', *_take_optimizer(solver, training),
             *_take_schedule(solver, training), *_take_averages(solver, training), *_take_position(solver, training)]
    logger.info('continue_from=%s: a training by MMAudio (it %d) goes on after update %d.\n  %s', training.path,
                training.it, training.update, '\n  '.join(lines))


def _check_length(solver: tp.Any, training: Training) -> None:
    if training.update >= solver.total_updates:
        raise UserError(f'continue_from: {training.path} has {training.update} updates done, but optim.epochs x '
                        f'optim.updates_per_epoch = {solver.epochs} x {solver.updates_per_epoch} = '
                        f'{solver.total_updates}. Raise optim.epochs to train on from it, or evaluate it with '
                        'execute_only=evaluate.')


def _take_optimizer(solver: tp.Any, training: Training) -> list[str]:
    optimizer = solver.optimizer
    if not isinstance(optimizer, torch.optim.Adam):  # AdamW is one
        return [f'optimizer: NOT taken, the file has that of an AdamW and this is a {type(optimizer).__name__}']
    names = [name for name, param in solver.modules['model'].named_parameters() if param.requires_grad]
    groups = optimizer_state.full_state(optimizer)['param_groups']
    if len(groups) != 1 or len(groups[0]['params']) != len(names):
        raise UserError(f'continue_from={training.path}: the optimizer has {len(groups)} groups and '
                        f'{sum(len(group["params"]) for group in groups)} parameters, {len(names)} in one group were '
                        'expected: the trained parameters of "model".')
    state = {number: {key: value.clone() if isinstance(value, torch.Tensor) else value
                      for key, value in training.moments[name].items()}
             for number, name in zip(groups[0]['params'], names) if name in training.moments}
    optimizer_state.load_full_state(optimizer, {'state': state, 'param_groups': groups})
    steps = {int(option(moments['step'])) for moments in training.moments.values() if 'step' in moments}
    return [f'optimizer: moments of {len(state)} of {len(names)} parameters, after {max(steps, default=0)} steps',
            *_different_options(optimizer.param_groups[0], training.group)]


def _different_options(ours: dict[str, tp.Any], theirs: dict[str, tp.Any]) -> list[str]:
    return [f'optimizer: {key} is {option(ours.get(key))} by this config, which counts; it was {option(theirs[key])}'
            for key in OPTIONS if key in theirs and option(theirs[key]) != option(ours.get(key))]


def _take_schedule(solver: tp.Any, training: Training) -> list[str]:
    if not isinstance(solver.schedule, Schedule):
        return ['schedule: NOT taken, its position cannot be set (see config/schedule)']
    solver.schedule.load_state_dict({'update': training.update, 'scale': 1.})
    rate = float(solver.optimizer.param_groups[0]['lr'])
    lines = [f'schedule: at update {training.update} of {solver.total_updates}, rate {rate:g}']
    if training.scheduled not in (None, training.it, training.it + 1):
        lines += [f'schedule: that of the file had counted {training.scheduled} updates, as it does after a resume']
    theirs = option(training.group.get('lr', rate))
    if not math.isclose(rate, theirs, rel_tol=1e-5):
        lines += [f'schedule: the rate is {rate:g} by this config, which counts; the file has {theirs:g}']
    return lines


def _take_averages(solver: tp.Any, training: Training) -> list[str]:
    ema = solver.ema
    if not isinstance(ema, PostHocEMA) or list(ema.modules) != ['model']:
        return ['averages: NOT taken, optim.ema is not post-hoc (optim/ema=posthoc)'] if training.averages else []
    if not training.averages:
        return ['averages: none in the file, they begin with the weights of now']
    if len(training.averages) != len(ema.sigma_rels):
        raise UserError(f'continue_from: {training.path} holds {len(training.averages)} averages, but '
                        f'optim.ema.sigma_rels has {len(ema.sigma_rels)} widths, {ema.sigma_rels}. Give those that it '
                        'was trained with.')
    names = ema.state_dict()['averages'][0]['model'].keys()

    def of_model(state: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
        missing = [name for name in names if name not in state]
        if missing:
            raise UserError(f'continue_from: an average of {training.path} lacks {len(missing)} weights of "model": '
                            f'{", ".join(missing[:4])}.')
        return {'model': {name: state[name] for name in names}}

    ema.load_state_dict({'steps': training.averaged, 'sigma_rels': ema.sigma_rels, 'snapshots': [],
                         'averages': [of_model(state) for state in training.averages]})
    lines = [f'averages: taken for those of optim.ema.sigma_rels {ema.sigma_rels} (the file does not say how wide they '
             f'are), after {training.averaged} updates']
    return lines + _take_snapshots(solver, training, lambda path: of_model(read_snapshot(path)))


def _take_snapshots(solver: tp.Any, training: Training, read: tp.Callable) -> list[str]:
    """Copy the snapshots beside the file, from which averages of other widths are made after the training."""
    if solver.cfg.execute_only:
        return []
    listed = [snapshot for snapshot in training.snapshots if snapshot[0] < len(solver.ema.sigma_rels)]
    if not listed:
        return ['snapshots: no folder ema_ckpts beside the file: averages of other widths begin here']
    if distrib.is_rank_zero():
        size = sum(path.stat().st_size for _, _, path in listed) / 1e9
        logger.info('Copying %d snapshots of averages (%.1f GB) to %s.', len(listed), size, solver.ema.folder)
    solver.ema.adopt((index, step, functools.partial(read, path)) for index, step, path in listed)
    return [f'snapshots: {len(listed)} of {training.path.parent / "ema_ckpts"}, the last of update {listed[-1][1]}']


def _take_position(solver: tp.Any, training: Training) -> list[str]:
    done, rest = divmod(training.update, solver.updates_per_epoch)
    solver.update = solver.updater.updates = training.update
    solver.history[:] = [{} for _ in range(done)]  # there are no results of these epochs
    solver._progress.done = rest
    return [f'position: epoch {done + 1} of {solver.epochs}, {rest} of its {solver.updates_per_epoch} updates done',
            'not in the file: random generators, the order of the data and its position in it; they are those of this '
            f'XP (seed {solver.seed}) at update {training.update}']
