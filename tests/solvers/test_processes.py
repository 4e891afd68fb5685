"""Solvers on several processes: the same training as on one, whole checkpoints, nothing counted twice."""

import json
import typing as tp

import pytest
import torch
from processes import run_ranks

from audiocraft import distrib, optim
from audiocraft.utils.checkpoint import load_latest
from audiocraft.utils.errors import UserError

from .conftest import Data, Runner, ToySolver
from .test_base_resume import differences, outcome


class Network(torch.nn.Module):
    """Blocks in a list, so that FSDP has something to cut; no statistics of batches."""

    def __init__(self, dropout: float = 0.):
        super().__init__()
        self.first = torch.nn.Linear(6, 8)
        self.blocks = torch.nn.ModuleList(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(),
                                                              torch.nn.Dropout(dropout)) for _ in range(2))
        self.last = torch.nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


class Team(ToySolver):
    """Plain DataLoaders, which know nothing of processes; `asked` is called after each update."""

    asked: tp.Callable[[tp.Any], None] = staticmethod(lambda solver: None)  # type: ignore[assignment]
    dropout = 0.
    valid_size = 28

    def build_dataloaders(self) -> None:
        loader = torch.utils.data.DataLoader
        valid = torch.utils.data.Subset(Data(100, noise=0.), range(self.valid_size))
        self.dataloaders = {'train': loader(Data(), batch_size=4, shuffle=True, drop_last=True),
                            'valid': loader(valid, batch_size=8)}

    def build_model(self) -> None:
        self.model = self.prepare(Network(self.dropout))
        self.optimizer = optim.build_optimizer(self.model.parameters(), self.cfg.optim)
        self.schedule = optim.build_lr_scheduler(self.optimizer, self.cfg.schedule, self.total_updates)
        self.updater = self.build_updater(self.model.parameters(), self.optimizer, self.schedule)
        self.seen: list[list[float]] = []
        self.register_stateful('model', 'optimizer', 'schedule', 'updater', 'seen')
        self.register_best('model')
        self.register_ema('model')

    def run_step(self, idx, batch, metrics):
        x, y = batch
        noise = self.draws(len(x)).randn(x.shape[1])
        loss = (self.model(x + 0.01 * noise) - y).square().mean()
        metrics['loss'] = loss.detach()
        if self.is_training:
            whole = [value for part in distrib.gather(x[:, -1].tolist()) for value in part]
            self.seen.append([self.update, *whole])
            metrics.update(self.updater(loss))
            type(self).asked(self)
        return metrics

    def evaluate(self):
        """The means of shares of a list of batches, in their order."""
        batches = [torch.full((2,), float(number)) for number in range(5)]
        own = {number: (batch.mean() + 0 * self.draws(2).rand()[0]).item()
               for number, batch in self.share_batches(batches) if number >= 0}
        everyone: dict[int, float] = {}
        for part in distrib.gather(own):
            assert not everyone.keys() & part.keys()
            everyone |= part
        return {f'batch_{number}': everyone[number] for number in sorted(everyone)}


class Dropping(Team):
    """A stream of dropout for each process."""
    dropout = 0.3


def train(runner: Runner, solver: type, asked: tp.Any = None) -> tp.Any:
    """One run on this process; the status with which it was asked to end, or the update it reached."""
    runner.solver_class = solver
    solver.asked = staticmethod(asked or (lambda solver: None))
    try:
        return runner.run().update
    except SystemExit as ended:
        return f'status {ended.code}'


def start(runner: Runner, world_size: int, solver: type = Team, asked: tp.Any = None) -> list[tp.Any]:
    return run_ranks(train, world_size, runner, solver, asked)


def last(runner: Runner) -> tp.Any:
    found = load_latest(runner.xp_folder / 'checkpoints')
    assert found is not None
    return found


def close(one: Runner, other: Runner) -> None:
    """The same losses, weights and averages, to the accuracy of sums in another order; the same batches exactly."""
    a, b = last(one), last(other)
    assert a.models.keys() == b.models.keys()
    for name in a.models:
        for key in a.models[name]:
            torch.testing.assert_close(a.models[name][key], b.models[name][key], rtol=1e-4, atol=1e-5)
    histories = [json.loads((runner.xp_folder / 'history.json').read_text()) for runner in (one, other)]
    assert len(histories[0]) == len(histories[1])
    for left, right in zip(*histories):
        assert left['train']['loss'] == pytest.approx(right['train']['loss'], rel=1e-4)
        assert left['valid']['loss'] == pytest.approx(right['valid']['loss'], rel=1e-4)


