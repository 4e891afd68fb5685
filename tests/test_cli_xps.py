"""XPs from outside: the list of them, two side by side, commands to one that runs."""

import json
import os
import subprocess as sp
import sys
import threading
import time
from pathlib import Path

import pytest

from audiocraft import environment, weights
from audiocraft.cli import _xps, compare, dispatch
from audiocraft.solvers.control import Control
from audiocraft.utils.errors import UserError
from audiocraft.utils.status import write_status

ROOT = Path(__file__).resolve().parents[1]
BEST = {'metric': 'loss', 'score': 0.51234567, 'update': 4000, 'epoch': 2}


@pytest.fixture
def root(monkeypatch, tmp_path):
    """The folder of all XPs."""
    monkeypatch.setenv('AUDIOCRAFT_DORA_DIR', str(tmp_path))
    (tmp_path / 'xps').mkdir()
    return tmp_path / 'xps'


def make(root, sig, *, argv=('solver=x',), history=None, age=0., **status):
    folder = root / sig
    folder.mkdir()
    (folder / '.argv.json').write_text(json.dumps(argv))
    if history is not None:
        (folder / 'history.json').write_text(json.dumps(history))
    if status:
        write_status(folder, **{'epoch': 3, 'epochs': 10, 'update': 6000, 'best': BEST, 'world_size': 1, **status})
    for path in folder.iterdir():
        when = time.time() - age
        os.utime(path, (when, when))
    return folder


def run(capsys, *argv):
    """The exit status of a command and what it prints."""
    status = dispatch.main(list(argv))
    captured = capsys.readouterr()
    return status, captured.out + captured.err


# -- xps --------------------------------------------------------------------------------------------------------------

@pytest.fixture
def some(root):
    make(root, 'aaaaaaaa', argv=['solver=x', 'optim.lr=1', 'hub.api_key=abc'], state='running', age=7200)
    make(root, 'bbbbbbbb', argv=['solver=y'], state='failed', best=None, age=10)
    make(root, 'cccccccc', argv=['solver=x'], history=[{'valid': {'loss': 1.}}, {}], age=100)
    make(root, 'dddddddd', argv=[], age=90_000)
    (root / 'no_xp').mkdir()
    (root / 'a_file').touch()
    return root


def test_list(some, capsys):
    status, out = run(capsys, 'xps')
    title, *lines = out.splitlines()
    assert status == 0 and title == f'XPs in {some}:'
    assert [line.split()[0] for line in lines] == ['bbbbbbbb', 'cccccccc', 'aaaaaaaa', 'dddddddd']
    assert 'running' in lines[2] and 'loss 0.5123 (epoch 2)' in lines[2] and '3/10 epochs' in lines[2]
    assert lines[2].endswith('solver=x optim.lr=1 hub.api_key=***') and ' 2 h ago ' in lines[2]
    assert ' - ' in lines[1] and '2 epochs  solver=x' in lines[1]
    assert run(capsys, 'info') == (0, out)


@pytest.mark.parametrize('seconds, text', [(-5, '0 s'), (0, '0 s'), (119, '119 s'), (120, '2 min'), (7199, '120 min'),
                                           (7200, '2 h'), (172_800, '2 d'), (1e8, '1157 d')])
def test_age(seconds, text):
    assert _xps.age(seconds) == text


@pytest.mark.parametrize('argv, sigs', [
    (['solver=x'], 'ca'), (['solver=x', 'lr'], 'a'), (['bbb'], 'b'), (['--state', 'failed'], 'b'), (['nothing'], ''),
    (['--state', 'running', 'solver=x'], 'a'), (['--state', 'dead'], ''),
])
def test_chosen(some, capsys, argv, sigs):
    status, out = run(capsys, 'xps', *argv, '--json')
    rows = json.loads(out)
    assert status == 0 and [row['sig'][0] for row in rows] == list(sigs)
    keys = {'sig', 'folder', 'state', 'epoch', 'epochs', 'best', 'changed', 'overrides'}
    assert all(set(row) == keys for row in rows)
    out = run(capsys, 'xps', *argv)[1]
    assert ('are like this' in out) == (not sigs) and all(sig * 8 in out for sig in sigs)


def test_killed_run_is_dead(root, capsys):
    folder = make(root, 'aaaaaaaa', state='running')
    process = sp.Popen([sys.executable, '-c', ''])
    process.wait()
    status = json.loads((folder / 'status.json').read_text())
    (folder / 'status.json').write_text(json.dumps({**status, 'pid': process.pid}))
    assert 'dead' in run(capsys, 'xps')[1] and 'aaaaaaaa' in run(capsys, 'xps', '--state', 'dead')[1]


