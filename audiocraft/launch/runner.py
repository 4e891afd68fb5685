"""The queue of this machine: a folder of jobs, and the process that starts them, `python -m audiocraft.launch.runner`.

A job `L7` is a few files: `L7.json` is what to run, `L7.cancel` asks it to stop, `L7.start` says which processes it has
and `L7.end` how it ended. The runner starts jobs in their order while there is room, and ends when nothing is left. It
keeps nothing in memory that is not in the folder: each job has a process of its own beside it, the *keeper*, which
waits for it and writes how it ended, so that a runner that is killed loses nothing; the next one goes on.

The standard library alone is imported, since this process stays for as long as there are jobs.
"""

import argparse
import json
import os
import re
import signal
import socket
import subprocess as sp
import sys
import time
import typing as tp
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, for which `local.py` says that there is no queue
    fcntl = None  # type: ignore[assignment]

MODULE = 'audiocraft.launch.runner'
POLL = 0.2  # seconds between two looks
GRACE = 60.  # seconds that a cancelled job has to save before it is killed
JOB_VARIABLE = 'AUDIOCRAFT_LOCAL_JOB'  # the id of the job, in its environment
JOB_ID = re.compile(r'L[1-9]\d*')
# A job that is asked to stop and does so ends with one of these.
_STOPPED = {128 + signal.SIGTERM, 128 + signal.SIGINT, -signal.SIGTERM, -signal.SIGINT}
_SECRET = re.compile('TOKEN|SECRET|PASSW|KEY|CREDENTIAL', re.IGNORECASE)

Record = dict[str, tp.Any]


# -- processes ------------------------------------------------------------------------------------------------------

def identity(pid: int) -> str | None:
    """A text that no other process has, whatever became of the number; None when there is no such process."""
    try:
        fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
        boot = Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    except (OSError, IndexError):
        if Path('/proc/self/stat').exists():
            return None
        found = sp.run(['ps', '-o', 'lstart=', '-p', str(pid)], capture_output=True, text=True)
        return found.stdout.strip() or None
    return None if fields[0] in 'ZX' else f'{boot}:{fields[19]}'


def _is_alive(process: tp.Sequence[tp.Any]) -> bool:
    pid, who = process
    return identity(pid) == who


def _others_of_session() -> list[int]:
    """The processes that this one and its descendants have started, if it leads its session."""
    if os.getsid(0) != os.getpid():
        return []
    others = []
    for stat in Path('/proc').glob('[0-9]*/stat'):
        with suppress(OSError, IndexError):
            fields = stat.read_text().rpartition(')')[2].split()
            if int(fields[3]) == os.getsid(0) and fields[0] not in 'ZX':
                others.append(int(stat.parent.name))
    return [pid for pid in others if pid != os.getpid()]


def is_secret(name: str) -> bool:
    """Whether a variable of the environment should not be written to a file."""
    return _SECRET.search(name) is not None


# -- the folder -----------------------------------------------------------------------------------------------------

def _create(path: Path, content: Record) -> bool:
    """Write a new file that the user alone can read; False when it exists."""
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(file, 'w') as stream:
        stream.write(json.dumps(content))
    return True


