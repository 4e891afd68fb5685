"""An interrupted run, resumed, equals the uninterrupted one, bit for bit, wherever it was interrupted and however."""

import json
import multiprocessing
import os
import random
import signal
import time
import typing as tp

import numpy as np
import pytest
import torch

from audiocraft.data.loaders import StoreLoader
from audiocraft.utils import checkpoint as checkpoints
from audiocraft.utils.checkpoint import list_checkpoints, load_latest
from audiocraft.utils.errors import UserError

from .conftest import Network, ToySolver

TIMES = ('duration', 'seconds', 'speed', 'data_wait', 'eta')


class Crash(BaseException):
    """Ends a run as a kill would: nothing cleans up after it."""


class Interrupted(ToySolver):
    """Calls `hooks[stage, n]` at the n-th batch of a stage, counted over the whole run (later stages: 0)."""

    hooks: dict[tuple[str, int], tp.Callable[[tp.Any], None]] = {}

    def _call(self, stage: str, number: int) -> None:
        if (stage, number) in self.hooks:
            self.hooks[stage, number](self)

    def run_step(self, idx, batch, metrics):
        metrics = super().run_step(idx, batch, metrics)
        self._call(self.current_stage, self.update if self.is_training else 4 * (self.epoch - 1) + idx)
        return metrics

    def evaluate(self):
        results = super().evaluate()
        self._call('evaluate', 0)
        return results

    def generate(self):
        self._call('generate', 0)
        return super().generate()


def crash(solver: tp.Any) -> None:
    raise Crash


def stop(solver: tp.Any) -> None:
    solver.stop.request('SIGTERM')
    solver.check_stop() if not solver.is_training else None


def without_times(tree: tp.Any) -> tp.Any:
    if isinstance(tree, dict):
        return {key: without_times(value) for key, value in tree.items() if key not in TIMES}
    return [without_times(value) for value in tree] if isinstance(tree, (list, tuple)) else tree


