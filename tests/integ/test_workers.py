"""Several processes that train one XP, as users start them: `dora run -d` and `torchrun`."""

import json
import os
import signal
import subprocess as sp
import sys
import time
from pathlib import Path

import pytest

from audiocraft.launch.workers import free_port
from audiocraft.utils.terminal import VARIABLE

pytestmark = [pytest.mark.integ, pytest.mark.skipif(not hasattr(os, 'killpg'), reason='needs the signals of POSIX')]
ROOT = Path(__file__).resolve().parents[2]
SOLVER = """
import json, os, sys, time
import flashy, torch
from audiocraft import distrib
from audiocraft.utils.signals import StopFlag

class Solver(flashy.BaseSolver):
    def __init__(self, cfg):
        super().__init__()
        self.steps, self.fails_at = cfg.optim.epochs, cfg.optim.fails_at

    def write(self, name, content):
        path = self.folder / f'{name}_{distrib.rank()}.json'
        path.with_suffix('.tmp').write_text(json.dumps(content))
        path.with_suffix('.tmp').rename(path)

    def run(self):
        with StopFlag() as flag:
            for step in range(self.steps):
                self.step(step)
                if distrib.agree(flag.requested is not None):
                    flag.request()
                    self.write('saved', step)
                    sys.exit(flag.exit_code)
        self.write('done', self.total)

    def step(self, step):
        if step == self.fails_at and distrib.rank() == 1:
            raise ValueError('one of us fails')
        self.total = distrib.all_reduce(torch.tensor([distrib.rank() + 1.])).item()
        self.write('step', {'pid': os.getpid(), 'local': distrib.local_rank(), 'world': distrib.world_size(),
                            'threads': torch.get_num_threads()})
        time.sleep(0.01)
"""
YAML = """# @package _global_
defaults: [/solver/default, _self_]
solver: {_target_: shared_project.Solver}
allow_targets: [shared_project]
device: cpu
optim: {epochs: 5, fails_at: null}
"""
DORA = ('dora', '-P', 'audiocraft')
FOREVER = 'optim.epochs=100000000'


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a solver, which is the current one; XPs go to `out`."""
    (tmp_path / 'config' / 'solver').mkdir(parents=True)
    (tmp_path / 'config' / 'solver' / 'shared.yaml').write_text(YAML)
    (tmp_path / 'shared_project.py').write_text(SOLVER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PYTHONPATH', f'{ROOT}{os.pathsep}{tmp_path}')
    monkeypatch.setenv('AUDIOCRAFT_DORA_DIR', str(tmp_path / 'out'))
    for name in ('MASTER_PORT', 'RANK', 'WORLD_SIZE', 'OMP_NUM_THREADS', VARIABLE):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def start(*args):
    return sp.Popen([sys.executable, '-m', *args], stdin=sp.DEVNULL, stderr=sp.PIPE, text=True,
                    start_new_session=True)


def finish(process):
    """What a process printed when it has ended, and its exit status."""
    said = process.communicate(timeout=300)[1]
    return process.returncode, said


def run(*args):
    return finish(start(*args))


def dora(*args):
    """Two workers that train until something ends them; returns the parent when they do."""
    process = start(*DORA, 'run', '-d', '--ddp_workers', '2', 'solver=shared', *args)
    wait_until(lambda: process.poll() is not None or len(facts('step')) == 2)
    assert process.poll() is None, finish(process)
    return process


def facts(name):
    """The contents of what the ranks wrote, by rank."""
    return [json.loads(path.read_text()) for path in sorted(Path('out').glob(f'xps/*/{name}_?.json'))]


def wait_until(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'it never came'
        time.sleep(0.1)


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def gone():
    """At the end nothing is left of what has run, and nothing survives a test that fails."""
    yield
    left = [fact['pid'] for fact in facts('step') if is_alive(fact['pid'])]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def test_the_ways_to_start(project, gone):
    status, said = run(*DORA, 'run', '-d', 'solver=shared')
    assert status == 0, said
    (folder,) = (project / 'out' / 'xps').iterdir()
    assert facts('done') == [3, 3] and f'XP {folder.name} in {folder}' in said
    assert [(fact['local'], fact['world']) for fact in facts('step')] == [(0, 2), (1, 2)]
    (folder / 'old').touch()
    # From the signature, and from the signature with another override, which is another XP.
    assert run(*DORA, 'run', '-d', '--ddp_workers', '2', '-f', folder.name)[0] == 0
    log = (folder / 'worker_1.log').read_text()
    assert log.count('-m dora -P audiocraft --main_module train run -- solver=shared\n') == 2
    status, said = run(*DORA, 'run', '--ddp_workers=2', '-d', '-f', folder.name, 'dataset.batch_size=32')
    assert status == 0 and len(list((project / 'out' / 'xps').iterdir())) == 2, said
    status, said = run(*DORA, 'run', '--clear', '-d', '--ddp_workers', '1', 'solver=shared')
    assert status == 0 and not (folder / 'old').exists() and not (folder / 'worker_1.log').exists(), said


def test_torchrun(project, gone):
    signature = [sys.executable, '-m', 'audiocraft', 'sig', 'solver=shared']
    status, said = run('torch.distributed.run', '--standalone', '--nproc_per_node=2', '-m', 'audiocraft.train',
                       'solver=shared')
    assert status == 0, said
    (folder,) = (project / 'out' / 'xps').iterdir()
    assert facts('done') == [3, 3]
    assert folder.name in sp.run(signature, capture_output=True, text=True, check=True).stdout
    nodes = [start('torch.distributed.run', '--nnodes=2', f'--node_rank={node}', '--master_addr=127.0.0.1',
                   f'--master_port={port}', '--nproc_per_node=1', '-m', 'audiocraft.train', 'solver=shared', 'seed=5')
             for port in [free_port()] for node in range(2)]
    ended = [finish(node) for node in nodes]
    assert [status for status, _ in ended] == [0, 0], ended
    (other,) = set((project / 'out' / 'xps').iterdir()) - {folder}
    results = [json.loads((other / f'step_{rank}.json').read_text()) for rank in range(2)]
    assert [(fact['local'], fact['world']) for fact in results] == [(0, 2), (0, 2)]


def test_the_parent_is_asked_to_stop(project, gone):
    process = dora(FOREVER)
    process.send_signal(signal.SIGTERM)
    status, said = finish(process)
    assert status == 143 and len(facts('saved')) == 2, said
    assert len(set(facts('saved'))) == 1 and 'Traceback' not in said and 'failed' not in said
    assert {fact['threads'] for fact in facts('step')} == {max(1, len(os.sched_getaffinity(0)) // 2)}


def test_one_worker_is_asked_to_stop(project, gone):
    process = dora(FOREVER)
    os.kill(facts('step')[0]['pid'], signal.SIGTERM)  # the process that the lock of the XP names
    status, said = finish(process)
    assert status == 143 and len(facts('saved')) == 2 and 'failed' not in said, said


def test_ctrl_c(project, gone):
    process = dora(FOREVER)
    process.send_signal(signal.SIGINT)
    status, said = finish(process)
    assert status == 130 and len(facts('saved')) == 2 and 'Traceback' not in said, said


def test_the_parent_is_killed(project, gone):
    process = dora(FOREVER)
    process.kill()
    wait_until(lambda: not any(is_alive(fact['pid']) for fact in facts('step')))
    process.communicate()
    assert len(facts('saved')) == 2


def test_a_worker_fails(project, gone):
    status, said = run(*DORA, 'run', '-d', '--ddp_workers', '2', 'solver=shared', 'optim.fails_at=3', FOREVER)
    (folder,) = (project / 'out' / 'xps').iterdir()
    assert status == 1, said
    report = said[said.index('Worker 1 failed (exit status 1). The end of its log'):]
    assert f'{folder / "worker_1.log"}:' in report and 'ValueError: one of us fails' in report


def test_a_worker_is_killed(project, gone):
    process = dora(FOREVER)
    os.kill(facts('step')[1]['pid'], signal.SIGKILL)
    status, said = finish(process)
    assert status == 1 and 'Worker 1 was killed by SIGKILL (out of memory?)' in said, said


def test_wrong_overrides_start_nothing(project):
    status, said = run(*DORA, 'run', '-d', 'solver=shard')
    assert status == 1 and said.startswith('error: ') and 'Traceback' not in said
    assert not Path('out/xps').exists()
