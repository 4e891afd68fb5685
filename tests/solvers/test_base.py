"""What the solver promises besides resuming: stages, best state, refusals, results and what they say."""

import json
import logging
import math
import sys

import pytest
import torch

from audiocraft.solvers import base, state
from audiocraft.solvers.setup import best_metric_name
from audiocraft.utils.checkpoint import list_checkpoints, load_latest
from audiocraft.utils.errors import UserError
from audiocraft.utils.lock import XPLock

from .conftest import Data, Network, ToySolver


@pytest.fixture(autouse=True)
def info(caplog):
    caplog.set_level(logging.INFO)


def last(runner):
    return load_latest(runner.xp_folder / 'checkpoints')


def history(runner):
    return json.loads((runner.xp_folder / 'history.json').read_text())


# -- stages ------------------------------------------------------------------------------------------------------------

def test_stages_and_files(toy):
    runner = toy('evaluate.every=2', 'generate.every=0')
    runner.run()
    assert [list(epoch) for epoch in history(runner)] == [
        ['train', 'valid'], ['train', 'valid', 'evaluate'], ['train', 'valid', 'evaluate']]
    assert sorted(path.name for path in (runner.xp_folder / 'evaluate').iterdir()) == ['10.json', '15.json']
    assert not (runner.xp_folder / 'generate').exists()
    found = json.loads((runner.xp_folder / 'evaluate' / '10.json').read_text())
    assert found['epoch'] == 2 and found['metrics']['missing'] is None


@pytest.mark.parametrize('every, expected', [(None, [3]), (0, []), (1, [1, 2, 3]), (2, [2, 3]), (5, [3])])
def test_when_a_stage_is_due(toy, every, expected):
    ran = []

    class Watching(ToySolver):
        def evaluate(self):
            ran.append(self.epoch)

    toy(f'evaluate.every={"null" if every is None else every}', solver=Watching).run()
    assert ran == expected


def test_later_stages_do_not_disturb_training(toy):
    class Noisy(ToySolver):
        def generate(self):
            torch.rand(100)
            self.model(torch.rand(3, 6))
            assert not torch.is_grad_enabled()

    quiet = toy('evaluate.every=0', 'generate.every=0', name='quiet').run()
    noisy = toy('evaluate.every=1', 'generate.every=1', name='noisy', solver=Noisy).run()
    for key, value in quiet.model.state_dict().items():
        assert torch.equal(value, noisy.model.state_dict()[key]), key


def test_finished_only_reports(toy, caplog):
    runner = toy()
    runner.run()
    before = {path: path.read_bytes() for path in runner.xp_folder.rglob('*') if path.is_file() and path.suffix}
    caplog.clear()
    runner.run()
    assert 'Nothing to do, this XP is finished: 3 epochs, 15 updates' in caplog.text
    assert 'valid: loss' in caplog.text and str(runner.xp_folder) in caplog.text
    assert {path: path.read_bytes() for path in before} == before


def test_run_step_may_return_nothing(toy):
    class Silent(ToySolver):
        def run_step(self, idx, batch, metrics):
            metrics.update(super().run_step(idx, batch, {}))

    assert toy(solver=Silent).run().history[0]['train']['loss'] > 0


def test_missing_stages_are_named_at_once(toy):
    class Bare(base.StandardSolver):
        def build_model(self):
            raise AssertionError('too late')

    with pytest.raises(UserError, match='Bare does not define build_dataloaders, run_step, evaluate, generate, .*'
                                        'evaluate.every=0 generate.every=0'):
        toy(solver=Bare).run()
    with pytest.raises(UserError, match='does not define build_dataloaders, run_step, which'):
        toy('evaluate.every=0', 'generate.every=0', solver=Bare).run()


def test_missing_loaders_are_named(toy):
    class NoValid(ToySolver):
        def build_dataloaders(self):
            super().build_dataloaders()
            del self.dataloaders['valid']

    class Empty(ToySolver):
        def build_dataloaders(self):
            super().build_dataloaders()
            self.dataloaders['train'] = []

    with pytest.raises(UserError, match='NoValid.build_dataloaders made no loader for valid'):
        toy(solver=NoValid).run()
    with pytest.raises(UserError, match='train loader gave no batch'):
        toy(solver=Empty).run()


