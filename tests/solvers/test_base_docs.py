"""The solver of docs/TRAINING.md runs as it stands there."""

import abc
import re
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml

from audiocraft.utils.config import flatten

from .conftest import EMA, Runner, compose_config

PAGE = (Path(__file__).parents[2] / 'docs' / 'TRAINING.md').read_text(encoding='utf-8')


def block(language: str, containing: str) -> str:
    found = [text for text in re.findall(rf'```{language}\n(.*?)```', PAGE, re.S) if containing in text]
    assert len(found) == 1
    return found[0]


def load(code: str) -> type:
    module = types.ModuleType('my_project_solvers')
    sys.modules[module.__name__] = module
    exec(compile(code, 'docs/TRAINING.md', 'exec'), module.__dict__)
    return module.MyNewSolver


@pytest.fixture
def settings() -> list[str]:
    node = yaml.safe_load(block('yaml', 'my_project.solvers.MyNewSolver'))
    assert node['defaults'] == ['/solver/default', '_self_']
    return [f'{key}={value}' for section in ('dataset', 'optim') for key, value in
            flatten({section: node[section]}).items()]


@pytest.mark.parametrize('average', [[], EMA], ids=['plain', 'ema'])
def test_it_trains(tmp_path, settings, average):
    runner = Runner(tmp_path, load(block('python', 'class MyNewSolver')), *settings, *average)
    solver = runner.run()
    first, last = solver.history[0], solver.history[-1]
    assert solver.update == 400 and len(solver.history) == 4
    assert last['valid']['loss'] < 0.2 * first['train']['loss']
    assert last['evaluate']['mse'] < 0.05 and (runner.xp_folder / 'weight.pt').exists()
    assert set(torch.load(runner.xp_folder / 'weight.pt', weights_only=True).shape) == {1, 4}


def test_it_resumes(tmp_path, settings):
    solver_class = load(block('python', 'class MyNewSolver'))

    class Stopping(solver_class):
        armed = True

        def run_step(self, idx, batch, metrics):
            if self.is_training and self.update == 137 and Stopping.armed:
                Stopping.armed = False
                self.stop.request('SIGUSR1')
            return super().run_step(idx, batch, metrics)

    whole = Runner(tmp_path / 'whole', solver_class, *settings).run()
    parts = Runner(tmp_path / 'parts', Stopping, *settings)
    with pytest.raises(SystemExit) as stopped:
        parts.run()
    assert stopped.value.code == 0
    resumed = parts.run()
    assert torch.equal(resumed.model.weight, whole.model.weight)
    assert [entry['train']['loss'] for entry in resumed.history] == [e['train']['loss'] for e in whole.history]


def test_abstract_methods_and_relative_imports_do_not_matter(tmp_path, settings):
    code = block('python', 'class MyNewSolver').replace('from audiocraft import optim', 'from .. import optim')
    code = code.replace('from audiocraft.solvers import base', 'from . import base')
    code = code.replace('    def evaluate(self)', '    @abstractmethod\n    def evaluate(self)')
    module = types.ModuleType('audiocraft.solvers.mynew')
    module.__package__ = 'audiocraft.solvers'
    module.abstractmethod = abc.abstractmethod
    exec(compile(code, 'docs/TRAINING.md', 'exec'), module.__dict__)
    Runner(tmp_path, module.MyNewSolver, *settings, 'optim.epochs=1', 'optim.updates_per_epoch=3').run()


def test_keys_of_the_page_exist():
    known = flatten({key: value for key, value in compose_config().items()})
    for name in re.findall(r'`((?:optim|dataset|checkpoint|logging|evaluate|generate)\.[a-z_.]+)[=:`]', PAGE):
        assert any(key == name or key.startswith(f'{name}.') for key in known), name
