"""What the commands to a running training do; how they arrive is in `control.py`. All processes execute them alike."""

import time
import typing as tp
from contextlib import contextmanager

import torch

from .. import distrib
from ..models.exported import write_exported
from ..optim import Schedule
from ..utils.errors import UserError
from ..utils.files import fsync_dir, fsync_file
from ..utils.logging import readable_time
from . import state as states
from .control import Command
from .results import LATER_STAGES

AFTER_STAGE = ('save', 'eval', 'export')


def execute(solver: tp.Any, command: Command) -> None:
    """Execute a command between two updates and answer it; what goes wrong is the answer."""
    try:
        answer = _COMMANDS[command.name](solver, command)
    except UserError as error:
        answer = f'error: {error}'
    solver.control.answer(command, answer)


def execute_in_stage(solver: tp.Any, command: Command) -> None:
    """Execute a command within valid, evaluate or generate, where the modules may hold other weights for a while."""
    if command.name in AFTER_STAGE:
        solver.control.answer(command, f'error: not during {solver.current_stage}; ask again when training goes on.')
        return
    execute(solver, command)


def _save(solver: tp.Any, command: Command) -> str:
    solver._write_checkpoint()
    solver._writer.wait()
    return f'saved update {solver.update}'


def _quit(solver: tp.Any, command: Command) -> str:
    solver.ask_to_stop('quit')
    return f'saving update {solver.update} and stopping'


def _lr(solver: tp.Any, command: Command) -> str:
    if command.value is None:
        return f'the rate is {current_lr(solver):.6g}'
    set_lr(solver, command.value)
    solver.note('lr', command.value)
    return f'the rate is {command.value:.6g} from update {solver.update} on, and the schedule goes on from there'


def _optimizer(solver: tp.Any) -> torch.optim.Optimizer:
    optimizer = getattr(solver, 'optimizer', None)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError('this solver has no `optimizer`.')
    return optimizer


def current_lr(solver: tp.Any) -> float:
    """The rate of the first parameter group of the solver's `optimizer`."""
    return float(_optimizer(solver).param_groups[0]['lr'])


def set_lr(solver: tp.Any, lr: float) -> None:
    """Make `lr` the rate of the solver's `optimizer`: its schedule, if there is one, is rescaled to it."""
    optimizer = _optimizer(solver)
    schedules = [value for value in vars(solver).values() if getattr(value, 'optimizer', None) is optimizer
                 and isinstance(value, torch.optim.lr_scheduler.LRScheduler)]
    for schedule in schedules:
        if not isinstance(schedule, Schedule):
            raise UserError(f'{type(schedule).__name__} cannot be rescaled while it runs; the schedules of '
                            'audiocraft.optim can.')
        schedule.set_lr(lr)
    if not schedules:
        scale = lr / current_lr(solver) if current_lr(solver) else 0.
        for group in optimizer.param_groups:
            group['lr'] = group['lr'] * scale or lr


@contextmanager
def _interlude(solver: tp.Any) -> tp.Iterator[None]:
    """Within the context another stage may be run between two updates; training goes on as if it had not been."""
    names = ('_current_stage', '_current_formatter', 'is_training', '_rows', '_draw_batch', '_draw_calls')
    before = {name: getattr(solver, name) for name in names}
    modes = [(part, part.training) for module in solver.modules.values() for part in module.modules()]
    pending = dict(solver._pending_metrics)
    try:
        yield
    finally:
        vars(solver).update(before)
        solver._pending_metrics = pending
        for part, training in modes:
            part.training = training


def _eval(solver: tp.Any, command: Command) -> str:
    stage = 'valid' if solver.cfg.evaluate.every == 0 else 'evaluate'
    with _interlude(solver), solver.swap_ema_state():
        metrics = solver.run_stage(stage, getattr(solver, stage))
    if distrib.is_rank_zero():
        weights = f'{"average at" if solver.ema is not None else "weights of"} update {solver.update}'
        if stage in LATER_STAGES:
            solver._results.write(stage, solver.update, epoch=solver.epoch, whole_epoch=False, weights=weights,
                                  metrics=metrics)
            solver.on_results(stage)
    texts = solver.described(metrics, stage)
    return f'{stage} at update {solver.update}: ' + ', '.join(f'{name} {text}' for name, text in texts.items())


def _export(solver: tp.Any, command: Command) -> str:
    with solver.swap_ema_state():
        modules = states.stateful_modules(solver.stateful)
        found = {name: (tp.cast(dict, module.build_cfg), distrib.full_state(module)) for name, module in modules.items()
                 if getattr(module, 'build_cfg', None)}
        if not found:
            raise UserError('no registered module was made by `build`, so that none can be made again from a file.')
        folder = solver.folder / 'exports' / str(solver.update)
        if distrib.is_rank_zero():
            for name, (build_cfg, state) in found.items():
                own = folder if name == 'model' else folder / name
                own.mkdir(parents=True, exist_ok=True)
                write_exported(own, state, build_cfg, config=solver._config_text, sig=solver.xp.sig,
                               update=solver.update)
                for path in own.glob('*.*'):
                    fsync_file(path)
                fsync_dir(own)
    return f'exported {", ".join(found)} to {folder}'


def _time(solver: tp.Any, command: Command) -> str:
    done, total = solver.update, solver.total_updates
    text = f'update {done} of {total}, epoch {solver.epoch} of {solver.epochs}'
    seconds = solver._progress.seconds + time.perf_counter() - solver._began
    if not (solver.is_training and solver._progress.done):
        return text
    rate = solver._progress.done / max(seconds, 1e-9)
    epoch = (solver.updates_per_epoch - solver._progress.done) / rate
    return (f'{text}, {rate:.3g} updates/s; the epoch ends in {readable_time(epoch)}, all updates in '
            f'{readable_time((total - done) / rate)} (without valid, evaluate and generate)')


_COMMANDS: dict[str, tp.Callable[[tp.Any, Command], str]] = {
    'save': _save, 'quit': _quit, 'lr': _lr, 'eval': _eval, 'export': _export, 'time': _time}
