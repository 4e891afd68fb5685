"""The entry point, with solvers of a project of its own: `config/solver/*.yaml` in the launch folder."""

import json
import os
import signal
import subprocess as sp
import sys
import textwrap
import time
from pathlib import Path

import pytest

from audiocraft import train
from audiocraft.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
SOLVER = textwrap.dedent('''
    import json, os, time
    import flashy
    from audiocraft.utils.errors import UserError

    class Solver(flashy.BaseSolver):
        """A plain solver of flashy, from scratch."""
        def __init__(self, cfg):
            super().__init__()
            self.cfg = cfg
            self.stages = []

        def run(self):
            self.stages.append('run')
            (self.folder / 'ran.json').write_text(json.dumps(self.cfg.optim.epochs))
            if self.cfg.optim.epochs == 13:
                raise ValueError('thirteen')
            if self.cfg.optim.epochs == 14:
                raise UserError('fourteen is too many: 13 at most')
            while self.cfg.optim.epochs == 15:
                time.sleep(0.05)

        def run_one_stage(self, stage):
            self.stages.append(stage)

        def show(self):
            self.stages.append('show')

        def restore(self):
            self.stages.append('restore')
            return self.cfg.optim.epochs != 16

    made = []
    class Remembered(Solver):
        def __init__(self, cfg):
            super().__init__(cfg)
            made.append(self)
''')
YAML = '# @package _global_\ndefaults: [/solver/default, _self_]\nsolver: {{_target_: toy_project.{}}}\n' \
       'allow_targets: [toy_project]\noptim: {{epochs: 2}}\nlogging: {{level: info}}\n'


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder that is not the checkout, with a solver, and the current folder during the test."""
    (tmp_path / 'config' / 'solver').mkdir(parents=True)
    for name in ('Solver', 'Remembered'):
        (tmp_path / 'config' / 'solver' / f'{name.lower()}.yaml').write_text(YAML.format(name))
    (tmp_path / 'toy_project.py').write_text(SOLVER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(train.main, '_bases', {})
    monkeypatch.setattr(train.main.dora, 'dir', tmp_path / 'out')
    monkeypatch.setenv('AUDIOCRAFT_DORA_DIR', str(tmp_path / 'out'))
    yield tmp_path
    sys.modules.pop('toy_project', None)


def run_in_xp(*argv):
    """What `main` does with a config, in this process; returns the solvers that were made."""
    xp = train.main.get_xp(argv)
    train.main.init_xp(xp)
    with xp.enter():
        train.run(xp.cfg)
    return sys.modules['toy_project'].made


@pytest.mark.parametrize('argv, stages', [
    ([], ['run']), (['show=true'], ['show']), (['execute_only=evaluate'], ['evaluate']),
])
def test_what_a_run_does(project, argv, stages):
    assert run_in_xp('solver=remembered', *argv)[-1].stages == stages


def test_solver_of_an_xp(project):
    run_in_xp('solver=remembered', 'seed=7')
    sig = train.main.get_xp(['solver=remembered', 'seed=7']).sig
    solver = train.get_solver_from_sig(sig, {'device': 'cuda', 'optim.epochs': 5})
    assert (solver.cfg.seed, solver.cfg.device, solver.cfg.optim.epochs) == (7, 'cuda', 5)
    assert solver.stages == ['restore'] and solver.xp.sig == sig
    assert train.get_solver_from_sig(sig, restore=False).stages == []
    with pytest.raises(UserError, match='no checkpoint'):
        train.get_solver_from_sig(sig, {'optim.epochs': 16})


def test_target_must_be_allowed(project):
    yaml = project / 'config' / 'solver' / 'solver.yaml'
    yaml.write_text(yaml.read_text().replace('toy_project.Solver', 'subprocess.Popen'))
    with pytest.raises(UserError, match='subprocess.Popen'):
        run_in_xp('solver=solver')


def test_seeds_come_first(project):
    import torch
    run_in_xp('solver=remembered', 'seed=3')
    first = torch.rand(3)
    run_in_xp('solver=remembered', 'seed=3')
    assert first.equal(torch.rand(3))


def command(*args):
    return [sys.executable, '-m', *args]


def environment():
    return {**os.environ, 'PYTHONPATH': f'{ROOT}{os.pathsep}{Path.cwd()}'}


def launch(*args):
    return sp.run(command(*args), capture_output=True, text=True, env=environment(), stdin=sp.DEVNULL)


def test_the_three_ways_to_start_agree(project):
    results = [launch('audiocraft.train', 'solver=solver'), launch('audiocraft', 'run', 'solver=solver')]
    assert [result.returncode for result in results] == [0, 0], results
    (xp,) = (project / 'out' / 'xps').iterdir()
    assert json.loads((xp / '.argv.json').read_text()) == ['solver=solver']
    assert json.loads((xp / 'ran.json').read_text()) == 2
    log = (xp / 'solver.log.0').read_text()
    assert log.count(f'XP {xp.name}') == 2 and '\x1b' not in log
    assert xp.name == train.main.get_xp(['solver=solver']).sig


@pytest.mark.parametrize('epochs, status, said, logged', [
    (13, 1, 'ValueError: thirteen', True), (14, 1, 'error: fourteen is too many: 13 at most\n', False),
])
def test_errors_of_a_run(project, epochs, status, said, logged):
    result = launch('audiocraft.train', 'solver=solver', f'optim.epochs={epochs}')
    assert result.returncode == status and said in result.stderr
    (xp,) = (project / 'out' / 'xps').iterdir()
    assert (said in (xp / 'solver.log.0').read_text()) == logged
    assert ('Traceback' in result.stderr) == logged and 'HYDRA' not in result.stderr


@pytest.mark.parametrize('argv, said', [
    ([], 'Choose a solver with solver=..., one of:'),
    (['solver=solvre'], 'did you mean "solver"?'),
    (['solver=solver', 'optim.lrr=1'], 'did you mean "optim.lr"?'),
])
def test_wrong_overrides_are_two_or_three_lines(project, argv, said):
    result = launch('audiocraft', 'run', *argv)
    assert result.returncode == 1 and said in result.stderr
    assert result.stderr.startswith('error: ') and 'Traceback' not in result.stderr
    assert not (project / 'out' / 'xps').exists()


def wait_for(path, process):
    for _ in range(600):
        if path.exists():
            return
        assert process.poll() is None, 'the run ended too early'
        time.sleep(0.1)
    raise AssertionError(f'{path} never came')


def test_one_run_at_a_time(project):
    argv = ['solver=solver', 'optim.epochs=15']
    folder = train.main.get_xp(argv).folder
    process = sp.Popen(command('audiocraft.train', *argv), env=environment(), stdin=sp.DEVNULL, stderr=sp.DEVNULL)
    try:
        wait_for(folder / 'ran.json', process)
        for args in (['audiocraft.train', *argv], ['audiocraft', 'run', '--clear', *argv]):
            result = launch(*args)
            assert result.returncode == 1 and f'process {process.pid}' in result.stderr, result.stderr
        assert (folder / 'ran.json').exists() and process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert launch('audiocraft', 'run', '--clear', 'solver=solver').returncode == 0
