"""The table of `dora grid`, how its watching ends, `--clear`, and the command line around them."""

import argparse
import importlib
import json
import os
import subprocess as sp
import sys
import time
import types
from pathlib import Path

import dora.__main__
import dora.grid
import pytest
import treetable as tt
from dora import Explorer
from dora.grid import RunGridArgs

from audiocraft import dora_compat
from audiocraft.cli import forward
from audiocraft.launch import grids
from audiocraft.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
dora_compat.install()


class Job:
    """A job that is done after some looks."""

    def __init__(self, looks):
        self.looks, self.job_id, self.updates = looks, 'L1', 0
        self.watcher = self

    def update(self):
        self.updates += 1

    def is_done(self):
        self.looks -= 1
        return self.looks < 0


class Columns(Explorer):
    """A table with one metric, by the old way of giving it."""

    def get_grid_metrics(self):
        return [tt.leaf('epoch'), tt.group('train', [tt.leaf('grad_norm', '.2f')])]

    def process_history(self, history):
        return {'epoch': len(history), 'train': {'grad_norm': 0.5}}


def herd(*jobs):
    """XPs with these jobs, or with None."""
    def sheep(index, job):
        return types.SimpleNamespace(job=job, is_done=job.is_done if job else lambda: True, current_job_id='L1',
                                     state=lambda: 'COMPLETED' if job else None,
                                     xp=types.SimpleNamespace(sig=f'0000000{index}'))
    return [sheep(index, job) for index, job in enumerate(jobs)]


MAIN = types.SimpleNamespace(get_names=lambda xps: ([f'lr={index}' for index in range(len(xps))], 'solver=x'),
                             get_xp_history=lambda xp: [{}] * (4 if xp.sig[-1] == '1' else 3))


def watch(sheep, capsys, **args):
    finished = grids.monitor(RunGridArgs(**args), MAIN, Columns(lambda launcher: None), sheep, print)
    return finished, capsys.readouterr().out


def test_one_table(capsys):
    finished, out = watch(herd(None, Job(0)), capsys)
    assert finished and out.count('index') == 1
    assert all(word in out for word in ('All: solver=x', 'grad_norm', 'COMPLETED', 'N/A', '00000001', '0.50', 'lr=1'))
    assert '\x1b' not in out and 'Next update' not in out
    lines = [line.split() for line in out.splitlines() if '0000000' in line]
    assert [line[line.index('|') + 1] for line in lines] == ['3', '4']


@pytest.mark.parametrize('args, epochs', [({'trim': 0}, ['3', '3']), ({'trim_last': True}, ['3', '3'])])
def test_trim(capsys, args, epochs):
    out = watch(herd(None, None), capsys, **args)[1]
    lines = [line.split() for line in out.splitlines() if '0000000' in line]
    assert [line[line.index('|') + 1] for line in lines] == epochs


def test_watching_ends_when_all_is_done(capsys, monkeypatch):
    naps = []
    monkeypatch.setattr(time, 'sleep', naps.append)
    job = Job(5)
    finished, out = watch(herd(job), capsys, interval=5)
    assert finished and out.count('index') == 2 and naps == [1] * 5 and job.updates == 2
    finished, out = watch(herd(Job(200)), capsys, interval=1)
    assert finished and out.count('index') == 5
    finished, out = watch(herd(Job(5)), capsys, monitor=False)
    assert not finished and out.count('index') == 1


def test_countdown_on_a_terminal_only(capsys, monkeypatch):
    monkeypatch.setattr(time, 'sleep', lambda seconds: None)
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    out = watch(herd(Job(2)), capsys)[1]
    assert 'Next update in 300 seconds' in out and '\x1b[1m' in out


def test_interrupt_is_one_line(capsys, monkeypatch):
    def interrupted(seconds):
        raise KeyboardInterrupt
    monkeypatch.setattr(time, 'sleep', interrupted)
    with pytest.raises(SystemExit) as caught:
        watch(herd(Job(5)), capsys)
    assert caught.value.code == 130
    assert capsys.readouterr().out.splitlines()[-1].startswith('No longer watching. The jobs go on')


def test_monitor_is_ours():
    assert dora.grid.monitor is grids.monitor


# -- --clear --------------------------------------------------------------------------------------------------------