def test_many(root, capsys):
    for index in range(_xps.LIMIT + 3):
        make(root, f'{index:08x}', age=index)
    lines = run(capsys, 'xps')[1].splitlines()
    assert len(lines) == _xps.LIMIT + 2 and lines[-1] == '  ... and 3 older ones (xps --all).'
    assert len(run(capsys, 'xps', '--all')[1].splitlines()) == _xps.LIMIT + 4


@pytest.mark.parametrize('name', ['.argv.json', 'history.json', 'status.json'])
@pytest.mark.parametrize('content', ['', '{', '{"a": 1}', 'null', '[1, null]', '"x"', '\0'])
def test_damaged_files(root, capsys, name, content):
    folder = make(root, 'aaaaaaaa', history=[{'valid': {'loss': 1.}}])
    (folder / name).write_text(content)
    make(root, 'bbbbbbbb')
    assert run(capsys, 'xps')[0] == 0
    status, out = run(capsys, 'compare', 'aaaaaaaa', 'bbbbbbbb')
    assert status == 0 and 'bbbbbbbb' in out


# -- compare ----------------------------------------------------------------------------------------------------------

def with_config(folder, text, checkpoint=None, commit=True):
    path = folder / ('.hydra' if checkpoint is None else f'checkpoints/{checkpoint}')
    path.mkdir(parents=True)
    (path / 'config.yaml').write_text(text)
    if checkpoint is not None and commit:
        (path / 'COMMIT').touch()


@pytest.fixture
def two(root):
    first = make(root, 'aaaaaaaa', argv=['solver=x', 'optim.lr=1', 'seed=2'], history=[
        {'train': {'loss': 9.}, 'valid': {'loss': 3., 'old': 1.}, 'evaluate': {'fd': 5., 'kl': None}},
        {'train': {'loss': 8.}, 'valid': {'loss': 2.}}])
    second = make(root, 'bbbbbbbb', argv=['solver=x', 'optim.lr=2', 'model=big'], history=[
        {'train': {'loss': 7.}, 'valid': {'loss': 1.5, 'kind': 'new'}, 'evaluate': {'fd': 4., 'kl': 1.}}])
    with_config(first, 'optim: {lr: 0, epochs: 3}', checkpoint=900)
    with_config(first, 'optim: {lr: 1, epochs: 3}\nseed: 2\nhub: {token: abc}\nlist: [1, 2]', checkpoint=1000)
    with_config(first, 'optim: {lr: 7}', checkpoint=2000, commit=False)
    with_config(first, 'optim: {lr: 8}', checkpoint='3000.corrupt')
    with_config(first, 'optim: {lr: 6}')
    with_config(second, 'optim: {lr: 2, epochs: "${n}"}\nn: 3\nseed: 1\nlist: [1, 2]\nhub: {token: abd}')
    return first, second


def test_compare(two, capsys):
    status, out = run(capsys, 'compare', 'aaaaaaaa', str(two[1]))
    lines = {' '.join(line.split()) for line in out.splitlines()}
    assert status == 0 and 'aaaaaaaa bbbbbbbb difference' in lines
    assert {'optim.lr 1 2', 'optim.lr 1 2 +1', 'seed 2 (absent)', 'seed 2 1 -1', 'model (absent) big',
            'n (absent) 3'} <= lines
    assert {'train/loss 8 7 -1', 'valid/(epoch) 2 1 -1', 'valid/loss 2 1.5 -0.5', 'valid/kind (absent) new',
            'evaluate/(epoch) 1 1 +0', 'evaluate/fd 5 4 -1', 'evaluate/kl null 1'} <= lines
    for word in ('epochs', 'list', 'token', 'abc', 'valid/old', 'solver'):
        assert word not in out
    assert max(map(len, out.splitlines())) < 120


def test_compare_three(two, root, capsys):
    make(root, 'cccccccc')
    status, out = run(capsys, 'compare', 'aaaaaaaa', 'bbbbbbbb', '//sig/cccccccc')
    lines = {' '.join(line.split()) for line in out.splitlines()}
    assert status == 0 and 'aaaaaaaa bbbbbbbb cccccccc' in lines and 'optim.lr 1 2 (absent)' in lines


def test_compare_the_same(two, root, capsys):
    out = run(capsys, 'compare', 'aaaaaaaa', 'aaaaaaaa')[1]
    assert 'overrides: none differ' in out and 'config: none differ' in out and 'valid/loss' in out
    make(root, 'cccccccc')
    assert 'no metrics yet' in run(capsys, 'compare', 'cccccccc', 'cccccccc')[1]


