import json
import logging
import shutil
import subprocess as sp
import sys
import types
from pathlib import Path

import dora.grid
import dora.info
import dora.link
import dora.run
import dora.shep
import pytest
from dora.hydra import HydraMain
from dora.shep import Sheep, Shepherd

from audiocraft import dora_compat
from audiocraft.environment import AudioCraftEnvironment
from audiocraft.launch import deltas, grids
from audiocraft.utils.errors import UserError
from audiocraft.utils.lock import XPLock

CONFIG = {
    'config.yaml': """
defaults:
  - _self_
  - model: none
  - schedule: none
  - solver: none
  - override hydra/job_logging: none
  - override hydra/hydra_logging: none
label: null
seed: 1
sizes: [1, 2]
optim: {lr: 1e-3, epochs: 3, adam: {betas: [0.9, 0.99], eps: 1e-8}, total: "${optim.epochs}0"}
logging: {level: info}
slurm: {partition: null, gpus: 0}
dora: {dir: DIR, exclude: ["logging.*"]}
""",
    'solver/none.yaml': '# @package _global_\nsolver: null\n',
    'solver/toy/debug.yaml': """# @package _global_
defaults: [override /model: small, _self_]
solver: {_target_: x.Y}
optim: {epochs: 2}
""",
    'model/none.yaml': '{}\n',
    'model/small.yaml': 'dim: 4\ndepth: 2\n',
    'model/large.yaml': 'dim: 64\ndepth: 12\n',
    'schedule/none.yaml': '# @package _global_\nschedule: null\n',
    'schedule/cosine.yaml': 'warmup: 10\n',
}




@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('project')
    for name, text in CONFIG.items():
        path = root / 'config' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace('DIR', str(root / 'out')))
    return root


def make(kind, root):
    def function(cfg):
        """A new function each time, since Dora writes into it."""
    function.__module__ = 'audiocraft.train'  # Dora wants a module inside of a package
    return kind(function, config_name='config', config_path=str(root / 'config'), version_base='1.3')


@pytest.fixture(scope='module')
def main(root):
    dora_compat.install()
    return make(dora_compat.Main, root)


@pytest.fixture(autouse=True)
def use_root(root, monkeypatch):
    monkeypatch.setattr(grids, 'CONFIG_ROOT', root / 'config')
    monkeypatch.setattr(dora_compat, 'config_folders', lambda: [root / 'config'])


ARGVS = [
    [], ['optim.lr=0.01'], ['optim.lr=1e-2'], ['label='], ['label=null'], ['label="a b"'], ["label='x=y'"],
    ['sizes=[3,4]'], ['optim.adam.betas=[0.5,0.9]'], ['+new.key=3'], ['++optim.lr=2'], ['++other=1'],
    ['+new={a: 1, b: [2, 3]}'], ['optim.lr=1', 'optim.lr=2'], ['model=small'], ['model=small', 'model=large'],
    ['model=none'], ['schedule=cosine', 'schedule.warmup=3'], ['solver=toy/debug'], ['logging.level=debug'],
    ['solver=toy/debug', 'model=large', 'optim.epochs=2'], ['solver=toy/debug', 'optim.epochs=3', 'seed=2'],
    ['optim.epochs=5'], ['+model@other=small'], ['model.dim=3', 'model=large'], ['hydra.verbose=true'],
    ['optim.total=7'], ['seed=1'],
]


def test_same_signatures_as_stock(main, root):
    stock = make(HydraMain, root)
    sigs = {}
    for argv in ARGVS:
        theirs, ours = stock.get_xp(argv), main.get_xp(argv)
        assert (ours.sig, ours.delta, ours.argv) == (theirs.sig, theirs.delta, theirs.argv), argv
        assert ours.cfg == theirs.cfg, argv
        sigs[tuple(argv)] = ours.sig
    assert sigs['optim.lr=0.01',] == sigs['optim.lr=1e-2',] != sigs[()]
    assert sigs['logging.level=debug',] == sigs[()]


def test_fast_path_composes_once_per_groups(main, monkeypatch):
    main.get_xp(['model=small', 'seed=3'])
    monkeypatch.setattr(main, '_get_config_noinit', lambda *args: pytest.fail('composed again'))
    first = main.get_xp(['model=small', 'seed=4'])
    second = main.get_xp(['model=small', 'seed=5'])
    assert first.cfg.seed == 4 and second.cfg.seed == 5
    assert first.sig != second.sig