def differences(a: tp.Any, b: tp.Any, where: str = '') -> list[str]:
    """Where two trees of tensors and plain values differ, bit for bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f'{where}: keys {a.keys() ^ b.keys()}']
        return [found for key in a for found in differences(a[key], b[key], f'{where}.{key}')]
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [found for i, (x, y) in enumerate(zip(a, b)) for found in differences(x, y, f'{where}[{i}]')]
    else:
        same = a == b or (a != a and b != b)
    return [] if same else [f'{where}: {a} and {b}']


def outcome(runner: tp.Any) -> dict[str, tp.Any]:
    """All that a run left: the last checkpoint, the history and the metrics as they came."""
    last = load_latest(runner.xp_folder / 'checkpoints')
    assert last is not None
    history = json.loads((runner.xp_folder / 'history.json').read_text())
    lines = [json.loads(line) for line in (runner.xp_folder / 'metrics.jsonl').read_text().splitlines()]
    stages = {path.parent.name: json.loads(path.read_text())['metrics'] for path in runner.xp_folder.glob('*/*.json')}
    return without_times({'models': last.models, 'state': last.state, 'rng': last.rank_states, 'history': history,
                          'lines': lines, 'stages': stages})


def interrupted_run(runner: tp.Any, hooks: dict) -> None:
    Interrupted.hooks = hooks
    try:
        with pytest.raises((Crash, SystemExit)) as caught:
            runner.run()
        if isinstance(caught.value, SystemExit):
            assert caught.value.code == 143
    finally:
        Interrupted.hooks = {}


SETTINGS = ['evaluate.every=2', 'generate.every=1', 'schedule=cosine', 'schedule.warmup=2', 'checkpoint.save_every=2']
POINTS = [('train', 0), ('train', 1), ('train', 4), ('train', 5), ('train', 8), ('train', 14), ('valid', 0),
          ('valid', 2), ('valid', 4), ('valid', 9), ('evaluate', 0), ('generate', 0)]


@pytest.fixture(scope='module')
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tp.Any]:
    from .conftest import EMA, Runner
    runner = Runner(tmp_path_factory.mktemp('reference'), Interrupted, *EMA, *SETTINGS)
    runner.run()
    return outcome(runner)


@pytest.mark.parametrize('how', [crash, stop], ids=['crash', 'stop'])
@pytest.mark.parametrize('point', POINTS, ids=lambda point: f'{point[0]}{point[1]}')
def test_resumed_equals_uninterrupted(toy, reference, point, how):
    runner = toy(*SETTINGS, solver=Interrupted)
    interrupted_run(runner, {point: how})
    runner.run()
    assert differences(outcome(runner), reference) == []


def test_many_interruptions(toy, reference):
    runner = toy(*SETTINGS, solver=Interrupted)
    for update in (1, 3, 4, 7, 11):
        interrupted_run(runner, {('train', update): stop})
    runner.run()
    assert differences(outcome(runner), reference) == []


def test_the_comparison_can_fail(toy, reference):
    runner = toy(*SETTINGS, 'seed=1', solver=Interrupted)
    runner.run()
    found = differences(outcome(runner), reference)
    assert any('.models' in line for line in found) and any('.history' in line for line in found)


def test_a_stop_saves_the_very_update(toy):
    runner = toy(solver=Interrupted)
    interrupted_run(runner, {('train', 7): stop})
    last = load_latest(runner.xp_folder / 'checkpoints')
    assert last is not None and last.update == 8
    assert last.state['progress']['done'] == 3 and last.state['objects']['counter'] == 8


OPERATIONS = ['write_tensors', 'fsync_file', 'sha256_of', 'write_atomic', '_publish', '_remove', '_clean',
              '_delete_old']


@pytest.mark.parametrize('operation', OPERATIONS)
@pytest.mark.parametrize('call', [1, 6])
def test_crash_during_a_save(toy, reference, monkeypatch, operation, call):
    runner = toy(*SETTINGS, solver=Interrupted)
    genuine, calls = getattr(checkpoints, operation), []

    def failing(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            raise Crash
        return genuine(*args, **kwargs)

    monkeypatch.setattr(checkpoints, operation, failing)
    with pytest.raises(Crash):
        runner.run()
    monkeypatch.setattr(checkpoints, operation, genuine)
    runner.run()
    assert differences(outcome(runner), reference) == []
    assert not list((runner.xp_folder / 'checkpoints').glob('.t*'))


def test_crash_between_the_two_renames(toy, reference, monkeypatch):
    """The commit of an epoch replaces the checkpoint that was saved before its valid stage."""
    runner = toy(*SETTINGS, solver=Interrupted)
    interrupted_run(runner, {('valid', 0): stop})
    genuine = os.rename

    def failing(source, target):
        if '.tmp-' in str(source) and os.path.exists(f'{target}.replaced'):
            raise Crash
        genuine(source, target)

    monkeypatch.setattr(os, 'rename', failing)
    with pytest.raises(Crash):
        runner.run()
    monkeypatch.setattr(os, 'rename', genuine)
    assert [path.name for path in list_checkpoints(runner.xp_folder / 'checkpoints')][-1] == '5.replaced'
    runner.run()
    assert differences(outcome(runner), reference) == []


def _train_in_child(runner: tp.Any, started: tp.Any) -> None:
    torch.set_num_threads(1)
    genuine = Interrupted.run_step

    def run_step(self, *args):
        started.send(self.update)
        return genuine(self, *args)

    Interrupted.run_step = run_step  # type: ignore[method-assign]
    runner.run()


def _run_until(runner: tp.Any, update: int, number: int, delay: float) -> int:
    """Start a process, send it a signal a little after it began an update, return its exit code."""
    context = multiprocessing.get_context('fork')
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_train_in_child, args=(runner, sender))
    child.start()
    sender.close()
    try:
        while receiver.recv() < update:
            pass
        time.sleep(delay)
        os.kill(child.pid, number)
    except EOFError:
        pass
    child.join(60)
    assert child.exitcode is not None
    return child.exitcode


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_kill_9(toy, reference, seed):
    runner, dice = toy(*SETTINGS, solver=Interrupted), random.Random(seed)
    for _ in range(3):
        _run_until(runner, dice.randint(0, 12), signal.SIGKILL, dice.uniform(0, 0.02))
    runner.run()
    assert differences(outcome(runner), reference) == []


@pytest.mark.parametrize('name, code', [('SIGTERM', 143), ('SIGINT', 130), ('SIGUSR1', 0), ('SIGHUP', 0)])
def test_signals(toy, reference, name, code):
    runner = toy(*SETTINGS, solver=Interrupted)
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert _run_until(runner, 3, getattr(signal, name), 0.) == code
    finally:
        signal.signal(signal.SIGINT, before)
    assert load_latest(runner.xp_folder / 'checkpoints').update >= 4
    runner.run()
    assert differences(outcome(runner), reference) == []


# -- damaged checkpoints -----------------------------------------------------------------------------------------------

def cut(folder):
    path = folder / 'state.pt'
    path.write_bytes(path.read_bytes()[:-7])


def flip(folder):
    path = folder / 'model.safetensors'
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


def lose(folder):
    (folder / 'ema.safetensors').unlink()


def uncommit(folder):
    (folder / 'COMMIT').unlink()


def garble(folder):
    (folder / 'COMMIT').write_text('{"version": 1, "upd')


DAMAGES = [cut, flip, lose, uncommit, garble]


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(toy, reference, caplog, damage):
    runner = toy(*SETTINGS, solver=Interrupted)
    interrupted_run(runner, {('train', 11): crash})
    newest = list_checkpoints(runner.xp_folder / 'checkpoints')[-1]
    damage(newest)
    runner.run()
    assert differences(outcome(runner), reference) == []
    assert newest.with_name(f'{newest.name}.corrupt').is_dir()
    assert f'Damaged checkpoint: {newest}' in caplog.text


@pytest.mark.parametrize('damage', DAMAGES)
def test_never_from_scratch_when_all_are_damaged(toy, damage):
    runner = toy(*SETTINGS, solver=Interrupted)
    interrupted_run(runner, {('train', 11): crash})
    for path in list_checkpoints(runner.xp_folder / 'checkpoints'):
        damage(path)
    for _ in range(2):  # the second time they have all been set aside: still not from scratch
        with pytest.raises(UserError, match='none is whole'):
            runner.run()
    assert not (runner.xp_folder / 'checkpoints' / '2').exists()


# -- other loaders -----------------------------------------------------------------------------------------------------

class Numbered:
    """A loader that knows its position, as those of stores do."""

    def __init__(self) -> None:
        self.starts: list[int] = []

    def iterate(self, start: int = 0):
        self.starts.append(start)
        number = start
        while True:
            x = torch.from_numpy(np.random.default_rng(number).standard_normal((4, 6)).astype(np.float32))
            yield x, x.sum(1, keepdim=True)
            number += 1


class NumberedSolver(Interrupted):
    def build_dataloaders(self):
        super().build_dataloaders()
        self.dataloaders['train'] = Numbered()


class OwnGeneratorSolver(Interrupted):
    def build_dataloaders(self):
        super().build_dataloaders()
        data = self.dataloaders['train'].dataset
        self.dataloaders['train'] = torch.utils.data.DataLoader(
            data, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(3))


class ListSolver(Interrupted):
    def build_dataloaders(self):
        super().build_dataloaders()
        self.dataloaders['train'] = [(torch.full((4, 6), i / 3), torch.full((4, 1), i / 3)) for i in range(3)]


class PieceSolver(Interrupted):
    """No dropout, no batch norm: an update must not depend on how it is cut."""

    def build_model(self):
        super().build_model()
        for name in ('1', '2'):
            setattr(self.model.layers, name, torch.nn.Identity())


@pytest.mark.parametrize('solver', [NumberedSolver, OwnGeneratorSolver, ListSolver])
@pytest.mark.parametrize('update', [3, 4, 8])
def test_other_loaders_resume_too(toy, solver, update):
    whole, parts = toy(solver=solver, name='whole'), toy(solver=solver, name='parts')
    whole.run()
    interrupted_run(parts, {('train', update): stop})
    resumed = parts.run()
    assert differences(outcome(parts), outcome(whole)) == []
    if solver is NumberedSolver:
        assert resumed.dataloaders['train'].starts == [update + 1]


def test_passes_of_a_shuffled_loader_differ(toy):
    seen = []

    class Watching(Interrupted):
        def run_step(self, idx, batch, metrics):
            if self.is_training:
                seen.append(batch[0][:, -1].mul(30).round().int().tolist())
            return super().run_step(idx, batch, metrics)

    toy('optim.epochs=1', 'optim.updates_per_epoch=14', solver=Watching).run()
    first, second = sorted(sum(seen[:7], [])), sorted(sum(seen[7:], []))
    assert first == second == list(range(1, 29)) and seen[:7] != seen[7:]


def test_accumulation_gives_the_same_update(toy):
    models = []
    for count in (1, 2, 4):
        runner = toy(f'optim.accumulate={count}', 'optim.epochs=1', solver=PieceSolver, name=str(count), ema=False)
        models.append(runner.run().model.state_dict())
        counter = load_latest(runner.xp_folder / 'checkpoints').state['objects']['counter']
        assert counter == 5 * count
    for model in models[1:]:
        for key in ('layers.0.weight', 'layers.3.bias'):
            torch.testing.assert_close(model[key], models[0][key], rtol=1e-4, atol=1e-6)


def test_accumulation_that_does_not_divide_is_refused(toy):
    with pytest.raises(UserError, match=r'batch_size=16 .* multiple of 3 \(1 processes x optim.accumulate=3'):
        toy('optim.accumulate=3').run()


def test_the_model_of_the_tests_has_an_integer_buffer():
    assert Network().calls.dtype == torch.int64 and hasattr(StoreLoader, 'iterate')