def test_compare_what_cannot_be(two, root, capsys):
    assert 'two XPs or more' in run(capsys, 'compare', 'aaaaaaaa')[1]
    status, out = run(capsys, 'compare', 'aaaaaaaa', 'bbbbbbxb')
    assert status == 1 and out.startswith('error: There is no XP "bbbbbbxb"') and 'Did you mean bbbbbbbb?' in out
    with_config(make(root, 'cccccccc'), 'a: [')
    assert 'not a readable yaml' in run(capsys, 'compare', 'aaaaaaaa', 'cccccccc')[1]


def test_unresolved_config(root):
    folder = make(root, 'aaaaaaaa')
    assert compare.read_config(folder) == {}
    with_config(folder, 'a: ${nothing.there}\nb: {c: 1}')
    assert compare.read_config(folder) == {'a': '${nothing.there}', 'b.c': 1}


@pytest.mark.parametrize('word', ['', '.', '..', '../xps', 'aaaaaaab/', '//sig/aaaaaaab', '//sig/../x', '/', 'xps'])
def test_no_such_xp(root, word, monkeypatch):
    make(root, 'aaaaaaaa')
    monkeypatch.chdir(root.parent)
    with pytest.raises(UserError) as caught:
        _xps.find_xp(word)
    assert '\n' not in str(caught.value)


# -- control ----------------------------------------------------------------------------------------------------------

@pytest.fixture
def running(root):
    """An XP of which a thread takes commands, as a solver does."""
    folder = make(root, 'aaaaaaaa', state='running')
    listening, ended = Control(folder, listen=True), threading.Event()

    def work():
        update = 100
        while not ended.wait(0.02):
            for command in listening.accept(listening.poll(), update):
                listening.answer(command, f'did {command.name}' if command.name != 'export' else 'error: no model')
    thread = threading.Thread(target=work, daemon=True)
    with listening:
        thread.start()
        yield listening
        ended.set()
        thread.join()


@pytest.mark.parametrize('words, status, said', [
    (['save'], 0, 'did save'), (['lr', '1e-4'], 0, 'did lr'), (['quit@200'], 0, 'noted, for when 200 updates are done'),
    (['lr', '1e-4', '@', '200'], 0, 'noted'), (['quit@20'], 1, 'error: update 20 is past'), (['help'], 0, 'Commands:'),
    (['export'], 1, 'error: no model'), (['sav'], 1, 'did you mean "save"?'), (['lr', '-1'], 1, 'above 0'),
])
def test_commands(running, capsys, words, status, said):
    got, out = run(capsys, 'control', 'aaaaaaaa', *words, '--wait', '60')
    assert got == status and said in out


@pytest.mark.parametrize('state, said', [
    ('running', 'It is running; its last log line is '), ('finished', 'It is finished; '), (None, 'Is it running?'),
])
def test_nobody_answers(root, capsys, state, said):
    folder = make(root, 'aaaaaaaa', **({'state': state} if state else {}))
    (folder / 'solver.log.0').write_text('a line\n')
    status, out = run(capsys, 'control', 'aaaaaaaa', 'save', '--wait', '0')
    assert status == 1 and 'error: nobody answered within 0 s' in out and said in out
    assert ('--wait' in out) == (state == 'running') and os.listdir(folder / 'control') == []


def test_command_for_no_xp(root, capsys):
    assert run(capsys, 'control', 'aaaaaaaa', 'save')[0] == 1 and list(root.iterdir()) == []


# -- light, and inside of its folders -------------------------------------------------------------------------------

@pytest.mark.parametrize('argv', [['xps'], ['control', 'aaaaaaaa', 'save', '--wait', '0']])
def test_no_torch(two, argv):
    code = f'import sys; from audiocraft.cli.dispatch import main; main({argv}); print(sorted(sys.modules))'
    out = sp.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    loaded = out.splitlines()[-1]
    assert all(f"'{name}'" not in loaded for name in ('torch', 'numpy', 'hydra', 'dora'))