@pytest.mark.parametrize('argv, words', [
    (['optim.foo=1'], ['"optim.foo"', "'optim'", 'adam, epochs, lr']),
    (['optim.lrr=1'], ['did you mean "optim.lr"?']),
    (['lr=1'], ['did you mean "optim.lr"?']),
    (['solver=toy/debug', 'model.dimm=1'], ['did you mean "model.dim"?']),
    (['solver=toy/debgu'], ['did you mean "toy/debug"?', 'There are: toy/debug.']),
    (['model=huge'], ['There is no model "huge"', 'large, none, small']),
    (['toy/debug'], ['did you mean "solver=toy/debug"?']),
    (['foo'], ['KEY=VALUE']),
    (['--clear'], ['flags go before']),
    (['~label'], ['label=null']),
    (['label=[1,'], ['label=[1,', 'quotes']),
    (['+seed=2'], ['already']),
    (['optim.lr=${nothing}'], ['nothing']),
])
def test_errors_can_be_read(main, argv, words):
    with pytest.raises(UserError) as caught:
        main.get_xp(argv)
    message = str(caught.value)
    assert message.count('\n') <= 2
    assert all(word in message for word in words), message


def test_an_error_leaves_later_signatures_alone(main):
    before = main.get_xp(['optim.lr=5']).sig
    with pytest.raises(UserError):
        main.get_xp(['optim.lr=${nothing}'])
    assert main.get_xp(['optim.lr=5']).sig == before


def test_no_solver_lists_them(main):
    with pytest.raises(UserError, match='toy/debug'):
        main.init_xp(main.get_xp([]))
    assert not main.get_xp([]).folder.exists()


def test_unwritable_folder_is_one_line(main, root, monkeypatch):
    (root / 'file').touch()
    monkeypatch.setattr(main.dora, 'dir', root / 'file')
    with pytest.raises(UserError, match='AUDIOCRAFT_DORA_DIR'):
        main.init_xp(main.get_xp(['solver=toy/debug']))


@pytest.fixture
def xp(main):
    return main.init_xp(main.get_xp(['solver=toy/debug', 'optim.lr=0.5']))


def test_argv_is_written_whole(main, xp, monkeypatch):
    assert json.loads(xp._argv_cache.read_text()) == ['solver=toy/debug', 'optim.lr=0.5']
    assert main.get_xp_from_sig(xp.sig).sig == xp.sig

    def killed(*args):
        raise KeyboardInterrupt
    monkeypatch.setattr('os.replace', killed)
    again = types.SimpleNamespace(folder=xp.folder, _argv_cache=xp._argv_cache, argv=['seed=7'])
    with pytest.raises(KeyboardInterrupt):
        deltas.keep_argv(again)
    assert json.loads(xp._argv_cache.read_text()) == ['solver=toy/debug', 'optim.lr=0.5']


def test_damaged_argv_is_mended_or_named(main, xp, caplog):
    xp._argv_cache.write_text('["solver=t')
    with pytest.raises(UserError, match='argv.json'):
        main.get_argv_from_sig(xp.sig)
    assert 'damaged' in caplog.text
    (xp.folder / '.hydra').mkdir()
    (xp.folder / '.hydra' / 'overrides.yaml').write_text('- solver=toy/debug\n- optim.lr=0.5\n')
    assert main.get_xp_from_sig(xp.sig).sig == xp.sig
    with pytest.raises(RuntimeError, match='Could not find'):
        main.get_argv_from_sig('nothere0')


def test_damaged_history_is_ignored(main, xp, caplog):
    xp.history.write_text('[{"train": {"lo')
    assert main.get_xp_history(xp) == []
    assert 'history.json' in caplog.text


def test_log_of_a_local_xp(xp):
    assert Sheep(xp).log == xp.folder / 'solver.log.0'


def test_log_of_a_job(xp):
    sheep = Sheep(xp)
    sheep.job = types.SimpleNamespace(job_id='12', watcher=None)
    assert sheep.log == xp.submitit / '12_0_log.out'


def test_stale_orphan_without_slurm(main, monkeypatch):
    monkeypatch.setattr(dora_compat.shutil, 'which', lambda name: None)
    Shepherd(main)
    token = main.dora.dir / 'orphans' / 'xp_stale'
    token.touch()
    Shepherd(main)
    assert token.exists()
    token.unlink()


def test_stale_orphan_with_slurm(main, monkeypatch, tmp_path):
    calls = []

    def run(command, **kwargs):
        calls.append(command)
        return sp.CompletedProcess(command, status, stdout='12_1\n12_2\n13\n', stderr='no controller')
    monkeypatch.setattr(dora_compat.shutil, 'which', lambda name: f'/usr/bin/{name}')
    monkeypatch.setattr(dora_compat.sp, 'run', run)
    Shepherd(main)
    token = main.dora.dir / 'orphans' / 'xp_stale'
    token.touch()
    status = 1
    Shepherd(main)
    assert token.exists() and len(calls) == 1
    status = 0
    Shepherd(main)
    assert not token.exists() and calls[-1] == ['scancel', '12', '13']


