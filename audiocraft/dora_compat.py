"""Every change to Dora 0.1.13, in one place, each with its reason; `test_dora_compat.py` and `tests/launch` test them.

Dora imports our `train` module before it runs a command, so what `install` changes in Dora's modules holds for
`dora run`, `dora grid` and `dora info`. A name that a later Dora does not have is left alone, and its test fails.
"""

import getpass
import json
import logging
import shutil
import subprocess as sp
import sys
import typing as tp
from contextlib import contextmanager
from pathlib import Path

import dora.explore
import dora.git_save
import dora.grid
import dora.info
import dora.launch
import dora.run
import dora.shep
import dora.utils
import hydra
from dora.distrib import get_distrib_spec
from dora.hydra import HydraMain, _compare_config, _simplify_argv
from dora.main import DecoratedMain, MainFun
from dora.shep import Sheep, Shepherd
from dora.xp import XP, get_xp, is_xp
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .environment import config_folders
from .launch import deltas, grids, info, local, slurm, workers
from .utils import lock, overrides
from .utils.config import flatten, to_plain
from .utils.errors import UserError

logger = logging.getLogger(__name__)


class Main(HydraMain):
    """Dora's main with a fast `get_xp`, whole files and errors that can be read."""

    # Dora starts 4 processes to read the XPs of a grid when this is True; with the fast `get_xp` one is quicker.
    _slow = False

    def __init__(self, main: MainFun, config_name: str, config_path: str, **kwargs: tp.Any):
        self._bases: dict[tuple[str, ...], tuple[deltas.Composed, list[tuple[str, str]]]] = {}
        with _readable(self, []):
            super().__init__(main, config_name, config_path, **kwargs)

    def get_xp(self, argv: tp.Sequence[str]) -> XP:
        """The XP of some overrides.

        Dora composes the whole config twice for each XP (80 ms). Here the config of the chosen groups is composed once
        and kept, and only what the other overrides change in it is compared (1 ms): same values, same signature. The
        XP's own config is made when somebody looks at it. Rarer forms take the stock path.
        """
        with _readable(self, argv):
            argv = _simplify_argv(argv)
            if any(self._is_rare(argument) for argument in argv):
                return super().get_xp(argv)
            chosen = [argument for argument in argv if argument.split('=', 1)[0] in self._config_groups]
            plain = [argument for argument in argv if argument.split('=', 1)[0] not in self._config_groups]
            composed, delta = self._base(tuple(chosen))
            return deltas.LazyXP(composed, plain, dora=self.dora, argv=argv, delta=delta + composed.delta(plain))

    def _is_rare(self, argument: str) -> bool:
        key = argument.split('=', 1)[0]
        bare = key.lstrip('+~')
        return key != key.strip() or '@' in key or bare.startswith('hydra') or (
            bare != key and bare in self._config_groups)

    def _base(self, chosen: tuple[str, ...]) -> tuple[deltas.Composed, list[tuple[str, str]]]:
        if chosen not in self._bases:
            base, delta = self._get_base_config(list(chosen))
            self._bases[chosen] = deltas.Composed(base), delta
        composed, delta = self._bases[chosen]
        return composed, list(delta)

    def _get_delta(self, init: tp.Any, other: tp.Any) -> list[tuple[str, tp.Any]]:
        # Dora's comparison keeps its path in a default argument: after an error in the middle of it, all later
        # signatures of the process would be wrong.
        return [('.'.join(found.path), found.other_value) for found in _compare_config(init, other, [])]

    def _get_config_noinit(self, overrides: list[str] = []) -> tp.Any:  # noqa: B006
        return super()._get_config_noinit([*overrides, *searchpath()])

    def _main(self) -> tp.Any:
        # As Dora does, but the folder is quoted (a path may hold a `=`), and the configs of the launch folder are seen.
        added = searchpath()
        if is_xp():
            added.append(f'hydra.run.dir={json.dumps(str(get_xp().folder))}')
            if get_distrib_spec().rank > 0:
                added.append('hydra.output_subdir=null')
        sys.argv += added
        try:
            return hydra.main(config_name=self.config_name, config_path=self.config_path,
                              **self.hydra_kwargs)(self.main)()
        finally:
            for argument in added:
                sys.argv.remove(argument)

    def keys(self, argv: tp.Sequence[str]) -> list[str]:
        """The dotted keys of the config with the groups that `argv` chooses."""
        chosen = tuple(argument for argument in argv if argument.split('=', 1)[0] in self._config_groups)
        return list(flatten(tp.cast(dict, OmegaConf.to_container(self._base(chosen)[0].base, resolve=False))))

    def init_xp(self, xp: XP) -> XP:
        """Make the XP folder. Dora writes `.argv.json` in place, so that a kill leaves half of it: here it is whole."""
        if not deltas.part(xp, 'solver'):
            solvers = overrides.variants(config_folders())
            raise UserError('Choose a solver with solver=..., one of:\n  ' + '\n  '.join(solvers))
        try:
            if xp._shared_argv_cache is not None:
                super().init_xp(xp)
            deltas.keep_argv(xp)
        except OSError as error:
            raise UserError(f'Cannot write to the XP folder {xp.folder}: {error.strerror}. '
                            'AUDIOCRAFT_DORA_DIR chooses where XPs go.') from error
        return xp

    def get_argv_from_sig(self, sig: str) -> list[str]:
        """The overrides of an XP; those that Hydra keeps are taken when `.argv.json` is damaged."""
        try:
            return list(super().get_argv_from_sig(sig))
        except ValueError:
            folder = self.dora.dir / self.dora.xps / sig
            kept = folder / '.hydra' / 'overrides.yaml'
            if not kept.exists():
                # Dora turns a RuntimeError into "could not find": the reason has to be said before.
                logger.error('%s is damaged, and there is nothing to mend it from.', folder / '.argv.json')
                raise UserError(f'{folder / ".argv.json"} is damaged: give the overrides in place of the '
                                'signature.') from None
            logger.warning('%s is damaged: using the overrides in %s.', folder / '.argv.json', kept)
            return tp.cast(list[str], OmegaConf.to_container(OmegaConf.load(kept)))

    def get_slurm_config(self) -> slurm.SlurmConfig:
        """The settings of a job, before those of the command line and of the grid; ours know nodes and tasks."""
        return slurm.from_config(to_plain(self._base_cfg.get('slurm')))