def test_paths_stay_in_their_root(root, monkeypatch, tmp_path):
    make(root, 'aaaaaaaa')
    monkeypatch.setenv('AUDIOCRAFT_REFERENCE_DIR', str(tmp_path / 'ref'))
    (tmp_path / 'ref').mkdir()
    (tmp_path / 'ref' / 'link').symlink_to(root)
    resolve = environment.resolve_path
    assert resolve('//sig/aaaaaaaa/x/../y') == root / 'aaaaaaaa' / 'y'
    assert resolve('//sig/aaaaaaaa/') == root / 'aaaaaaaa'
    assert resolve('//reference/a/../b') == tmp_path / 'ref' / 'b' and resolve('//reference/') == tmp_path / 'ref'
    assert resolve('//reference//etc/x') == tmp_path / 'ref' / 'etc' / 'x'
    assert resolve('//reference/link/aaaaaaaa') == tmp_path / 'ref' / 'link' / 'aaaaaaaa'
    for path in ('//sig/aaaaaaaa/../../x', '//sig/aaaaaaaa/..', '//sig/aaaaaaaa/x/../../aaaaaaaab'):
        with pytest.raises(UserError, match='leads out of .*aaaaaaaa'):
            resolve(path)
    for path in ('//reference/../x', '//reference/..', '//reference/a/../../ref2', '//reference/link/../../xps'):
        with pytest.raises(UserError, match='leads out of .*ref'):
            resolve(path)
    for path in ('//sig/', '//sig', '//sig//aaaaaaab'):
        with pytest.raises(UserError, match='signature'):
            resolve(path)


@pytest.mark.parametrize('name', ['../x', 'a/b', '/etc/passwd', '..', '', 'mmaudio/vae_16k/../x', 'mmaudio/vae_16k/'])
def test_weights_are_found_by_their_names_only(name, monkeypatch, tmp_path):
    monkeypatch.setenv('AUDIOCRAFT_WEIGHTS', str(tmp_path / 'weights'))
    for find in (weights.find, weights.fetch, weights.verify):
        with pytest.raises(UserError, match='registry'):
            find(name)
    assert os.listdir(tmp_path) == []


# -- a real run -------------------------------------------------------------------------------------------------------

SOLVER = """
import time, torch
from audiocraft import optim
from audiocraft.solvers import base

class Solver(base.StandardSolver):
    def build_dataloaders(self):
        self.dataloaders = {stage: torch.utils.data.DataLoader(torch.ones(64, 1), 4) for stage in ('train', 'valid')}

    def build_model(self):
        self.model = torch.nn.Linear(1, 1)
        self.optimizer = optim.build_optimizer(self.model.parameters(), self.cfg.optim)
        self.register_stateful('model', 'optimizer')

    def run_step(self, idx, batch, metrics):
        loss = metrics['loss'] = self.model(batch).square().mean()
        if self.is_training:
            time.sleep(0.01)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    evaluate = generate = lambda self: {}
"""
YAML = """# @package _global_
defaults: [/solver/default, _self_]
solver: {_target_: toy_project.Solver}
allow_targets: [toy_project]
optim: {epochs: 10000, updates_per_epoch: 1000}
logging: {log_updates: 10}
"""


@pytest.mark.integ
def test_commands_to_two_processes(root, tmp_path):
    (tmp_path / 'config' / 'solver').mkdir(parents=True)
    (tmp_path / 'config' / 'solver' / 'mine.yaml').write_text(YAML)
    (tmp_path / 'toy_project.py').write_text(SOLVER)
    base = [sys.executable, '-m', 'audiocraft']
    shared = {'cwd': tmp_path, 'env': {**os.environ, 'PYTHONPATH': f'{ROOT}{os.pathsep}{tmp_path}'}, 'text': True,
              'stdin': sp.DEVNULL}
    with open(tmp_path / 'said', 'w') as said:
        process = sp.Popen([*base, 'run', '-d', '--ddp_workers', '2', 'solver=mine', 'device=cpu'], stdout=said,
                           stderr=said, **shared)
    try:
        while not (found := list(root.glob('*/metrics.jsonl'))):
            assert process.poll() is None, (tmp_path / 'said').read_text()
            time.sleep(0.1)
        sig, answers = found[0].parent.name, {}
        for text in ('lr 1e-3', 'lr', 'save', 'lr 5@99999', 'lr -1', 'quit'):
            result = sp.run([*base, 'control', sig, *text.split(), '--wait', '120'], capture_output=True, **shared)
            answers[text] = result.returncode, (result.stdout + result.stderr).strip()
        assert process.wait(timeout=120) == 0
    finally:
        process.kill()
        process.wait()
    assert [status for status, _ in answers.values()] == [0, 0, 0, 0, 1, 0], answers
    assert '0.001' in answers['lr'][1] and 'saved update' in answers['save'][1]
    listed = sp.run([*base, 'xps', '--state', 'stopped', '--json'], capture_output=True, check=True, **shared).stdout
    assert [row['sig'] for row in json.loads(listed)] == [sig]
    assert list((found[0].parent / 'checkpoints').glob('*/COMMIT'))
