"""`dora grid` and `dora launch` on a machine without SLURM, as a user runs them, in a project of its own."""

import json
import os
import signal
import subprocess as sp
import sys
import textwrap
import time
from pathlib import Path

import pytest

from audiocraft.launch.runner import Queue

pytestmark = [pytest.mark.integ, pytest.mark.skipif(os.name != 'posix', reason='the queue needs POSIX')]

ROOT = Path(__file__).resolve().parents[2]
SOLVER = textwrap.dedent('''
    import os
    import signal
    import sys
    import time

    import flashy


    class Solver(flashy.BaseSolver):
        """Counts to the number of epochs; seed 7 waits at 2 for a file `go`, seed 9 fails."""

        def __init__(self, cfg):
            super().__init__()
            self.cfg, self.stop = cfg, False

        def run(self):
            signal.signal(signal.SIGTERM, self.ask)
            counter = self.folder / f'count_{os.environ["RANK"]}'
            done = int(counter.read_text()) if counter.exists() else 0
            print(f'from {done}', os.environ['WORLD_SIZE'], os.environ['OMP_NUM_THREADS'], flush=True)
            while done < self.cfg.optim.epochs:
                if self.stop:
                    sys.exit(143)
                if self.cfg.seed == 9:
                    raise ValueError('nine')
                if self.cfg.seed == 7 and done == 2 and not os.path.exists('go'):
                    time.sleep(0.05)
                    continue
                done += 1
                counter.write_text(str(done))

        def ask(self, *args):
            self.stop = True
''')
YAML = """
# @package _global_
# Counts.
defaults: [/solver/default, _self_]
solver: {_target_: counting.Solver}
allow_targets: [counting]
device: cpu
optim: {epochs: 4}
"""
GRID = """
from dora import Explorer

@Explorer
def explorer(launcher):
    launcher.slurm_(gpus=0)
    launcher.bind_(solver='count')
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project, in its folder, whose jobs end with the test."""
    files = {'counting.py': SOLVER, 'config/solver/count.yaml': YAML, 'grids/__init__.py': '',
             'team.yaml': f'default: {{dora_dir: {tmp_path}/out, launcher: local, local_workers: 2}}'}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    for name in ('AUDIOCRAFT_DORA_DIR', 'DORA_PACKAGE', 'OMP_NUM_THREADS'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('AUDIOCRAFT_CONFIG', str(tmp_path / 'team.yaml'))
    monkeypatch.setenv('PYTHONPATH', f'{ROOT}{os.pathsep}{tmp_path}')
    yield tmp_path
    queue = Queue('out/local')
    jobs = queue.ids() if queue.folder.exists() else []
    for job in jobs:
        queue.cancel(job)
    wait_until(lambda: all(map(queue.is_done, jobs)))


def write_grid(*calls):
    Path('grids/my.py').write_text(GRID + ''.join(f'    launcher({call})\n' for call in calls))


def command(*args):
    """The script `dora`, as it is installed."""
    return [sys.executable, '-c', 'import sys; from audiocraft.cli.forward import dora; sys.exit(dora())', *args]


def dora(*args):
    return sp.run(command(*args), capture_output=True, text=True, stdin=sp.DEVNULL)


def wait_until(condition, seconds=600):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.2)
    raise AssertionError('this never happened')


def folder_of(seed):
    """The folder of the XP with a seed."""
    (folder,) = [path.parent for path in Path('out/xps').glob('*/.argv.json')
                 if f'seed={seed}' in json.loads(path.read_text())]
    return folder


def job_of(seed):
    return json.loads((folder_of(seed) / 'job.json').read_text())['job_id']


def state_of(job):
    return Queue('out/local').state(job)


def count(seed, rank=0):
    """How far an XP is."""
    path = folder_of(seed) / f'count_{rank}'
    return int(path.read_text() or 0) if path.exists() else None


def log_of(seed):
    return (folder_of(seed) / 'latest' / f'{job_of(seed)}_0_log.out').read_text()


