"""`dora run -d`: several processes of one machine that train one XP.

This process, the parent, starts the workers, hands them signals and what is typed, and ends all of them when one fails.
"""

import os
import shlex
import signal
import socket
import subprocess as sp
import sys
import threading
import time
import typing as tp
from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from dora.log import simple_log
from dora.main import DecoratedMain

from ..utils import terminal
from ..utils.errors import LOST_PEER, UserError
from ..utils.signals import EXIT_CODES
from . import parent

POLL = 0.1  # seconds between two looks at the workers
# Exit statuses of a worker that was asked to stop, saved, and did.
STOPPED = {status for status in EXIT_CODES.values() if status}


@dataclass(frozen=True)
class Grace:
    """How long the workers may take, in seconds, before what is left of them is killed.

    Attributes:
        stop: after a signal that asks to save and stop.
        again: after a second Ctrl-C.
        failed: after another worker has failed.
        peer: after a worker ended because it lost another one, which has not ended yet.
    """
    stop: float = 60.
    again: float = 3.
    failed: float = 15.
    peer: float = 10.


GRACE = Grace()


def start_ddp_workers(main: DecoratedMain, argv: list[str], num_workers: int | None = None) -> tp.NoReturn:
    """Train the XP of `argv` with `num_workers` processes (None: one for each GPU), and exit as they do."""
    try:
        world_size = _world_size(num_workers)
        xp = main.get_xp(argv)
        main.init_xp(xp)
        status = run_workers(worker_command(main, argv), environments(world_size), xp.folder)
    except KeyboardInterrupt:
        status = EXIT_CODES['SIGINT']
    sys.exit(status)


def _world_size(num_workers: int | None) -> int:
    if num_workers is not None and num_workers < 1:
        raise UserError(f'--ddp_workers {num_workers}: there must be at least one worker.')
    number = num_workers or torch.cuda.device_count()
    if number:
        _say(f'Starting {number} workers.')
        return number
    _say('There is no GPU: starting 2 workers on the CPU, with gloo (--ddp_workers N asks for N).')
    return 2


def worker_command(main: DecoratedMain, argv: list[str]) -> list[str]:
    """The command of each worker; its rank comes through the environment."""
    return [sys.executable, '-m', 'dora', '-P', main.package, '--main_module', main.main_module, 'run', '--', *argv]


