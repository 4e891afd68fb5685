"""The entry point of training: `dora run solver=...`, `python -m audiocraft.train solver=...`, `torchrun ...`.

Dora looks for a package with a `train` module in the current folder; from elsewhere use `python -m audiocraft run`.
"""

import errno
import logging
import sys
import typing as tp
from contextlib import nullcontext

import torch
from dora.xp import XP, get_xp
from omegaconf import DictConfig, OmegaConf, open_dict

from . import distrib, dora_compat
from .environment import CONFIG_ROOT, AudioCraftEnvironment
from .launch.parent import follow_parent
from .solvers.base import StandardSolver
from .utils.config import allow_targets, locate
from .utils.errors import LOST_PEER, UserError
from .utils.lock import XPLock
from .utils.logging import setup_logging
from .utils.random import seed_all

# Not __name__: that is __main__ when Python starts this file.
logger = logging.getLogger('audiocraft.train')
dora_compat.install()
follow_parent()


def get_solver(cfg: DictConfig) -> tp.Any:
    """Build the solver that `cfg.solver._target_` names, as `Class(cfg)`.

    Must be called within an XP. The class is a `StandardSolver`, or any `flashy.BaseSolver` with a `run` method.
    """
    allow_targets(cfg.get('allow_targets') or [])
    target = OmegaConf.select(cfg, 'solver._target_')
    if not target:
        raise UserError('The config has no solver._target_: the yaml of a solver says '
                        '"solver: {_target_: my_package.my_module.MySolver}".')
    return locate(target)(cfg)


def get_solver_from_xp(xp: XP, override_cfg: tp.Mapping[str, tp.Any] | None = None, restore: bool = True) -> tp.Any:
    """The solver of an XP that ran, with its last state when `restore`.

    Args:
        xp (XP): from `main.get_xp_from_sig` or `main.get_xp`.
        override_cfg (dict): dotted keys of the config to change for this use, e.g. `{'device': 'cpu'}`.
        restore (bool): load the newest checkpoint; raises `UserError` when there is none.
    """
    cfg = xp.cfg
    with open_dict(cfg):
        for key, value in (override_cfg or {}).items():
            OmegaConf.update(cfg, key, value, merge=False)
    with xp.enter(stack=True):
        solver = get_solver(cfg)
        if restore and not solver.restore():
            raise UserError(f'The XP {xp.sig} has no checkpoint in {xp.folder}.')
    return solver


def get_solver_from_sig(sig: str, override_cfg: tp.Mapping[str, tp.Any] | None = None, restore: bool = True) -> tp.Any:
    """The same, from the signature of an XP."""
    return get_solver_from_xp(main.get_xp_from_sig(sig), override_cfg, restore)


def init_system(cfg: DictConfig) -> None:
    """Seeds and threads of this process."""
    seed_all(cfg.seed)
    if cfg.num_threads:
        torch.set_num_threads(cfg.num_threads)


def init_logging(cfg: DictConfig) -> None:
    """Log to the terminal and to the XP folder, each process to its own file."""
    stage = cfg.get('execute_only')
    setup_logging(get_xp().folder, f'{stage or "solver"}.log.{distrib.rank()}', cfg.logging.level)
    logger.info('XP %s in %s', get_xp().sig, get_xp().folder)
    if distrib.is_rank_zero():
        AudioCraftEnvironment.warn_if_temporary()


def run(cfg: DictConfig) -> tp.Any:
    """Everything that one run does, in order, within an XP."""
    init_system(cfg)
    init_logging(cfg)
    distrib.init('gloo' if cfg.device == 'cpu' else None, timeout=cfg.distrib.timeout)
    solver = get_solver(cfg)
    if cfg.show:
        return solver.show()
    if cfg.execute_only:
        return solver.run_one_stage(cfg.execute_only)
    # A StandardSolver takes the lock itself; any other solver with a `run` is protected here.
    alone = distrib.is_rank_zero() and not isinstance(solver, StandardSolver)
    with XPLock(get_xp().folder) if alone else nullcontext():
        return solver.run()


def advice(error: BaseException) -> UserError | None:
    """What to do about an error that is not the fault of the code; None for all others."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or 'DefaultCPUAllocator' in text or isinstance(error, MemoryError):
        first = text.splitlines()[0] if text else 'MemoryError'
        return UserError(f'Out of memory: {first}\nThe checkpoints so far are whole, and the same command goes on from '
                         'the last one. Less memory, same result, same XP: optim.accumulate=2 (or 4, ...), '
                         'activation_checkpointing=true, more processes, distrib=fsdp.')
    if text.startswith('DataLoader worker'):
        return UserError(f'A process that reads data is gone: {text.strip()}\nIf the memory of the machine was full, '
                         'lower dataset.num_workers. The same command goes on from the last checkpoint.')
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(f'{error}. What was saved is whole: make room, and the same command goes on from there.')
    return None


def _fail(error: Exception) -> tp.NoReturn:
    """Say what went wrong, as far as possible in words, and end."""
    if distrib.is_lost_peer(error):
        logger.debug('Where it happened:', exc_info=True)
        logger.error('Process %d ends since another one is gone; the error of that one is the one to read.',
                     distrib.rank())
        distrib.end_without_goodbye(LOST_PEER)
    known = error if isinstance(error, UserError) else advice(error)
    if known is None:
        # Hydra would print its own frames to the terminal and nothing to the log file.
        logger.exception('The run failed.')
    else:
        logger.debug('Where it happened:', exc_info=error)
        dora_compat.print_error(known)
    if distrib.is_distributed():
        distrib.end_without_goodbye(1)
    sys.exit(1)


@dora_compat.hydra_main(config_path=str(CONFIG_ROOT), config_name='config', version_base='1.3')
def main(cfg: DictConfig) -> tp.Any:
    """Train, or run one stage of, the XP that the overrides describe."""
    try:
        return run(cfg)
    except Exception as error:
        _fail(error)
    finally:
        # Also when a signal ends the run: threads of a group that nobody left abort the process at its end.
        distrib.finish()


main.dora.dir = AudioCraftEnvironment.get_dora_dir()

if __name__ == '__main__':
    main()