def ask(monkeypatch, *flags, terminal=False):
    args = forward.extended(dora.__main__.get_parser()).parse_args(['grid', 'x', *flags])
    monkeypatch.setattr(sys.stdin, 'isatty', lambda: terminal)
    grids._ask_before_clear(args)
    return getattr(args, '_from_commandline', True)


def test_clear_wants_to_be_meant(monkeypatch):
    assert ask(monkeypatch) and ask(monkeypatch, '--yes')
    assert ask(monkeypatch, '--clear', terminal=True), 'Dora asks'
    assert not ask(monkeypatch, '--clear', '--yes') and not ask(monkeypatch, '--clear', '-y', terminal=True)
    with pytest.raises(UserError, match='--yes') as caught:
        ask(monkeypatch, '--clear')
    assert '\n' not in str(caught.value)
    grids._ask_before_clear(argparse.Namespace(grid='x'))  # Dora's own parser, or a notebook


# -- the command line -----------------------------------------------------------------------------------------------

def test_flags_and_help(capsys):
    parser = forward.extended(dora.__main__.get_parser())
    assert not parser.parse_args(['grid', 'x', '--no_monitor']).monitor
    assert parser.parse_args(['-v', 'info']).verbose and parser.parse_args(['info', '-v']).verbose
    assert not parser.parse_args(['info']).verbose
    for verb, words in {'grid': ['--yes', '--no_monitor', 'queue'], 'info': ['--verbose', 'config'],
                        'run': ['Flags go before'], 'launch': ['log']}.items():
        with pytest.raises(SystemExit):
            parser.parse_args([verb, '--help'])
        out = ' '.join(capsys.readouterr().out.split())
        assert all(word in out for word in words), out


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('DORA_PACKAGE', 'DORA_MAIN_MODULE'):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def package(folder, name, module='train'):
    (folder / name).mkdir()
    (folder / name / '__init__.py').touch()
    (folder / name / f'{module}.py').touch()


def test_which_package_a_command_is_for(folder, monkeypatch):
    assert forward.package_of(['run', 'a=1']) == 'audiocraft'
    assert forward.package_of(['-P', 'other', 'run']) == forward.package_of(['--package=other', 'run']) == 'other'
    assert forward.package_of(['run', '--', '-P', 'x']) == 'audiocraft'
    package(folder, 'mine')
    package(folder, 'helpers', 'other')
    assert forward.package_of(['-v', 'run']) == 'mine'
    assert forward.package_of(['--main_module', 'other', 'run']) == 'helpers'
    package(folder, 'second')
    assert forward.package_of(['run']) is None
    monkeypatch.setenv('DORA_PACKAGE', 'audiocraft')
    assert forward.package_of(['run']) == 'audiocraft'


@pytest.mark.parametrize('given, ours', [(['run', 'a=1'], True), (['-P', 'audiocraft', '-v', 'info', 'x=1'], True),
                                         (['-P', 'other', 'run', 'a=1'], False)])
def test_other_projects_get_doras_own(folder, monkeypatch, given, ours):
    seen = []
    monkeypatch.setattr(dora.__main__, 'main', lambda: seen.append((sys.argv, os.environ.get('DORA_PACKAGE'))))
    monkeypatch.setattr(sys, 'argv', ['/bin/dora', *given])
    monkeypatch.setenv('DORA_PACKAGE', '')
    assert forward.dora() == 0
    rest = given[2:] if given[0] == '-P' else given
    assert seen == [(['dora', *rest], 'audiocraft') if ours else (['/bin/dora', *given], '')]


@pytest.mark.parametrize('error, status, said', [
    (UserError('mend this'), 1, 'error: mend this\n'), (KeyboardInterrupt(), 130, ''),
    (EOFError(), 1, 'error: There is nobody to answer the question: nothing was done.\n'),
])
def test_errors_without_tracebacks(folder, monkeypatch, capsys, error, status, said):
    def fail():
        raise error
    monkeypatch.setattr(dora.__main__, 'main', fail)
    monkeypatch.setenv('DORA_PACKAGE', '')
    assert forward.dora(['run', 'x=1']) == status
    assert capsys.readouterr().err == said


