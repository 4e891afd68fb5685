"""The package as others get it: a wheel with config, grids and commands; exact versions; the installer."""

import os
import shutil
import subprocess as sp
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
LOCKED_EXTRAS = ('video', 'plots', 'tensorboard', 'dev')


def setup_arguments(monkeypatch):
    """What setup.py gives to `setup`."""
    import runpy

    import setuptools
    seen = {}
    monkeypatch.setattr(setuptools, 'setup', lambda **kwargs: seen.update(kwargs))
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / 'setup.py'))
    return seen


def locked(python):
    """The pinned version of each package for a Python version."""
    lines = [line for line in (ROOT / 'requirements.lock').read_text().splitlines() if line and line[0] not in ' #']
    environment = {'python_version': python, 'python_full_version': f'{python}.5', 'sys_platform': 'linux',
                   'platform_python_implementation': 'CPython', 'implementation_name': 'cpython'}
    pins = {}
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            (specifier,) = requirement.specifier
            assert specifier.operator == '==' and requirement.name not in pins
            pins[requirement.name] = specifier.version
    return pins


@pytest.mark.parametrize('python', ['3.11', '3.12'])
def test_lock_holds_what_setup_asks_for(monkeypatch, python):
    arguments, pins = setup_arguments(monkeypatch), locked(python)
    extras = arguments['extras_require']
    wanted = [*arguments['install_requires'], *(line for extra in LOCKED_EXTRAS for line in extras[extra])]
    for requirement in map(Requirement, wanted):
        assert requirement.name in pins, f'{requirement} is not in requirements.lock'
        assert requirement.specifier.contains(pins[requirement.name]), f'{requirement} is locked otherwise'
    assert pins['torch'].startswith('2.11.') and pins['torchaudio'].startswith('2.11.')


def test_core_is_small(monkeypatch):
    names = {Requirement(line).name for line in setup_arguments(monkeypatch)['install_requires']}
    assert not names & {'scipy', 'pandas', 'librosa', 'tqdm', 'torchvision', 'av', 'matplotlib', 'tensorboard', 'wandb'}


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """A folder with the content of the wheel, made from a copy of the tree."""
    source, target = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('installed')
    for name in ('audiocraft', 'config', 'grids'):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.py', 'pyproject.toml', 'LICENSE'):
        shutil.copy(ROOT / name, source / name)
    sp.run([sys.executable, 'setup.py', '-q', 'bdist_wheel', '-d', str(target)], cwd=source, check=True,
           capture_output=True)
    (wheel,) = target.glob('*.whl')
    with zipfile.ZipFile(wheel) as file:
        file.extractall(target, [name for name in file.namelist() if name.startswith('audiocraft/')])
    return target


def command(installed, cwd, *args):
    """Run the installed package from another folder, with no checkout on the path."""
    environment = {**os.environ, 'PYTHONPATH': str(installed), 'AUDIOCRAFT_DORA_DIR': str(cwd / 'out')}
    return sp.run([sys.executable, '-m', 'audiocraft', *args], capture_output=True, text=True, cwd=cwd, env=environment,
                  stdin=sp.DEVNULL)


def test_wheel_holds_every_file(installed):
    def names(folder, suffix):
        return {path.relative_to(folder).as_posix() for path in folder.rglob(f'*{suffix}')}
    assert names(installed / 'audiocraft' / '_config', '.yaml') == names(ROOT / 'config', '.yaml')
    assert names(installed / 'audiocraft' / '_grids', '.py') == names(ROOT / 'grids', '.py')
    ours = {name for name in names(installed / 'audiocraft', '.py') if not name.startswith(('_grids/', '_config/'))}
    assert ours == names(ROOT / 'audiocraft', '.py')


def test_installed_commands(installed, tmp_path):
    shown = command(installed, tmp_path, '--help')
    assert shown.returncode == 0 and 'mmaudio/debug' in shown.stdout
    argv = ['sig', 'solver=mmaudio/debug', 'seed=5']
    there, here = command(installed, tmp_path, *argv), command(ROOT, tmp_path, *argv)
    assert there.returncode == 0, there.stderr
    assert there.stdout == here.stdout and len(there.stdout.strip()) == 8


def test_installed_grids(installed, tmp_path):
    result = command(installed, tmp_path, 'grid', 'mmaudio.debug', '--dry_run', '--init', '--no_monitoring')
    assert result.returncode == 0, result.stderr
    xps = sorted(path.name for path in (tmp_path / 'out' / 'xps').iterdir())
    assert len(xps) == 3 and all(sig in result.stdout for sig in xps)


def install_script(tmp_path, python, names=()):
    """The installer in a copy of the files it reads, with an interpreter of our choice."""
    (tmp_path / 'scripts').mkdir()
    for name in ('scripts/install.sh', 'requirements.lock', 'setup.py'):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ('python', *names):
        fake = tmp_path / name
        fake.write_text(f'#!/bin/sh\n{python}\n')
        fake.chmod(0o755)
    environment = {'PATH': f'{tmp_path}:/usr/bin:/bin', 'PYTHON': str(tmp_path / 'python'), 'HOME': str(tmp_path)}
    return sp.run(['bash', 'scripts/install.sh'], cwd=tmp_path, capture_output=True, text=True, env=environment)


def test_missing_venv_is_one_clear_line(tmp_path):
    result = install_script(tmp_path, 'case "$2" in *ensurepip*) exit 1;; esac; exit 0')
    assert result.returncode == 1 and 'apt install python3-venv' in result.stderr
    assert result.stderr.count('\n') == 1 and not (tmp_path / '.venv').exists()


def test_wrong_python_is_one_clear_line(tmp_path):
    # Every name that the script tries is one that does not fit.
    result = install_script(tmp_path, 'exit 1', names=('python3.11', 'python3.12'))
    assert result.returncode == 1 and '3.11 or 3.12' in result.stderr


@pytest.mark.parametrize('target', ['install', 'quickstart', 'tests', 'tests_integ', 'soak', 'linter', 'docs'])
def test_make_targets(target):
    result = sp.run(['make', '-n', target], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and 'scripts/install.sh' in result.stdout


@pytest.mark.parametrize('short, flag', [('', False), ('0', False), ('1', True)])
def test_short_quickstart(short, flag):
    command = ['make', '-n', 'quickstart', f'SHORT={short}']
    result = sp.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ('--short' in result.stdout) == flag


def test_shell_scripts_are_sound():
    for name in ('.ci/run', 'scripts/install.sh'):
        sp.run(['bash', '-n', str(ROOT / name)], check=True)
        assert os.access(ROOT / name, os.X_OK) and 'set -euo pipefail' in (ROOT / name).read_text()