def environments(world_size: int) -> list[dict[str, str]]:
    """The environment of each worker."""
    env = dict(os.environ, WORLD_SIZE=str(world_size), MASTER_ADDR='127.0.0.1')
    env['MASTER_PORT'] = env.get('MASTER_PORT') or str(free_port())
    env[parent.VARIABLE] = str(os.getpid())
    env.pop(terminal.VARIABLE, None)
    if not env.get('OMP_NUM_THREADS') and not torch.cuda.device_count():
        # Each worker would take all cores, and their threads would wait for each other.
        env['OMP_NUM_THREADS'] = str(max(1, _cores() // world_size))
    envs = [{**env, 'RANK': str(rank), 'LOCAL_RANK': str(rank)} for rank in range(world_size)]
    if terminal.has_input():
        envs[0][terminal.VARIABLE] = '1'
    return envs


def free_port() -> int:
    """A port of this machine that nobody uses."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return tp.cast(int, probe.getsockname()[1])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _say(*args: str) -> None:
    # When the terminal was closed the workers still have to be followed while they save.
    with suppress(OSError):
        simple_log('Executor:', *args)


# -- one worker -----------------------------------------------------------------------------------------------------

class Worker:
    """One process of the group.

    Args:
        rank (int): its number; what rank 0 prints goes to the terminal.
        command (list): its command line.
        env (dict): its environment.
        folder (Path): the folder of the XP; the output of rank K > 0 is added to `worker_K.log` there.

    Attributes:
        process (Popen): the leader of a process group of its own, so that Ctrl-C does not reach it by itself.
        log (Path or None): the file it writes to, from byte `start` on.
        sent (set): the numbers of the signals that it got from the parent.
    """
    TAIL = 15  # lines of a log that are shown
    TAIL_BYTES = 1 << 16

    def __init__(self, rank: int, command: list[str], env: dict[str, str], folder: Path):
        self.rank = rank
        self.sent: set[int] = set()
        self.log = folder / f'worker_{rank}.log' if rank else None
        typed = env.get(terminal.VARIABLE) == '1'
        start = partial(sp.Popen, command, env=env, stdin=sp.PIPE if typed else sp.DEVNULL, bufsize=0, process_group=0)
        if self.log is None:
            self.process = start()
            return
        with open(self.log, 'ab') as file:
            file.write(f'--- {time.strftime("%Y-%m-%d %H:%M:%S")} {shlex.join(command)}\n'.encode())
            file.flush()
            self.start = file.tell()
            self.process = start(stdout=file, stderr=sp.STDOUT)

    @property
    def status(self) -> int:
        """Its exit status, or minus the number of the signal that killed it; it must have ended."""
        return tp.cast(int, self.process.returncode)

    def send(self, number: int) -> None:
        """Send a signal to the process, if it is still there; its own children are its business."""
        self.sent.add(number)
        with suppress(ValueError, OSError):  # Windows has few signals: there the console sends Ctrl-C to all
            self.process.send_signal(number)

    def kill(self) -> None:
        """Kill the process and its children."""
        if not hasattr(os, 'killpg'):
            self.process.kill()
        elif self.process.poll() is None:
            self.sent.add(signal.SIGKILL)
            with suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def how_it_ended(self) -> str:
        """The end of the process in words."""
        if self.status >= 0:
            return f'failed (exit status {self.status})'
        try:
            name = signal.Signals(-self.status).name
        except ValueError:
            name = f'signal {-self.status}'
        return f'was killed by {name}' + (' (out of memory?)' if name == 'SIGKILL' else '')

    def tail(self) -> list[str]:
        """The last lines of what it wrote to its log in this run."""
        assert self.log is not None
        with open(self.log, 'rb') as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(self.start, end - self.TAIL_BYTES))
            return file.read().decode('utf-8', 'replace').splitlines()[-self.TAIL:]


# -- all of them ----------------------------------------------------------------------------------------------------

class Group:
    """The workers of one run, until the last has ended.

    Args:
        workers (list): the workers by rank; more may be added before `follow`.
        grace (Grace): how long they may take to end.

    Attributes:
        left (list): those that have not ended.
        failed (list): those that failed by themselves, the first one first.
        lost (list): those that ended because they lost another one.
        stop (str or None): name of the signal that asked them to stop.
    """
    def __init__(self, workers: list[Worker], grace: Grace):
        self.workers = workers
        self.grace = grace
        self.left: list[Worker] = []
        self.failed: list[Worker] = []
        self.lost: list[Worker] = []
        self.stop: str | None = None
        self._interrupts = 0
        self._told = False
        self._peer_until: float | None = None
        self._kill_at: float | None = None

    def follow(self, signals: deque[int]) -> int:
        """Wait for all workers, hand them the signals that come, and return the exit status of the whole run."""
        self.left = list(self.workers)
        while self.left:
            while signals:
                self.forward(signals.popleft())
            for worker in [worker for worker in self.left if worker.process.poll() is not None]:
                self._ended(worker)
            self._blame_lost()
            self._tell_others()
            self._kill_late()
            time.sleep(POLL if self.left else 0)
        self.report()
        return self.status()

    def forward(self, number: int) -> None:
        """Hand a stop signal to all workers; with the second Ctrl-C they have little time left."""
        self.stop = self.stop or signal.Signals(number).name
        self._interrupts += number == signal.SIGINT
        for worker in self.left:
            worker.send(number)
        self._end_within(self.grace.again if self._interrupts > 1 else self.grace.stop)

    def _end_within(self, seconds: float) -> None:
        at = time.monotonic() + seconds
        self._kill_at = at if self._kill_at is None else min(self._kill_at, at)

    def _ended(self, worker: Worker) -> None:
        self.left.remove(worker)
        if worker.status in STOPPED:
            # Somebody asked this worker alone, and it agreed with the others: they are saving, and need their time.
            if self.stop is None and not self.failed:
                self.forward(signal.SIGTERM)
        elif worker.status == LOST_PEER:
            self.lost.append(worker)
        elif worker.status and -worker.status not in worker.sent:
            self.failed.append(worker)

    def _blame_lost(self) -> None:
        """When one that lost another ends first, give the other some time to end with the error that matters."""
        if not self.lost or self.failed or self.stop:
            return
        now = time.monotonic()
        self._peer_until = self._peer_until or now + self.grace.peer
        if now >= self._peer_until or not self.left:
            self.failed.append(self.lost[0])

    def _tell_others(self) -> None:
        if self.failed and not self._told:
            self._told = True
            for worker in self.left:
                worker.send(signal.SIGTERM)
            self._end_within(self.grace.failed)

    def _kill_late(self) -> None:
        if self.left and self._kill_at is not None and time.monotonic() >= self._kill_at:
            self._kill_at = None
            _say('Killing what did not end in time: worker ' + ', '.join(str(worker.rank) for worker in self.left))
            self.kill()

    def kill(self) -> None:
        """Kill those that have not ended, with their children."""
        for worker in self.workers:
            worker.kill()

    def report(self) -> None:
        """Say which worker failed first, and show the end of its log."""
        for index, worker in enumerate(self.failed):
            end = f'Worker {worker.rank} {worker.how_it_ended()}'
            if worker.log is None:
                _say(f'{end}; what it wrote is above.')
            elif index:
                _say(f'{end}. Its log: {worker.log}')
            else:
                _say('\n'.join([f'{end}. The end of its log, {worker.log}:', *worker.tail()]))

    def status(self) -> int:
        """The first failure's exit status (1 for a signal), or that of rank 0 after a stop, or 0."""
        if self.failed:
            return max(self.failed[0].status, 0) or 1
        if self.stop is None:
            return 0
        status = self.workers[0].status
        return status if status == 0 or status in STOPPED else EXIT_CODES[self.stop] or 1


def run_workers(command: list[str], envs: list[dict[str, str]], folder: Path, grace: Grace = GRACE) -> int:
    """Run one worker for each environment until the last has ended, and return the exit status of all.

    Args:
        command (list): the command line of each worker.
        envs (list): their environments, by rank.
        folder (Path): the folder of the XP, which must exist.
        grace (Grace): how long they may take to end.
    """
    group = Group([], grace)
    done = threading.Event()
    with _caught() as signals:
        try:
            for rank, env in enumerate(envs):
                group.workers.append(Worker(rank, command, env, folder))
            threading.Thread(target=_pump, args=(group.workers[0].process.stdin, done), daemon=True).start()
            return group.follow(signals)
        finally:
            done.set()
            group.kill()
            for worker in group.workers:
                worker.process.wait()


@contextmanager
def _caught() -> tp.Iterator[deque[int]]:
    """Collect the signals that ask to stop; those that are ignored stay so (`nohup`, a job in the background)."""
    came: deque[int] = deque()
    numbers = [getattr(signal, name) for name in EXIT_CODES if hasattr(signal, name)]
    previous = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in numbers
                if signal.getsignal(number) is not signal.SIG_IGN}
    try:
        yield came
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _pump(pipe: tp.IO[bytes] | None, done: threading.Event) -> None:
    """Hand what is typed to rank 0."""
    if pipe is None:
        return
    with suppress(OSError), pipe:  # rank 0 may end first
        for line in terminal.lines_of_terminal(done):
            pipe.write(f'{line}\n'.encode())