def test_script_is_installed(monkeypatch):
    import runpy

    import setuptools
    seen = {}
    monkeypatch.setattr(setuptools, 'setup', lambda **kwargs: seen.update(kwargs))
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / 'setup.py'))
    (script,) = seen['entry_points']['console_scripts']
    name, _, target = script.partition(' = ')
    module, _, function = target.partition(':')
    assert name == 'dora' and module == forward.__name__ and callable(getattr(forward, function))


def test_a_wrong_override_in_a_grid_is_one_error(folder):
    (folder / 'grids').mkdir()
    (folder / 'grids' / '__init__.py').touch()
    (folder / 'grids' / 'x.py').write_text("from dora import Explorer\n@Explorer\ndef explorer(launcher):\n"
                                           "    launcher({'solver': 'mmaudio/debug', 'optim.lrr': 3})\n")
    result = sp.run([sys.executable, '-c', 'import sys; from audiocraft.cli.forward import dora; sys.exit(dora())',
                     'grid', 'x', '--dry_run'], capture_output=True, text=True, stdin=sp.DEVNULL,
                    env={**os.environ, 'PYTHONPATH': str(ROOT), 'AUDIOCRAFT_DORA_DIR': str(folder / 'out')})
    assert result.returncode == 1 and result.stderr.startswith('error: ') and 'optim.lr' in result.stderr
    assert 'Traceback' not in result.stderr


# -- the columns ----------------------------------------------------------------------------------------------------

grids._import_our_grids()
explorers = importlib.import_module(f'{grids.OUR_GRIDS}._explorers')


def training(folder, lines, epochs=4, done=False):
    (folder / 'metrics.jsonl').write_text(''.join(lines))
    xp = types.SimpleNamespace(folder=folder, cfg=types.SimpleNamespace(optim=types.SimpleNamespace(epochs=epochs)))
    return types.SimpleNamespace(xp=xp, is_done=lambda: done, log=folder / 'metrics.jsonl')


def line(**entry):
    known = {'kind': 'step', 'stage': 'train', 'epoch': 2, 'update': 150, 'eta': 25., 'speed': 2.}
    return json.dumps({**known, **entry}) + '\n'


def test_time_left(tmp_path):
    # 50 of 100 updates of epoch 2 are left, and 2 epochs of 100: 250 updates at 2 per second.
    other = [line(stage='valid', eta=1.), line(kind='stage'), '{"kind": "st']
    sheep = training(tmp_path, [line(update=10), line(), *other])
    wrote = sheep.log.stat().st_mtime
    assert explorers.time_left(sheep, [{}], now=wrote) == '2m'
    assert explorers.time_left(sheep, [{}], now=wrote + 100) == '25s'
    assert explorers.time_left(sheep, [{}], now=wrote + 1000) == '0s'
    assert explorers.ping(sheep, now=wrote + 1000) == '17m'
    assert explorers.time_left(sheep, [{}] * 4) is None, 'all epochs are done'
    assert explorers.time_left(training(tmp_path, [line()], done=True), []) is None
    for lines in ([], [line(eta=None)], [line(speed=0)], [line(stage='valid')], ['no json\n']):
        assert explorers.time_left(training(tmp_path, lines), []) is None
    (tmp_path / 'metrics.jsonl').unlink()
    assert explorers.last_step(sheep) is None


def test_long_metrics_are_read_from_their_end(tmp_path):
    sheep = training(tmp_path, [line(epoch=1)] * 2000 + [line(epoch=3, pad='x' * 100)])
    assert explorers.last_step(sheep)['epoch'] == 3


@pytest.mark.parametrize('seconds, text', [(-3, '0s'), (99, '99s'), (100, '2m'), (7200, '2h'), (400_000, '5d')])
def test_short_time(seconds, text):
    assert explorers.short_time(seconds) == text


@pytest.mark.parametrize('name', ['BaseExplorer', 'GenerationExplorer', 'CompressionExplorer'])
def test_columns_and_values_agree(tmp_path, name):
    explorer = getattr(explorers, name)(lambda launcher: None)
    values = explorer.process_sheep(training(tmp_path, [line()]), [{'train': {'loss': 1., 'other': 2.}, 'valid': {}}])
    assert {column.key for column in explorer.get_grid_metrics()} == set(values)
    assert values['train'] == {'loss': 1.} and values['ETA'] and values['epoch'] == 1