def test_a_grid_runs_and_ends(project):
    write_grid('seed=1', 'seed=9', '{"seed": 3, "slurm.tasks_per_node": 2}')
    result = dora('grid', 'my')  # with its table, until all is done
    assert result.returncode == 0, result.stderr
    assert 'COMPLETED' in result.stdout and 'FAILED' in result.stdout and 'Next update' not in result.stdout
    assert [state_of(job_of(seed)) for seed in (1, 9, 3)] == ['COMPLETED', 'FAILED', 'COMPLETED']
    assert [count(3, rank) for rank in (0, 1)] == [4, 4] and count(1) == 4
    assert 'from 0 1 1\n' in log_of(1), 'one worker, one thread'
    shown = dora('info', '-f', folder_of(9).name, '-l', '-v')
    assert 'ValueError: nine' in shown.stdout and 'epochs: 4' in shown.stdout
    assert str(folder_of(3)) in dora('info', '-j', job_of(3)).stderr

    done = job_of(1)
    write_grid('seed=1', 'seed=9', 'seed=5')
    more = dora('grid', 'my', '--retry')
    assert more.returncode == 0 and more.stderr.count('Scheduled') == 2
    assert job_of(1) == done and state_of(job_of(5)) == 'COMPLETED'


def test_clear_cancel_and_resume(project):
    write_grid('seed=1', 'seed=7')
    assert dora('grid', 'my', '--no_monitor').returncode == 0
    first = job_of(7)
    wait_until(lambda: count(7) == 2)
    refused = dora('grid', 'my', '--clear')
    assert refused.returncode == 1 and refused.stderr.count('\n') == 1 and '--yes' in refused.stderr
    assert count(7) == 2 and state_of(first) == 'RUNNING'
    # The folder goes when the job has gone, and a new job begins.
    assert dora('grid', 'my', 'seed=7', '--clear', '--yes', '--no_monitor').returncode == 0
    assert state_of(first) == 'CANCELLED' and job_of(7) != first
    wait_until(lambda: count(7) == 2)
    assert 'from 0' in log_of(7)

    second = job_of(7)
    assert dora('grid', 'my', 'seed=7', '--cancel').returncode == 0
    wait_until(lambda: state_of(second) == 'CANCELLED')
    wait_until(lambda: state_of(job_of(1)) == 'COMPLETED')
    Path('go').touch()
    assert dora('grid', 'my', '--retry').returncode == 0
    assert count(7) == 4 and 'from 2' in log_of(7)


def test_ctrl_c_ends_the_watching_alone(project):
    write_grid('seed=7', 'seed=1')
    process = sp.Popen(command('grid', 'my'), stdout=sp.PIPE, stderr=sp.PIPE, text=True, stdin=sp.DEVNULL,
                       start_new_session=True)
    shown = [process.stdout.readline() for _ in range(5)]
    assert 'seed=7' in ''.join(shown)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 130 and 'Traceback' not in errors
    assert out.splitlines()[-1].startswith('No longer watching')
    wait_until(lambda: count(7) == 2)
    assert state_of(job_of(7)) == 'RUNNING'

    write_grid('seed=1')  # what leaves the file is cancelled
    assert 'no longer required' in dora('grid', 'my', '--no_monitor').stderr
    wait_until(lambda: state_of(job_of(7)) == 'CANCELLED')


def test_launch(project):
    argv = ['solver=count', 'seed=7', 'slurm.gpus=0']
    assert dora('launch', '--no_tail', *argv).returncode == 0
    wait_until(lambda: count(7) == 2)
    assert dora('launch', '--cancel', *argv).returncode == 0
    wait_until(lambda: state_of('L1') == 'CANCELLED')


def test_git_save_outside_of_a_repository(project, monkeypatch):
    monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(project.parent))
    result = dora('run', '--git_save', 'solver=count')
    assert result.returncode == 1 and result.stderr.startswith('error: git_save') and result.stderr.count('\n') == 1


def test_slurm_that_is_not_there(project, monkeypatch):
    monkeypatch.setenv('PATH', str(project))
    Path('team.yaml').write_text(f'default: {{dora_dir: {project}/out, launcher: slurm}}')
    write_grid('seed=1')
    result = dora('grid', 'my', '--no_monitor')
    assert result.returncode == 1 and result.stderr.startswith('error: The launcher is "slurm"')
    assert result.stderr.count('\n') == 1