def batches_seen(runner: Runner) -> dict[int, list[float]]:
    """Update to the items of its batch, in order; the parts of micro-batches one after the other."""
    seen: dict[int, list[float]] = {}
    for update, *items in last(runner).state['objects']['seen']:
        seen.setdefault(int(update), []).extend(items)
    return seen


@pytest.fixture(scope='module')
def one(tmp_path_factory):
    """What one process makes of it."""
    from .conftest import EMA
    runner = Runner(tmp_path_factory.mktemp('one'), Team, *EMA)
    assert start(runner, 1) == [15]
    return runner


@pytest.mark.parametrize('mode', ['ddp', 'fsdp', 'none'])
def test_two_processes_do_what_one_does(toy, one, mode):
    two = toy(f'distrib={mode}', solver=Team)
    assert start(two, 2) == [15, 15]
    close(two, one)
    assert batches_seen(two) == batches_seen(one)
    assert json.loads((two.xp_folder / 'status.json').read_text())['world_size'] == 2


def test_accumulation_is_another_process(toy, one):
    two = toy('optim.accumulate=2', solver=Team)
    assert start(two, 1) == [15]
    close(two, one)
    assert batches_seen(two) == batches_seen(one)


@pytest.mark.parametrize('mode', ['ddp', 'fsdp'])
def test_accumulation_on_two_processes(toy, one, mode):
    two = toy(f'distrib={mode}', 'optim.accumulate=2', 'activation_checkpointing=true', solver=Team)
    assert start(two, 2) == [15, 15]
    close(two, one)


@pytest.mark.parametrize('size, world_size', [(25, 2), (25, 3), (28, 3)])
def test_valid_counts_each_item_once(toy, size, world_size):
    class Uneven(Team):
        valid_size = size

    single, several = toy(solver=Uneven, name='single'), toy('dataset.batch_size=24', solver=Uneven, name='several')
    assert start(single, 1, Uneven) == [15]
    run_ranks(only_valid, world_size, several, Uneven, single.xp_folder)
    assert json.loads((several.xp_folder / 'valid.json').read_text()) == pytest.approx(
        json.loads((single.xp_folder / 'history.json').read_text())[-1]['valid']['loss'], rel=1e-5)


def only_valid(runner: Runner, solver: type, trained: tp.Any) -> None:
    """Valid on the weights that another run ended with."""
    with runner.solver() as made:
        distrib.load_full_state(made.model, load_latest(trained / 'checkpoints', set_aside=False).models['ema'])
        loss = made.run_stage('valid', made.valid)['loss']
        if distrib.is_rank_zero():
            (made.folder / 'valid.json').write_text(json.dumps(loss))


def test_evaluate_is_shared_out(toy):
    runner = toy(solver=Team)
    start(runner, 2)
    results = json.loads((runner.xp_folder / 'evaluate' / '15.json').read_text())['metrics']
    assert {key: value for key, value in results.items() if key.startswith('batch')} == {
        f'batch_{number}': float(number) for number in range(5)}


def term_on_rank_one(solver):
    if solver.update == 6 and distrib.rank() == 1:
        solver.stop.request('SIGTERM')


@pytest.mark.parametrize('mode', ['ddp', 'fsdp'])
def test_stopped_and_resumed_to_the_bit(toy, mode):
    whole, cut = (toy(f'distrib={mode}', name=name, solver=Dropping) for name in ('whole', 'cut'))
    start(whole, 2, Dropping)
    assert start(cut, 2, Dropping, term_on_rank_one) == ['status 143'] * 2
    assert last(cut).update == 7 and last(cut).rank_states.keys() == {0, 1}
    assert json.loads((cut.xp_folder / 'status.json').read_text())['state'] == 'stopped'
    assert start(cut, 2, Dropping) == [15, 15]
    assert differences(outcome(whole), outcome(cut)) == []


