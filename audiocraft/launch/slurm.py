"""Jobs on SLURM: how many nodes and tasks they ask for, and how a job that was interrupted comes back."""

import copy
import dataclasses
import os
import re
import signal
import subprocess as sp
import sys
import typing as tp
from pathlib import Path

import dora.conf
import dora.shep
import submitit
from dora.conf import SubmitRules
from dora.explore import Launcher
from dora.shep import Sheep, Shepherd

from ..environment import AudioCraftEnvironment
from ..utils.config import suggest, to_plain
from ..utils.errors import UserError
from .deltas import part

GPUS_OF_A_NODE = 8  # what Dora assumes when it is not told the number of nodes
_JOB_ID = re.compile(r'\d+(_\d+)?')


@dataclasses.dataclass
class SlurmConfig(dora.conf.SlurmConfig):
    """Dora's settings of a job, which know 8 GPUs a node or one task without GPUs, and any number of nodes and tasks.

    Args:
        nodes (int or None): nodes, over which `gpus` (the total, 0 without GPUs) are spread evenly; None: as Dora does.
        tasks_per_node (int or None): processes on each node; None: one for each GPU, or one where there is none.
        partition (str or list): with several, SLURM takes the one that starts first.
    """
    nodes: int | None = None
    tasks_per_node: int | None = None


def update(config: SlurmConfig, values: tp.Mapping[str, tp.Any], prefix: str = 'slurm.') -> None:
    """Set some settings, in place. Raises `UserError` for an unknown one."""
    known = [field.name for field in dataclasses.fields(config)]
    for key, value in values.items():
        if key not in known:
            hint = suggest(key, known)
            raise UserError(f'{prefix}{key}: there is no such SLURM setting'
                            + (f': {hint}' if hint else f'; there are {", ".join(known)}.'))
        setattr(config, key, value)


def from_config(block: tp.Mapping[str, tp.Any] | None) -> SlurmConfig:
    """The settings of the `slurm:` block of a config; the team gives the partition and the nodes to stay away from."""
    config = SlurmConfig()
    update(config, block or {})
    if not (block or {}).get('partition'):
        # Dora's default is a partition that only one company has.
        config.partition = AudioCraftEnvironment.get_slurm_partitions() or ''
    if config.exclude is None:
        config.exclude = AudioCraftEnvironment.get_slurm_exclude()
    return config


def of_xp(config: SlurmConfig, xp: tp.Any, base: tp.Any) -> SlurmConfig:
    """The settings for one XP: its overrides (`slurm.nodes=2`) win over the grid, the grid over its solver's yaml."""
    before, now = to_plain(base.get('slurm') or {}), to_plain(part(xp, 'slurm') or {})
    changed = {key: value for key, value in now.items() if key not in before or before[key] != value}
    typed = {argument.split('=', 1)[0].lstrip('+') for argument in xp.argv}
    default, config = from_config(before), copy.deepcopy(config)
    update(config, {key: value for key, value in changed.items() if f'slurm.{key}' in typed
                    or getattr(config, key, None) == getattr(default, key, None)})
    return config


# -- what SLURM is asked for ----------------------------------------------------------------------------------------