def searchpath() -> list[str]:
    """The override that lets Hydra see the `config` of the launch folder; nothing without one."""
    folders = [folder.as_uri() for folder in config_folders()[1:]]
    return [f'hydra.searchpath={json.dumps(folders)}'] if folders else []


def hydra_main(config_name: str, config_path: str, **kwargs: tp.Any) -> tp.Callable[[MainFun], Main]:
    """Dora's decorator of the same name, for our `Main`."""
    def decorate(main: MainFun) -> Main:
        return Main(main, config_name=config_name, config_path=config_path, **kwargs)
    return decorate


@contextmanager
def _readable(main: Main, argv: tp.Sequence[str]) -> tp.Iterator[None]:
    """Two or three lines in place of the 30 that Hydra, OmegaConf and Dora print for a wrong override."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, AssertionError) as error:
        message = overrides.explain(error, argv, getattr(main, '_config_groups', []), config_folders(),
                                    lambda: main.keys(argv))
        raise UserError(message) from error


# -- errors ---------------------------------------------------------------------------------------------------------

def print_error(error: UserError) -> None:
    """Print what the user should read, and nothing else."""
    print(f'error: {error}', file=sys.stderr)


def _excepthook(stock: tp.Callable[..., None]) -> tp.Callable[..., None]:
    def hook(kind: type[BaseException], error: BaseException, traceback: tp.Any) -> None:
        if isinstance(error, UserError):
            print_error(error)
        elif not issubclass(kind, KeyboardInterrupt):
            stock(kind, error, traceback)
    return hook


# -- logs, orphans, damaged files -----------------------------------------------------------------------------------

def _log_of(stock: property) -> property:
    """`dora info -t` of an XP that was run here, not by SLURM, is an AttributeError: show its own log."""
    def log(self: Sheep) -> Path:
        scheduled = stock.fget(self)  # type: ignore[misc]
        return scheduled if scheduled is not None else self.xp.folder / 'solver.log.0'
    return property(log)


def _check_orphans(self: Shepherd) -> None:
    """Dora asks `squeue` and the terminal's login name; without either, one stale file makes every command fail."""
    for token in sorted(self._orphans.iterdir()):
        if shutil.which('squeue') is None:
            logger.debug('Leaving %s to a machine with SLURM.', token)
            continue
        command = ['squeue', '-u', getpass.getuser(), '-n', token.name, '-o', '%i', '-h']
        found = sp.run(command, capture_output=True, text=True)
        if found.returncode:
            logger.warning('A job may have been left behind (%s), and squeue does not answer: %s',
                           token, found.stderr.strip())
            continue
        jobs = sorted({line.split('_')[0] for line in found.stdout.split()})
        if jobs:
            logger.warning('Cancelling the jobs %s, which were started but never recorded.', ', '.join(jobs))
            sp.run(['scancel', *slurm.checked_ids(jobs)], check=True)
        token.unlink(missing_ok=True)


