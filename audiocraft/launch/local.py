"""`dora grid` and `dora launch` with no SLURM: the jobs are run on this machine, one after the other or side by side.

What waits and runs is in `<dora dir>/local/` (see `runner.py`); the folder of an XP names its job in `job.json`.
"""

import json
import os
import shutil
import sys
import time
import typing as tp
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch
from dora import git_save
from dora.log import simple_log
from dora.main import DecoratedMain
from dora.shep import Sheep, Shepherd
from dora.xp import XP

from ..environment import AudioCraftEnvironment
from ..utils.errors import UserError
from .runner import GRACE, JOB_ID, JOB_VARIABLE, Queue, is_secret

# They describe the process that schedules, not the job.
_NOT_INHERITED = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT', '_DORA_GIT_SAVE_DONE', JOB_VARIABLE)


class LocalWatcher:
    """The states of the jobs in a queue, as submitit's watcher gives those of SLURM."""

    def __init__(self, queue: Queue):
        self.queue = queue

    def get_state(self, job_id: str, mode: str = 'standard') -> str:
        """One of the words of SLURM; `mode` is of no use here."""
        return self.queue.state(job_id)

    def is_done(self, job_id: str, mode: str = 'standard') -> bool:
        """Whether all processes of the job are gone, or will never start."""
        return self.queue.is_done(job_id)

    def update(self) -> None:
        """Nothing is remembered that could be old."""


class LocalJob:
    """A job of this machine, with what Dora uses of submitit's jobs.

    Args:
        queue (Queue): where it is.
        job_id (str): e.g. `L7`.
    """
    def __init__(self, queue: Queue, job_id: str):
        self.queue, self.job_id = queue, job_id
        self.watcher = LocalWatcher(queue)

    @property
    def state(self) -> str:
        """One of the words of SLURM."""
        return self.queue.state(self.job_id)

    def cancel(self) -> None:
        """Ask it to save and stop, or never to start."""
        self.queue.cancel(self.job_id)


def queue_in(dora_dir: Path) -> Queue:
    """The queue that belongs to a folder of XPs."""
    return Queue(dora_dir / 'local')


def job_in(folder: Path) -> LocalJob | None:
    """The last job of the XP in a folder; None when it has none, or one of SLURM."""
    try:
        content = json.loads((folder / 'job.json').read_text())
    except (OSError, ValueError):
        return None
    job = content.get('job_id') if isinstance(content, dict) and content.get('launcher') == 'local' else None
    if not isinstance(job, str) or not JOB_ID.fullmatch(job):
        return None
    return LocalJob(queue_in(folder.parent.parent), job)


def init_sheep(stock: tp.Callable[..., None]) -> tp.Callable[..., None]:
    """Dora keeps the job of an XP as a pickle; ours is a plain file."""
    def __init__(self: Sheep, xp: XP) -> None:
        stock(self, xp)
        job = job_in(xp.folder)
        if job is not None:
            self.job, self._other_jobs, self._dependent_jobs = tp.cast(tp.Any, job), [], []
    return __init__


# -- what a job needs -----------------------------------------------------------------------------------------------