def check(config: SlurmConfig) -> None:
    """Raise `UserError` for numbers that do not go together."""
    nodes = config.nodes
    for name, value in (('nodes', nodes), ('tasks_per_node', config.tasks_per_node)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise UserError(f'slurm.{name}={value}: expected a whole number of at least 1, or null.')
    if nodes is not None and config.gpus % nodes:
        raise UserError(f'slurm.gpus={config.gpus} cannot be spread evenly over slurm.nodes={nodes}: '
                        'gpus is the total, 0 for a job without GPUs.')
    if nodes is None and config.gpus > GPUS_OF_A_NODE and config.gpus % GPUS_OF_A_NODE:
        raise UserError(f'slurm.gpus={config.gpus}: without slurm.nodes more than {GPUS_OF_A_NODE} GPUs have to be a '
                        f'multiple of {GPUS_OF_A_NODE}.')


def layout(config: SlurmConfig) -> dict[str, tp.Any]:
    """What replaces Dora's own numbers at submission; nothing when neither `nodes` nor `tasks_per_node` is set.

    Memory is `mem_per_gpu` for each GPU or task of a node, whichever are more, in whole MB, since SLURM takes no
    fractions. A task has `cpus_per_task` CPUs, or `cpus_per_gpu` for each of its GPUs and at least once.
    """
    if config.nodes is None and config.tasks_per_node is None:
        return {}
    nodes = config.nodes or max(1, config.gpus // GPUS_OF_A_NODE)
    gpus = config.gpus // nodes
    tasks = config.tasks_per_node or (1 if config.one_task_per_node else max(1, gpus))
    found: dict[str, tp.Any] = {'nodes': nodes, 'ntasks_per_node': tasks}
    found['cpus_per_task'] = config.cpus_per_task or config.cpus_per_gpu * max(1, -(-gpus // tasks))
    if gpus:
        found['gres'] = f'gpu:{gpus}'
    if config.mem_per_gpu:
        found['mem'] = f'{round(config.mem_per_gpu * max(gpus, tasks) * 1024)}MB'
    return found


def _plain(config: SlurmConfig) -> dora.conf.SlurmConfig:
    """A copy that Dora's own code can read, which passes on every attribute and appends to `srun_args`."""
    names = [field.name for field in dataclasses.fields(dora.conf.SlurmConfig)]
    plain = dora.conf.SlurmConfig(**{name: copy.deepcopy(getattr(config, name)) for name in names})
    partition = plain.partition if isinstance(plain.partition, str) else ','.join(plain.partition or [])
    plain.partition = partition or None  # type: ignore[assignment]  # an empty name is refused by sbatch
    return plain


def get_executor(stock: tp.Callable[..., tp.Any]) -> tp.Callable[..., tp.Any]:
    """Dora's executor with our numbers of nodes, tasks, CPUs and memory, and with dependents that end well."""
    def _get_submitit_executor(self: Shepherd, name: str, folder: Path, slurm_config: SlurmConfig) -> tp.Any:
        plain, ours = _plain(slurm_config), layout(slurm_config)
        if ours:
            plain.gpus, plain.mem_per_gpu = min(plain.gpus, 1), 0  # both are in `ours`
        executor = stock(self, name, folder, plain)
        executor.update_parameters(**ours)
        if plain.dependents:
            _mend_dependents(executor, plain.dependents)
        return executor
    return _get_submitit_executor


def _mend_dependents(executor: tp.Any, dependents: int) -> None:
    """The last of the chain may be requeued; and those that are not needed since one ended well leave the queue.

    Dora makes the arguments of all jobs of a chain before it counts them, so that none is ever requeued.
    """
    stock, done = executor.submit, 0

    def submit(target: tp.Any, main: bytes, argv: list[str], requeue: bool, local_code: bool) -> tp.Any:
        nonlocal done
        done += 1
        added = executor.parameters.get('additional_parameters')
        if added and 'dependency' in added:
            added['kill-on-invalid-dep'] = 'yes'
        return stock(target, main, argv, requeue or done > dependents, local_code)
    executor.submit = submit


def maybe_submit(stock: tp.Callable[..., None]) -> tp.Callable[..., None]:
    """Settings that one XP changes, and an error before any job is sent rather than between two."""
    def maybe_submit_lazy(self: Shepherd, sheep: Sheep, slurm_config: SlurmConfig, rules: SubmitRules) -> None:
        config = of_xp(slurm_config, sheep.xp, getattr(self.main, '_base_cfg', {}))
        check(config)
        if self._in_job_array and config != self._to_submit[-1].slurm_config:
            if self._to_submit[-1].sheeps:
                raise UserError(f'The XP {sheep.xp.sig} has other slurm settings than the first of its job array.')
            self._to_submit[-1].slurm_config = config
        stock(self, sheep, config, rules)
    return maybe_submit_lazy


def commit(stock: tp.Callable[[Shepherd], None]) -> tp.Callable[[Shepherd], None]:
    """What sbatch has to say about a job, without the 30 lines around it."""
    def commit(self: Shepherd) -> None:
        try:
            stock(self)
        except submitit.core.utils.FailedJobError as error:
            raise UserError(f'SLURM refused the job: {" ".join(str(error).split())}') from error
    return commit


def slurm_(self: Launcher, **kwargs: tp.Any) -> Launcher:
    """Dora's own ends with a traceback for a misspelled setting."""
    update(tp.cast(SlurmConfig, self._slurm), kwargs, 'launcher.slurm: ')
    return self


# -- jobs that end, and that come back ------------------------------------------------------------------------------

def checked_ids(ids: tp.Iterable[str]) -> list[str]:
    """Ids of jobs, which go into command lines. Raises `UserError` when one does not look like an id."""
    ids = list(ids)
    for one in ids:
        if not _JOB_ID.fullmatch(one):
            raise UserError(f'{one!r} is not the id of a SLURM job: is a job.json or job.pkl damaged?')
    return ids


def cancel(self: Shepherd, jobs: tp.Sequence[tp.Any]) -> None:
    """Cancel jobs. To Dora a job that SLURM has forgotten is an error, with a traceback."""
    done = sp.run(['scancel', *checked_ids(job.job_id for job in jobs)], capture_output=True, text=True)
    errors = [line for line in done.stderr.splitlines() if 'Invalid job id' not in line and 'already' not in line]
    if done.returncode and errors:
        raise UserError(f'scancel failed: {" ".join(errors)}')


class Target(dora.shep._SubmitItTarget):
    """What a job runs. Dora's own cannot be requeued before the XP is entered, thus not in the time of its imports."""

    def checkpoint(self, main: bytes, argv: list[str], requeue: bool = True, local_code: bool = False) -> tp.Any:
        """Called by submitit in the first process when the job is to be requeued; gives what the next one runs."""
        for callback in dora.shep._preemption_callbacks:
            callback()
        if not requeue:
            sys.exit(1)  # the next dependent goes on
        return submitit.helpers.DelayedSubmission(self, main, argv, requeue, local_code)


def in_job() -> bool:
    """Whether this process belongs to a SLURM job that submitit started."""
    names = ('SLURM_JOB_ID', 'SLURM_ARRAY_JOB_ID', 'SLURM_ARRAY_TASK_ID')
    ids = [os.environ[name] for name in names if name in os.environ]
    return (os.environ.get('SUBMITIT_EXECUTOR') == 'slurm' and 'SLURM_JOB_ID' in os.environ
            and all(one.isdigit() for one in ids))


def requeue_after_save(signal_name: str, previous: tp.Mapping[str, tp.Any]) -> None:
    """Ask for the job to be started again, if that is what the signal stands for; else return.

    Preemption, and the end of the time limit, are announced by SIGUSR2: submitit's handler, which the run had put
    aside, requeues the job and ends this process. After SIGTERM nothing is asked for: a cancelled job stays cancelled,
    and SLURM itself brings back one that it requeues.

    To be called in the process of rank 0 alone, after all ranks have saved (a barrier). The others may go on to end
    with status 0, before or after; another status would end the job before it is requeued.

    Args:
        signal_name (str): what stopped the run.
        previous (dict): name of a signal to its handler before the run (`StopFlag.previous`).
    """
    handler = previous.get('SIGUSR2')
    if signal_name in ('SIGUSR1', 'SIGUSR2') and in_job() and callable(handler):
        handler(signal.SIGUSR2, None)