class Queue:
    """The jobs in a folder.

    Args:
        folder (Path): made when the first job is added.
    """
    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._ended: set[str] = set()

    def path(self, job: str, kind: str) -> Path:
        """A file of a job; `kind` is `json`, `start`, `cancel` or `end`."""
        return self.folder / f'{job}.{kind}'

    def read(self, job: str, kind: str) -> Record | None:
        """The content of a file of a job; None when it is not there, or not whole yet."""
        try:
            return tp.cast(Record, json.loads(self.path(job, kind).read_text()))
        except (OSError, ValueError):
            return None

    def write(self, job: str, kind: str, **content: tp.Any) -> None:
        """Write a file of a job, so that a reader sees all of it or none."""
        temporary = self.folder / f'.{job}.{kind}.{os.getpid()}'
        temporary.write_text(json.dumps(content))
        os.replace(temporary, self.path(job, kind))

    def add(self, record: Record) -> str:
        """Add a job at the end and return its id.

        Args:
            record (dict): `command`, `cwd`, `env`, `logs` (the folder for its log), `gpus` and `workers` that it needs,
                `devices` (the GPUs to choose from), `capacity` (workers that may run at a time) and `grace` (seconds).
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        number = max((int(job[1:]) for job in self.ids()), default=0) + 1
        while not _create(self.path(f'L{number}', 'json'), {**record, 'host': socket.gethostname()}):
            number += 1
        return f'L{number}'

    def ids(self) -> list[str]:
        """All jobs, in their order."""
        names = [name.removesuffix('.json') for name in os.listdir(self.folder) if name.endswith('.json')]
        return sorted((name for name in names if JOB_ID.fullmatch(name)), key=lambda name: int(name[1:]))

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, FAILED or CANCELLED; UNKNOWN when there is no such job."""
        end = self.read(job, 'end')
        if end is not None:
            return str(end['state'])
        # In this order: the keeper writes `start` before it looks for `cancel`, so that what is seen as cancelled
        # here does not start after all.
        cancelled = self.path(job, 'cancel').exists()
        start = self.read(job, 'start')
        if start is None:
            waiting = 'CANCELLED' if cancelled else 'PENDING'
            return waiting if self.path(job, 'json').exists() else 'UNKNOWN'
        elsewhere = start['host'] != socket.gethostname()
        if elsewhere or any(_is_alive(process) for process in start['processes']):
            return 'RUNNING'
        # Either it has ended since the first look, or its keeper was killed.
        end = self.read(job, 'end')
        return str(end['state']) if end else 'CANCELLED' if cancelled else 'FAILED'

    def is_done(self, job: str) -> bool:
        """Whether all processes of a job are gone, or will never start."""
        return self.state(job) not in ('PENDING', 'RUNNING')

    def cancel(self, job: str) -> None:
        """Ask a job to stop, or never to start. It has its time to save: `is_done` says when it is gone."""
        if self.path(job, 'json').exists():
            self.path(job, 'cancel').touch()
        start = self.read(job, 'start')
        if start is None or start['host'] != socket.gethostname() or _is_alive(start['processes'][0]):
            return
        for process in start['processes'][1:]:  # nobody keeps it any more
            if _is_alive(process):
                os.kill(process[0], signal.SIGTERM)

    def unfinished(self) -> dict[str, str]:
        """The jobs of this machine that wait or run, in their order, and their states."""
        states = {job: self.state(job) for job in self.ids()
                  if job not in self._ended and not self.path(job, 'end').exists()}
        self._ended |= {job for job, state in states.items() if state not in ('PENDING', 'RUNNING')}
        host = socket.gethostname()
        return {job: state for job, state in states.items()
                if job not in self._ended and (self.read(job, 'json') or {}).get('host') == host}

    def lock(self) -> tp.IO[str] | None:
        """The open file that stands for being the runner of this machine; None when another process is."""
        file = open(self.folder / f'runner.{socket.gethostname()}.lock', 'a+')
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return file

    def wake(self) -> None:
        """Start a runner, which leaves this process and its terminal, when jobs wait and there is none."""
        if not self.folder.is_dir() or 'PENDING' not in self.unfinished().values():
            return
        lock = self.lock()
        if lock is None:
            return
        lock.close()
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *filter(None, os.environ.get('PYTHONPATH', '').split(os.pathsep))]
        with open(self.folder / 'runner.log', 'a') as log:
            sp.Popen([sys.executable, '-m', MODULE, str(self.folder)], cwd=self.folder, stdin=sp.DEVNULL,
                     stdout=log, stderr=log, start_new_session=True,
                     env={**os.environ, 'PYTHONPATH': os.pathsep.join(paths)})


# -- the keeper of one job ------------------------------------------------------------------------------------------

class Keeper:
    """Runs one job and writes how it ended.

    Args:
        queue (Queue): where the job is.
        job (str): its id.
        devices (list): the GPUs that it may use.
    """
    def __init__(self, queue: Queue, job: str, devices: list[str]):
        self.queue, self.job, self.devices = queue, job, devices
        self.record = tp.cast(Record, queue.read(job, 'json'))
        self.asked = False
        self._kill_at = float('inf')

    def run(self) -> None:
        """Claim the job, run it, and stay until its last process is gone."""
        start = {'host': socket.gethostname(), 'devices': self.devices,
                 'processes': [[os.getpid(), identity(os.getpid())]]}
        if not _create(self.queue.path(self.job, 'start'), start):
            return  # another keeper was faster
        for name in ('SIGTERM', 'SIGINT', 'SIGHUP'):
            signal.signal(getattr(signal, name), self._on_signal)
        status: int | None = None
        if not self._is_asked():
            # The name that submitit gives, so that `dora info` finds it.
            with open(Path(self.record['logs']) / f'{self.job}_0_log.out', 'ab') as log:
                status = self._run(start, log)
        state = 'COMPLETED' if status == 0 else 'CANCELLED' if self.asked or status in _STOPPED else 'FAILED'
        self.queue.write(self.job, 'end', state=state, status=status)

    def _run(self, start: Record, log: tp.BinaryIO) -> int:
        try:
            child = sp.Popen(self.record['command'], cwd=self.record['cwd'], env=self._environment(),
                             stdin=sp.DEVNULL, stdout=log, stderr=sp.STDOUT, process_group=0)
        except OSError as error:
            log.write(f'The job did not start: {error}\n'.encode())
            return 127
        start['processes'].append([child.pid, identity(child.pid)])
        self.queue.write(self.job, 'start', **start)
        while child.poll() is None:
            if self._kill_at == float('inf') and self._is_asked():
                child.terminate()
                self._kill_at = time.monotonic() + self.record['grace']
            if time.monotonic() > self._kill_at:
                self._kill_rest(child.pid)
            time.sleep(POLL)
        self._kill_rest(child.pid)
        return child.returncode

    def _on_signal(self, number: int, frame: tp.Any) -> None:
        self.asked = True

    def _is_asked(self) -> bool:
        self.asked = self.asked or self.queue.path(self.job, 'cancel').exists()
        return self.asked

    def _environment(self) -> dict[str, str]:
        secrets = {name: value for name, value in os.environ.items() if is_secret(name)}
        env = {**secrets, **self.record['env'], JOB_VARIABLE: self.job}
        if self.record['devices']:
            env['CUDA_VISIBLE_DEVICES'] = ','.join(self.devices)
        return env

    @staticmethod
    def _kill_rest(group: int) -> None:
        with suppress(OSError):
            os.killpg(group, signal.SIGKILL)
        for pid in _others_of_session():
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)