def visible_gpus() -> list[str]:
    """The GPUs of this machine, as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',') if name.strip()]
    return named[:count] if named else [str(index) for index in range(count)]


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def capacity() -> int:
    """How many workers may run at a time on the CPU."""
    return AudioCraftEnvironment.get_local_workers() or cores()


def needs(config: tp.Any, devices: tp.Sequence[str]) -> tuple[int, int]:
    """The GPUs and the worker processes of a job with some SLURM settings, on a machine with some GPUs."""
    gpus = config.gpus if devices else 0
    if gpus > len(devices):
        raise UserError(f'slurm.gpus={gpus}: this machine has {len(devices)} ({", ".join(devices)}). Ask for fewer, or '
                        'run on a cluster ("launcher: slurm" in the team file).')
    nodes, tasks = getattr(config, 'nodes', None), getattr(config, 'tasks_per_node', None)
    if gpus:
        return gpus, gpus
    return 0, (nodes or 1) * (tasks or 1) if nodes or tasks else max(1, config.gpus)


def command(main: DecoratedMain, argv: tp.Sequence[str], workers: int) -> list[str]:
    """The command line of a job."""
    several = ['-d', '--ddp_workers', str(workers)] if workers > 1 else []
    return [sys.executable, '-m', 'dora', '-P', main.package, '--main_module', main.main_module, 'run', *several, '--',
            *argv]


def environment(main: DecoratedMain, gpus: int) -> dict[str, str]:
    """The variables of a job: those of this process, but no secrets, which the runner has and hands on."""
    env = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED and not is_secret(name)}
    env['AUDIOCRAFT_DORA_DIR'] = str(main.dora.dir)
    env.setdefault('PYTHONUNBUFFERED', '1')  # so that the log can be followed
    if not gpus:
        # Each job would take all cores, and their threads would wait for each other.
        env.setdefault('OMP_NUM_THREADS', str(max(1, cores() // capacity())))
    return env


# -- scheduling and cancelling --------------------------------------------------------------------------------------

def submit(stock: tp.Callable[..., None]) -> tp.Callable[..., None]:
    """Schedule on SLURM as Dora does, or here."""
    def _submit(self: Shepherd, job_array: tp.Any) -> None:
        if not job_array.sheeps:
            return
        if AudioCraftEnvironment.get_launcher() == 'slurm':
            if shutil.which('srun') is None:
                raise UserError('The launcher is "slurm", and this machine has no `srun`: run this where SLURM is, or '
                                'set "launcher: local" in the team file to run jobs here.')
            stock(self, job_array)
            return
        if os.name != 'posix':
            raise UserError('Jobs can be queued on Linux and macOS only: run an XP here with `dora run -f SIG`.')
        devices = visible_gpus()
        for array in [job_array, *self._to_submit]:  # all of them, before the first is added
            needs(array.slurm_config, devices)
        with ExitStack() as stack:
            if self.main.dora.git_save:
                self._existing_git_clone = self._existing_git_clone or git_save.get_new_clone(self.main)
                stack.enter_context(git_save.enter_clone(self._existing_git_clone))
            for sheep in job_array.sheeps:
                _add(self, sheep, job_array.slurm_config, devices)
    return _submit


def _add(shepherd: Shepherd, sheep: Sheep, config: tp.Any, devices: list[str]) -> None:
    """Put the job of one XP into the queue, and write where it can be found."""
    main, xp = shepherd.main, sheep.xp
    main.init_xp(xp)
    end_job(xp.folder)  # the one that --replace has cancelled may still be saving
    if shepherd._existing_git_clone is not None:
        git_save.assign_clone(xp, shepherd._existing_git_clone)
    gpus, workers = needs(config, devices)
    if not gpus and workers > capacity():
        shepherd.log(f'{xp.sig} wants {workers} workers where {capacity()} may run at a time: it will run alone.')
    folder = xp._xp_submitit
    folder.mkdir(exist_ok=True)
    job = LocalJob(queue_in(main.dora.dir), '')
    job.job_id = job.queue.add({
        'command': command(main, xp.argv, workers), 'cwd': os.getcwd(), 'env': environment(main, gpus),
        'logs': str(folder), 'gpus': gpus, 'workers': workers, 'devices': devices, 'capacity': capacity(),
        'grace': GRACE})
    sheep.job, sheep._other_jobs, sheep._dependent_jobs = tp.cast(tp.Any, job), [], []
    sheep._job_file.unlink(missing_ok=True)
    sheep._json_job_file.write_text(json.dumps({'job_id': job.job_id, 'launcher': 'local',
                                                'slurm_config': asdict(config)}))
    _link(shepherd._by_id / job.job_id, xp.folder.resolve())
    _link(xp._latest_submitit, folder)
    shepherd.log(f'Scheduled job {job.job_id} for sheep {xp.sig}/{main.get_name(xp)}')


def _link(link: Path, target: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target)


def commit(stock: tp.Callable[..., None]) -> tp.Callable[..., None]:
    """After scheduling, and whenever jobs wait and nobody starts them."""
    def commit(self: Shepherd) -> None:
        try:
            stock(self)
        finally:
            if os.name == 'posix':
                queue_in(self.main.dora.dir).wake()
    return commit


def cancel(stock: tp.Callable[..., None]) -> tp.Callable[..., None]:
    """Cancel jobs, of this machine and of SLURM."""
    def _cancel(self: Shepherd, jobs: tp.Sequence[tp.Any]) -> None:
        for job in jobs:
            if isinstance(job, LocalJob):
                job.cancel()
        others = [job for job in jobs if not isinstance(job, LocalJob)]
        try:
            if others:
                stock(self, others)
        except FileNotFoundError:
            raise UserError(f'This machine has no `scancel` to cancel {", ".join(job.job_id for job in others)} with: '
                            'those are jobs of SLURM, cancel them from there.') from None
    return _cancel


def end_job(folder: Path, poll: float = 0.1) -> None:
    """Cancel the job that an XP has on this machine and wait until its processes are gone.

    Its folder will be removed, or be that of another job.
    """
    job = job_in(folder)
    if job is None or job.queue.is_done(job.job_id):
        return
    job.cancel()
    if not job.queue.is_done(job.job_id):
        simple_log('Queue:', f'Waiting for the job {job.job_id} to end.')
    while not job.queue.is_done(job.job_id):
        time.sleep(poll)


def inside_job() -> bool:
    """Whether this process belongs to a job of the queue: the job that its XP has is then this one."""
    return JOB_VARIABLE in os.environ


def get_new_clone(stock: tp.Callable[[DecoratedMain], Path]) -> tp.Callable[[DecoratedMain], Path]:
    """What git has to say when `git_save` finds no repository, without a traceback."""
    def get_new_clone(main: DecoratedMain) -> Path:
        try:
            return stock(main)
        except git_save.CommandError as error:
            said = ' '.join(str(error).partition('\n')[2].split()) or str(error)
            raise UserError(f'git_save clones the repository of the current folder, and cannot: {said} '
                            '(dora.git_save=false, or --no_git_save, runs the code where it is.)') from error
    return get_new_clone