def signal_after_they_asked(solver):
    """A signal to process 1 alone, right after all have agreed that there was none."""
    genuine = distrib.agree

    def agree(flag):
        agreed = genuine(flag)
        if not agreed and not flag and solver.update == 3 and distrib.rank() == 1:
            solver.stop.request('SIGTERM')
        return agreed
    if solver.update == 2:
        distrib.agree = agree


def test_a_signal_at_the_worst_moment_stops_all_at_one_update(toy):
    runner = toy(solver=Team)
    assert start(runner, 2, asked=signal_after_they_asked) == ['status 143'] * 2
    assert last(runner).update == 4
    assert start(runner, 2) == [15, 15]


def test_processes_drop_apart(toy):
    runner = toy(solver=Dropping)
    start(runner, 2, Dropping)
    states = last(runner).rank_states
    assert not torch.equal(states[0]['torch'], states[1]['torch'])


def stop_at_update(number):
    def asked(solver):
        if solver.update == number:
            solver.stop.request('SIGUSR1')
    return asked


@pytest.mark.parametrize('first, second', [('ddp', 'ddp'), ('fsdp', 'ddp'), ('ddp', 'fsdp')])
def test_another_number_of_processes_goes_on(toy, one, first, second):
    runner = toy(solver=Team)
    for world_size, mode, until in [(2, first, 3), (1, second, 8), (2, second, None)]:
        runner.overrides = (*runner.overrides[:3], f'distrib={mode}')
        ended = start(runner, world_size, asked=None if until is None else stop_at_update(until))
        assert ended == ([15] if until is None else ['status 0']) * world_size
        assert last(runner).update == (until + 1 if until else 15)
    close(runner, one)
    assert batches_seen(runner) == batches_seen(one)


def test_commands_reach_all_processes(toy):
    runner = toy(solver=Team)
    assert start(runner, 2, asked=send_commands) == [15, 15]
    history = json.loads((runner.xp_folder / 'history.json').read_text())
    assert history[0]['control'] == {'lr': 0.002, 'lr_update': 4}
    assert last(runner).state['objects']['schedule']['scale'] == pytest.approx(0.2)
    assert (runner.xp_folder / 'evaluate' / '6.json').exists()


def send_commands(solver):
    """As if they had been typed on process 0."""
    if distrib.is_rank_zero():
        for line in {3: ['lr 0.002', 'nonsense', 'time'], 5: ['eval', 'save', 'export']}.get(solver.update, []):
            solver.control._typed.put(line)


class Different(Team):
    def run_step(self, idx, batch, metrics):
        metrics = super().run_step(idx, batch, metrics)
        return {**metrics, f'only_{distrib.rank()}': 1.} if self.is_training else metrics


def test_different_metrics_are_an_error(toy):
    runner = toy(solver=Different)
    for text in run_ranks(train, 2, runner, Different, None, fails=True):
        assert 'UserError: The processes have different metrics: only_0 only on process 0' in text


class ByHand(ToySolver):
    """As one writes a solver without knowing of processes: no `prepare`, no `Updater`."""

    def build_model(self):
        self.model = Network()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.register_stateful('model', 'optimizer')

    def run_step(self, idx, batch, metrics):
        x, y = batch
        loss = (self.model(x) - y).square().mean()
        if self.is_training:
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return {'loss': loss.detach()}


def by_hand(runner):
    return {key: tensor.tolist() for key, tensor in runner.run().model.state_dict().items()}


def test_a_solver_that_knows_nothing_of_processes(toy):
    runner = toy(solver=ByHand, ema=False)
    alone = run_ranks(by_hand, 1, runner)[0]
    first, second = run_ranks(by_hand, 2, toy(solver=ByHand, ema=False, name='b'))
    assert first == second
    for key in alone:
        torch.testing.assert_close(torch.tensor(alone[key]), torch.tensor(first[key]), rtol=1e-4, atol=1e-6)


def too_small(runner):
    with pytest.raises(UserError, match='multiple of 2'):
        runner.run()


def test_a_batch_that_does_not_divide_is_refused(toy):
    run_ranks(too_small, 2, toy('dataset.batch_size=5', solver=Team))