# -- the runner -----------------------------------------------------------------------------------------------------

def room_for(job: Record, running: tp.Sequence[tuple[Record, list[str]]]) -> list[str] | None:
    """The GPUs that a job may use now, an empty list for a job without; None while it has to wait.

    Args:
        job (dict): its record.
        running (list): the record of each job that runs, and the GPUs that it has.
    """
    if job['gpus']:
        taken = {device for _, devices in running for device in devices}
        free = [device for device in job['devices'] if device not in taken]
        return free[:job['gpus']] if len(free) >= job['gpus'] else None
    used = sum(record['workers'] for record, _ in running if not record['gpus'])
    # One that needs more than there is runs alone.
    return [] if not used or used + job['workers'] <= job['capacity'] else None


class Runner:
    """Starts jobs while there is room.

    Args:
        queue (Queue): the jobs.
    """
    def __init__(self, queue: Queue):
        self.queue = queue
        self._keepers: dict[str, tuple[sp.Popen, list[str]]] = {}

    def run(self) -> None:
        """Go on until no job waits and none that was started here runs."""
        while self.step():
            time.sleep(POLL)

    def step(self) -> bool:
        """Start what there is room for; False when nothing is left to do."""
        alive = {job for job, (keeper, _) in self._keepers.items() if keeper.poll() is None}
        states = self.queue.unfinished()
        for job in set(self._keepers) - alive:
            if states.get(job) == 'PENDING':  # its keeper did not get so far as to claim it
                self.queue.write(job, 'end', state='FAILED', status=None)
        waiting = [job for job, state in states.items() if state == 'PENDING' and job not in self._keepers]
        records = {job: record for job in [*states, *alive] if (record := self.queue.read(job, 'json'))}
        running = [(records[job], self._devices(job)) for job in records if job in alive or states[job] == 'RUNNING']
        full: set[bool] = set()  # jobs with GPUs and those without wait each behind their own
        for job in waiting:
            kind = bool(records[job]['gpus'])
            devices = None if kind in full else room_for(records[job], running)
            if devices is None:
                full.add(kind)
                continue
            self._start(job, devices)
            running.append((records[job], devices))
        return bool(alive or states)

    def _devices(self, job: str) -> list[str]:
        start = self.queue.read(job, 'start')
        return start['devices'] if start else self._keepers[job][1]

    def _start(self, job: str, devices: list[str]) -> None:
        command = [sys.executable, '-m', MODULE, str(self.queue.folder), '--job', job, '--devices', ','.join(devices)]
        self._keepers[job] = sp.Popen(command, stdin=sp.DEVNULL, start_new_session=True), devices


def run(queue: Queue) -> None:
    """Be the runner, if there is none."""
    while (lock := queue.lock()) is not None:
        with lock:
            Runner(queue).run()
        # Who adds a job while the lock is held starts no runner: one that came after the last look is seen here.
        if 'PENDING' not in queue.unfinished().values():
            return


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('folder', type=Path)
    parser.add_argument('--job', help='run this job alone: what the runner starts for each')
    parser.add_argument('--devices', default='', help='the GPUs that the job may use')
    args = parser.parse_args()
    queue = Queue(args.folder)
    if args.job:
        Keeper(queue, args.job, [device for device in args.devices.split(',') if device]).run()
    else:
        run(queue)


if __name__ == '__main__':
    main()