def _tolerant(stock: tp.Callable[..., tp.Any]) -> tp.Callable[..., tp.Any]:
    """A history that was cut in the middle is a traceback in `dora info -m` and ends a whole grid: skip it."""
    def try_load(path: Path, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
        try:
            return stock(path, *args, **kwargs)
        except ValueError as error:
            logger.warning('%s is damaged (%s) and is ignored.', path, error)
            return None
    return try_load


# -- --clear --------------------------------------------------------------------------------------------------------

def refuse_if_running(folder: Path) -> None:
    """Raise `UserError` when a process of this machine works in the XP folder."""
    who = lock.holder(folder)
    if who is not None:
        raise UserError(f'{folder} is in use by {who}: stop it before --clear.')


def _guarded_clear(stock: tp.Callable[..., None]) -> tp.Callable[..., None]:
    """Dora removes the folder of an XP that runs here; both processes go on and mix their files.

    And a job of the queue of this machine would find that its XP has a job that runs: itself.
    """
    def check_job_and_clear(argv: list[str], main: DecoratedMain, clear: bool = False) -> None:
        if clear:
            folder = main.get_xp(argv).folder
            local.end_job(folder)
            refuse_if_running(folder)
        elif local.inside_job():
            return
        try:
            stock(argv, main, clear)
        except OSError as error:
            raise UserError(f'Cannot write to {main.dora.dir}: {error.strerror}. AUDIOCRAFT_DORA_DIR chooses where XPs '
                            'go.') from error
    return check_job_and_clear


def _guarded_rmtree(stock: tp.Callable[[Path], None]) -> tp.Callable[[Path], None]:
    """The same for `dora grid --clear` and `dora launch --clear`."""
    def reliable_rmtree(path: Path) -> None:
        local.end_job(path)
        refuse_if_running(path)
        stock(path)
    return reliable_rmtree


# -- installation ---------------------------------------------------------------------------------------------------

PATCHES: list[tuple[tp.Any, str, tp.Callable[[tp.Any], tp.Any]]] = [
    (dora.shep.Sheep, '__init__', local.init_sheep),
    (dora.shep.Sheep, 'log', _log_of),
    (dora.shep.Shepherd, '_check_orphans', lambda stock: _check_orphans),
    (dora.shep.Shepherd, '_submit', local.submit),
    (dora.shep.Shepherd, 'maybe_submit_lazy', slurm.maybe_submit),
    (dora.shep.Shepherd, 'commit', lambda stock: local.commit(slurm.commit(stock))),
    (dora.shep.Shepherd, '_get_submitit_executor', slurm.get_executor),
    (dora.shep.Shepherd, '_cancel', lambda stock: local.cancel(slurm.cancel)),
    (dora.shep, '_SubmitItTarget', lambda stock: slurm.Target),
    (dora.explore.Launcher, 'slurm_', lambda stock: slurm.slurm_),
    (dora.utils, 'try_load', _tolerant),
    (dora.run, 'check_job_and_clear', _guarded_clear),
    (dora.run, 'start_ddp_workers', lambda stock: workers.start_ddp_workers),
    (dora.grid, 'reliable_rmtree', _guarded_rmtree),
    (dora.launch, 'reliable_rmtree', _guarded_rmtree),
    (dora.grid, '_get_explore', grids.get_explore),
    (dora.grid, 'monitor', lambda stock: grids.monitor),
    (dora.git_save, 'get_new_clone', local.get_new_clone),
    (dora.info, 'Shepherd', lambda stock: info.InfoShepherd),
    (sys, 'excepthook', _excepthook),
]
_installed: set[str] = set()


def install() -> None:
    """Put the changes in place, once."""
    for owner, name, change in PATCHES:
        key = f'{getattr(owner, "__module__", None) or owner.__name__}.{getattr(owner, "__qualname__", "")}.{name}'
        if key not in _installed and hasattr(owner, name):
            setattr(owner, name, change(getattr(owner, name)))
            _installed.add(key)