# -- best and average --------------------------------------------------------------------------------------------------

class Scored(ToySolver):
    """Its score in valid is what the test says."""

    scores: list[float] = []

    def valid(self):
        self.seen = {key: value.clone() for key, value in self.model.state_dict().items()}
        return {'loss': self.scores[self.epoch - 1]}


@pytest.mark.parametrize('scores, best', [([2., 1., 3.], 10), ([math.nan, 3., 4.], 10), ([1., math.nan, 2.], 5),
                                          ([5., -math.inf, 4.], 15), ([1., 1., 2.], 10)])
def test_best_state(toy, scores, best):
    Scored.scores = scores
    runner = toy(solver=Scored)
    runner.run()
    assert last(runner).state['best'] == {'score': scores[best // 5 - 1], 'update': best, 'epoch': best // 5}
    assert [epoch['valid']['loss'] for epoch in history(runner)] == [s if math.isfinite(s) else None for s in scores]


def test_no_finite_score_no_best(toy):
    Scored.scores = [math.nan] * 3
    runner = toy(solver=Scored)
    runner.run()
    assert 'best' not in last(runner).models and 'ema' in last(runner).models


def test_one_bad_batch_makes_a_valid_score_nan(toy):
    class OneBad(ToySolver):
        def run_step(self, idx, batch, metrics):
            metrics = super().run_step(idx, batch, metrics)
            return metrics if self.is_training or idx else {'loss': torch.tensor(math.nan)}

    runner = toy(solver=OneBad)
    runner.run()
    assert history(runner)[0]['valid']['loss'] is None and 'best' not in last(runner).models


def test_best_is_the_average_that_valid_saw(toy):
    Scored.scores = [3., 2., 1.]
    runner = toy(solver=Scored)
    solver = runner.run()
    saved = last(runner).models
    for key, value in saved['best'].items():
        assert torch.equal(value, solver.seen[key]) and torch.equal(value, saved['ema'][key]), key
    assert not torch.equal(saved['best']['layers.0.weight'], saved['model']['layers.0.weight'])
    # The integer buffer cannot be averaged: it is copied.
    assert saved['ema']['calls'] == saved['model']['calls'] == 15


def test_later_stages_use_the_best_state(toy):
    totals = []

    class Watching(Scored):
        def evaluate(self):
            totals.append(self.model.layers[0].weight.clone())

    Scored.scores = [1., 2., 3.]
    runner = toy('evaluate.every=1', solver=Watching)
    runner.run()
    assert all(torch.equal(weight, last(runner).models['best']['layers.0.weight']) for weight in totals)


def test_best_is_kept_in_full_precision(toy):
    class Half(ToySolver):
        def build_model(self):
            self.model = torch.nn.Linear(6, 1).bfloat16()
            self.register_stateful('model')
            self.register_best('model')

        def run_step(self, idx, batch, metrics):
            return {'loss': 1.}

    runner = toy(solver=Half, ema=False)
    runner.run()
    assert last(runner).models['best']['weight'].dtype == torch.float32
    assert last(runner).models['model']['weight'].dtype == torch.bfloat16


def test_forms_of_best_metric(toy):
    class Property(ToySolver):
        best_metric = property(lambda self: 'loss')

    class Upstream(ToySolver):
        best_metric_name = 'loss'

        def best_metric(self):
            raise AssertionError

    class Nothing(ToySolver):
        def best_metric(self):
            return None

    for number, (solver_class, name) in enumerate([(Property, 'loss'), (Upstream, 'loss'), (Nothing, None)]):
        with toy(solver=solver_class, name=str(number)).solver() as solver:
            assert best_metric_name(solver) == name


def test_unknown_best_metric_is_named(toy):
    class Misspelled(ToySolver):
        def best_metric(self):
            return 'los'

    with pytest.raises(UserError, match='which valid does not return: it has loss, duration. did you mean "loss'):
        toy(solver=Misspelled).run()


def test_registration_needs_a_module(toy):
    class Unregistered(ToySolver):
        def build_model(self):
            self.model = Network()
            self.register_best('model')

    with pytest.raises(UserError, match=r'register_best\("model"\): .* call register_stateful\("model"\) first'):
        toy(solver=Unregistered).run()


# -- one stage ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('extra', [[], ['execute_inplace=true']])
def test_one_stage_without_weights_is_refused(toy, extra):
    runner = toy('execute_only=evaluate', *extra)
    with runner.solver() as solver, pytest.raises(UserError, match='execute_only=evaluate: no checkpoint in'):
        solver.run_one_stage('evaluate')
    assert not (runner.xp_folder / 'evaluate').exists()


def test_one_stage_in_place(toy):
    runner = toy('evaluate.every=0')
    runner.run()
    before = history(runner)
    for name in ('evaluate', 'valid'):
        with runner.solver(f'execute_only={name}') as solver:
            metrics = solver.run_one_stage(name)
        found = json.loads((runner.xp_folder / name / '15.json').read_text())
        assert found['metrics'] == metrics and found['weights'].startswith('best')
    assert len(history(runner)) == 3
    assert history(runner)[2].pop('evaluate')['total'] == json.loads(
        (runner.xp_folder / 'evaluate' / '15.json').read_text())['metrics']['total']
    assert [list(epoch) for epoch in before[:2]] == [list(epoch) for epoch in history(runner)[:2]]
    runner.run()  # nothing is trained again


def test_one_stage_of_other_weights(toy):
    source, target = toy(name='source'), toy('execute_only=evaluate', name='target')
    source.run()
    with target.solver(f'continue_from={source.xp_folder}') as solver:
        metrics = solver.run_one_stage('evaluate')
    assert metrics['total'] == pytest.approx(history(source)[-1]['evaluate']['total'])
    assert (target.xp_folder / 'evaluate' / '0.json').exists() and not (target.xp_folder / 'history.json').exists()


def test_unknown_single_stage(toy):
    with toy().solver() as solver, pytest.raises(UserError, match='did you mean "evaluate"'):
        solver.run_one_stage('evalute')


# -- other weights -----------------------------------------------------------------------------------------------------

def test_continue_from(toy, caplog):
    source = toy(name='source')
    source.run()
    best = last(source).models['best']
    target = toy('optim.epochs=1', 'optim.lr=0', f'continue_from={source.xp_folder}', name='target')
    solver = target.run()
    assert torch.equal(solver.model.layers[0].weight, best['layers.0.weight'])
    assert len(history(target)) == 1 and 'loaded model from "best"' in caplog.text
    assert torch.equal(last(target).models['ema']['layers.0.weight'], best['layers.0.weight'])
    target.run()
    assert 'continue_from is not used' in caplog.text


def test_continue_from_what_does_not_fit(toy, tmp_path):
    source = toy(name='source')
    source.run()

    class Wider(ToySolver):
        def build_model(self):
            super().build_model()
            self.model.layers[0] = torch.nn.Linear(6, 9)

    with pytest.raises(UserError, match=r'of another shape \(layers.0.weight \(8, 6\) where \(9, 6\)'):
        toy(f'continue_from={source.xp_folder}', solver=Wider, name='b', ema=False).run()
    with pytest.raises(UserError, match='nowhere'):
        toy(f'continue_from={tmp_path}/nowhere', name='c').run()


# -- what changed ------------------------------------------------------------------------------------------------------

def test_a_changed_config_is_named(toy, caplog):
    runner = toy('optim.epochs=1')
    runner.run()
    with pytest.raises(UserError, match=r'optim.lr: 0.01 -> 0.05') as caught:
        runner.run('optim.lr=0.05', 'logging.log_updates=1', 'evaluate.every=1', 'num_threads=1')
    assert str(caught.value).count('->') == 1
    runner.run('optim.lr=0.05', 'allow_config_change=true')
    assert 'Going on with a changed config' in caplog.text


def test_changed_data_is_refused_by_name(toy):
    class Facts(ToySolver):
        sha = 'aa'

        def data_facts(self):
            return {'train': {'mean.memmap': Facts.sha}}

    runner = toy(solver=Facts)
    runner.run()
    Facts.sha = 'bb'
    with pytest.raises(UserError, match=r'data of this XP has changed .*\n.*train.mean.memmap: aa -> bb'):
        runner.run('allow_config_change=true')


def test_changed_code_is_named(toy):
    runner = toy()
    runner.run()

    class More(ToySolver):
        def build_model(self):
            super().build_model()
            self.more = torch.nn.Linear(2, 2)
            self.register_stateful('more')

    runner.solver_class = More
    with pytest.raises(UserError, match=r"only in the solver: \['more'\]"):
        runner.run()


def test_a_second_process_is_refused(toy):
    runner = toy()
    with runner.solver() as solver, XPLock(runner.xp_folder) as lock:
        solver.run()  # the same process: whoever calls may hold the lock
        assert lock.path.exists()


# -- updates -----------------------------------------------------------------------------------------------------------

class Poisoned(ToySolver):
    """Its loss is NaN in some updates."""

    bad: set[int] = set()

    def build_dataloaders(self):
        super().build_dataloaders()
        self.dataloaders['train'] = [_Named(*next(iter(torch.utils.data.DataLoader(Data(), batch_size=4))))]

    def run_step(self, idx, batch, metrics):
        if not self.is_training:
            return super().run_step(idx, batch, metrics)
        x = batch.x * (math.nan if self.update in self.bad else 1.)
        return super().run_step(idx, (x, batch.y), metrics)


class _Named:
    def __init__(self, x, y):
        self.x, self.y, self.ids = x, y, ['clip1', 'clip2', 'clip3', 'clip4']

    def __len__(self):
        return len(self.ids)


def test_bad_updates_are_skipped_and_counted(toy, caplog):
    Poisoned.bad = {2, 7}
    runner = toy(solver=Poisoned)
    solver = runner.run()
    assert solver.updater.skipped == 2
    assert math.isfinite(history(runner)[0]['train']['loss'])
    assert history(runner)[0]['train']['skipped'] == pytest.approx(0.2)
    assert 'Update 3 was skipped' in caplog.text and 'clip1, clip2' in caplog.text


def test_too_many_bad_updates_stop_the_run(toy):
    Poisoned.bad = set(range(6, 100))
    with pytest.raises(UserError, match=r'3 updates in a row were skipped, up to update 9: .*clip1, clip2, clip3'):
        toy('max_skipped=3', solver=Poisoned).run()


def test_draws_depend_on_seed_and_update_alone(toy):
    seen = {}

    class Drawing(ToySolver):
        def run_step(self, idx, batch, metrics):
            first, second = self.draws(4), self.draws(4)
            if self.is_training:
                seen.setdefault(self.update, []).append((first.randn(2), second.randn(2)))
            return super().run_step(idx, batch, metrics)

    toy(solver=Drawing, name='a').run()
    toy(solver=Drawing, name='b').run()
    for (a, b), (c, d) in seen.values():
        assert torch.equal(a, c) and torch.equal(b, d) and not torch.equal(a, b)
    assert not torch.equal(seen[0][0][0], seen[1][0][0])


# -- checkpoints and reports -------------------------------------------------------------------------------------------

def test_what_a_checkpoint_holds(toy):
    runner = toy('checkpoint.keep_last=1')
    runner.run()
    (folder,) = list_checkpoints(runner.xp_folder / 'checkpoints')
    assert folder.name == '15'
    for path in folder.glob('*.pt'):
        torch.load(path, weights_only=True)
    assert 'optim:' in (folder / 'config.yaml').read_text()
    assert set(last(runner).state['models']) == {'model'}
    assert set(last(runner).state['objects']) == {'optimizer', 'schedule', 'updater', 'counter'}


def test_several_modules(toy):
    class Two(ToySolver):
        def build_model(self):
            super().build_model()
            self.critic = torch.nn.Linear(2, 2)
            self.register_stateful('critic')
            self.register_best('critic')
            self.register_ema('critic')

    runner = toy(solver=Two)
    runner.run()
    assert set(last(runner).models) == {'model', 'critic', 'ema', 'ema.critic', 'best', 'best.critic'}
    with runner.solver() as solver:
        assert solver.restore() and set(solver.best.states) == {'model', 'critic'}
    assert state.weights_name('best', 'critic') == 'best.critic'


def test_save_when_asked(toy):
    class Saving(ToySolver):
        def run_step(self, idx, batch, metrics):
            if self.is_training and self.update == 6:
                self.save()
            return super().run_step(idx, batch, metrics)

    runner = toy('checkpoint.keep_last=null', solver=Saving)
    runner.run()
    assert [path.name for path in list_checkpoints(runner.xp_folder / 'checkpoints')] == ['5', '7', '10', '15']


def test_lines_and_metrics(toy, caplog):
    runner = toy()
    runner.run()
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith('Train | Epoch 2/3')]
    assert len(lines) == 3
    for part in ('2/5', 'it/s', 'data ', 'eta 0:00:00', 'loss ', 'grad_norm ', 'lr 0.01'):
        assert part in lines[0]
    entries = [json.loads(line) for line in (runner.xp_folder / 'metrics.jsonl').read_text().splitlines()]
    assert [e['update'] for e in entries if e['kind'] == 'step'] == [2, 4, 5, 7, 9, 10, 12, 14, 15]
    assert {e['stage'] for e in entries if e['kind'] == 'stage'} == {'train', 'valid', 'evaluate', 'generate'}


def test_tensorboard(toy):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    runner = toy('logging.tensorboard=true')
    runner.run()
    events = EventAccumulator(str(runner.xp_folder / 'tensorboard'))
    events.Reload()
    assert [e.step for e in events.Scalars('train/loss')] == [2, 4, 5, 7, 9, 10, 12, 14, 15]
    assert [e.step for e in events.Scalars('valid_epoch/loss')] == [5, 10, 15]


def test_weights_and_biases(toy, monkeypatch):
    logged = []

    class Run:
        log = staticmethod(logged.append)
        finish = staticmethod(lambda: logged.append('finished'))

    fake = type(sys)('wandb')
    fake.init = lambda **kwargs: logged.append(kwargs) or Run
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    toy('logging.wandb=true').run()
    assert logged[0]['mode'] == 'offline' and logged[0]['id'] == 'c0ffee00' and logged[-1] == 'finished'
    assert logged[1]['update'] == 2 and 'train/loss' in logged[1]


@pytest.mark.parametrize('key, package', [('wandb', 'wandb'), ('tensorboard', 'torch.utils.tensorboard')])
def test_a_missing_logger_names_its_extra(toy, monkeypatch, key, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf'audiocraft\[{key}\]'):
        toy(f'logging.{key}=true').run()


def test_show(toy, caplog):
    with toy().solver() as solver:
        solver.show()
    assert 'model.layers' in caplog.text and 'M parameters' in caplog.text


def test_autocast_and_compile(toy, monkeypatch):
    monkeypatch.setattr(torch, 'compile', lambda function: ('compiled', function))
    with toy('autocast=true', 'compile=true').solver() as solver:
        with solver.autocast():
            assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype == torch.bfloat16
        assert solver.compile(len) == ('compiled', len)
    with toy(name='b').solver() as solver, solver.autocast():
        assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype == torch.float32 and solver.compile(len) is len


def test_secrets_are_written_nowhere(toy, monkeypatch):
    from audiocraft.utils import secrets
    from audiocraft.utils.logging import setup_logging
    monkeypatch.setenv('HUB_TOKEN', 'hunter2hunter2')
    secrets.refresh()

    class Leaky(ToySolver):
        def build_model(self):
            super().build_model()
            self.logger.info('fetching with hunter2hunter2, api_key=abcdefgh12345')

    runner = toy('+hub.token=${oc.env:HUB_TOKEN}', '+hub.api_key=abcdefgh12345', solver=Leaky)
    setup_logging(runner.xp_folder)
    try:
        runner.run()
        assert 'secret' not in runner.run().history  # and a resumed run sees no change of the config
    finally:
        secrets.refresh()
    written = [path for path in runner.xp_folder.rglob('*') if path.is_file()]
    assert any('***' in path.read_text(errors='replace') for path in written if path.name == 'config.yaml')
    for path in written:
        content = path.read_bytes()
        assert b'hunter2hunter2' not in content and b'abcdefgh12345' not in content, path