def test_clear_is_refused_under_a_live_run(main, xp):
    (xp.folder / 'checkpoint').touch()
    with XPLock(xp.folder):
        with pytest.raises(UserError, match='stop it before --clear'):
            dora.run.check_job_and_clear(xp.argv, main, clear=True)
        with pytest.raises(UserError, match='in use'):
            dora.grid.reliable_rmtree(xp.folder)
        dora.run.check_job_and_clear(xp.argv, main, clear=False)
    assert (xp.folder / 'checkpoint').exists()
    dora.run.check_job_and_clear(xp.argv, main, clear=True)
    assert not xp.folder.exists()


def test_verbose_info_prints_the_config(main, xp, capsys):
    shepherd = dora.info.Shepherd(main)
    shepherd.get_sheep_from_argv(xp.argv)
    assert capsys.readouterr().out == ''
    logger = logging.getLogger('dora')
    logger.setLevel(logging.DEBUG)
    try:
        shepherd.get_sheep_from_argv(xp.argv)
    finally:
        logger.setLevel(logging.NOTSET)
    assert "total: '20'" in capsys.readouterr().out


def test_jobs_without_slurm_say_what_to_do(main, xp, monkeypatch):
    monkeypatch.setattr(AudioCraftEnvironment, 'get_launcher', lambda: 'slurm')
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    with pytest.raises(UserError, match='launcher: local'):
        Shepherd(main)._submit(types.SimpleNamespace(sheeps=[Sheep(xp)]))


def test_partition_of_the_team(main, monkeypatch):
    assert main.get_slurm_config().partition == ''
    monkeypatch.setenv('AUDIOCRAFT_TEAM', 'labs')
    monkeypatch.setenv('AUDIOCRAFT_CLUSTER', 'aws')
    AudioCraftEnvironment.reset()
    assert main.get_slurm_config().partition == 'learn'


def grid_args(name):
    return types.SimpleNamespace(grid=name)


def test_grids_of_the_current_folder_go_first(main, tmp_path, monkeypatch):
    ours = tmp_path / 'installed' / 'grids'
    here = tmp_path / 'here' / 'grids'
    text = 'from dora import Explorer\nexplorer = Explorer(lambda launcher: None)\nWHERE = {!r}\n'
    for folder, names in [(ours, ['both', 'only_ours']), (here, ['both', 'sub/mine'])]:
        for name in ['__init__', *names]:
            path = folder / f'{name}.py'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.format(folder.parent.name))
    (here / 'sub' / '__init__.py').touch()
    monkeypatch.setattr(grids, 'CONFIG_ROOT', tmp_path / 'installed' / 'config')
    monkeypatch.chdir(tmp_path / 'here')
    monkeypatch.setattr(sys, 'path', list(sys.path))
    saved = dict(sys.modules)
    try:
        for name in [name for name in sys.modules if name.split('.')[0] == 'grids' or name == grids.OUR_GRIDS]:
            del sys.modules[name]
        for name, package, where in [('both', 'grids', 'here'), ('sub.mine', 'grids', 'here'),
                                     ('only_ours', grids.OUR_GRIDS, 'installed')]:
            dora.grid._get_explore(grid_args(name), main)
            assert sys.modules[f'{package}.{name}'].WHERE == where
        with pytest.raises(UserError, match='did you mean "only_ours"'):
            dora.grid._get_explore(grid_args('only_our'), main)
        with pytest.raises(SystemExit) as caught:
            dora.grid._get_explore(grid_args(None), main)
        assert caught.value.code == 0
        (here / '__init__.py').unlink()
        with pytest.raises(UserError, match='__init__.py'):
            dora.grid._get_explore(grid_args('both'), main)
    finally:
        for name in set(sys.modules) - set(saved):
            del sys.modules[name]
        sys.modules.update(saved)


def test_every_patch_is_in_place(main):
    for owner, name, _ in dora_compat.PATCHES:
        assert hasattr(owner, name), f'Dora has no {owner}.{name} any more'
    assert len(dora_compat._installed) == len(dora_compat.PATCHES)
    before = dora.run.check_job_and_clear
    dora_compat.install()
    assert dora.run.check_job_and_clear is before


def test_user_errors_have_no_traceback():
    code = ('from audiocraft import dora_compat; dora_compat.install()\n'
            'from audiocraft.utils.errors import UserError\nraise UserError("mend this")')
    result = sp.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert (result.returncode, result.stderr) == (1, 'error: mend this\n')
