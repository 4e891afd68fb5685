"""What processes say to each other, and models that they train together."""

import os

import pytest
import torch
from processes import run_ranks
from torch import nn

from audiocraft import distrib, optim
from audiocraft.modules.activation_checkpoint import checkpoint_blocks
from audiocraft.optim import optimizer_state
from audiocraft.utils.averager import Averager
from audiocraft.utils.errors import UserError


class Net(nn.Module):
    """Blocks in a list, and parameters beside it, one of which is used outside of `forward`."""

    forward_methods = ('scores',)

    def __init__(self, depth=2):
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Linear(3, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.)) for _ in range(depth))
        self.null = nn.Parameter(torch.randn(3))
        self.register_buffer('offset', torch.ones(8))

    def forward(self, x):
        return self.scores(x).sum(-1)

    def scores(self, x):
        x = self.first(x) + self.offset
        for block in self.blocks:
            x = block(x)
        return x


def talk():
    rank = distrib.rank()
    values = {
        'agree': (distrib.agree(rank == 1), distrib.agree(False)),
        'gather': distrib.gather({'rank': rank, 'x': torch.arange(rank + 1).tolist(), 'none': None}),
        'to_zero': distrib.gather('x' * (10 * rank), everywhere=False),
        'from_zero': distrib.from_rank_zero(lambda: {'of': rank}),
        'sum': distrib.all_reduce(torch.tensor([1., rank])).tolist(),
        'broadcast': distrib.broadcast(torch.tensor([float(rank + 5)])).tolist(),
    }
    tensors = [torch.full((2,), float(rank)), torch.full((3,), rank, dtype=torch.float64)]
    distrib.average(tensors)
    with pytest.raises(UserError, match='only here'):
        distrib.from_rank_zero(lambda: (_ for _ in ()).throw(UserError('only here')))
    return {**values, 'average': [tensor.tolist() for tensor in tensors]}


def test_talk():
    first, second = run_ranks(talk, 2)
    assert first.pop('to_zero') == ['', 'x' * 10] and second.pop('to_zero') == []
    assert first == second == {
        'agree': (True, False), 'from_zero': {'of': 0}, 'sum': [2., 1.], 'broadcast': [5.],
        'gather': [{'rank': 0, 'x': [0], 'none': None}, {'rank': 1, 'x': [0, 1], 'none': None}],
        'average': [[0.5, 0.5], [0.5] * 3]}


def test_alone_nothing_happens():
    model = Net()
    assert distrib.parallelize(model, 'fsdp') is model and not distrib.is_parallel(model)
    assert distrib.gather(3) == [3] and distrib.from_rank_zero(lambda: 4) == 4 and distrib.agree(True)
    assert distrib.total_norm([torch.tensor([3., 4.])]) == 5
    with pytest.raises(UserError, match='distrib.mode=dpd'):
        distrib.parallelize(model, 'dpd')


def train(mode, accumulate=1, max_norm=0.5, checkpointed=False, resume_at=None):
    """Five updates on our part of fixed batches; losses, norms, weights, averages, and the optimizer's state."""
    rank, world_size = distrib.rank(), distrib.world_size()
    model = Net()
    if rank:
        nn.init.zeros_(model.first.weight)  # those of process 0 count
    if checkpointed:
        checkpoint_blocks(distrib.blocks_of(model))
    distrib.parallelize(model, mode)
    optimizer = optim.build_optimizer(model, {'lr': 0.05, 'optimizer': {'_target_': 'torch.optim.AdamW'}})
    updater = optim.Updater(model.parameters(), optimizer, accumulate=accumulate, max_norm=max_norm)
    ema = optim.EMA({'model': model}, decay=0.5)
    model.train()
    seen = []
    for update in range(5):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(update)).chunk(world_size)[rank]
        for number, piece in enumerate(x.chunk(accumulate), 1):
            with distrib.no_sync([model] if number < accumulate else []):
                loss = (model(piece) - (piece * model.null).sum(-1)).square().mean()
                made = updater(loss)
        ema.step()
        seen.append(distrib.all_reduce(loss.detach()).item() / world_size)
        seen.append(made['grad_norm'].item())
        if update == resume_at:
            model, optimizer, updater, ema = again(mode, model, optimizer, updater, ema)
    weights = {name: tensor.tolist() for name, tensor in distrib.full_state(model).items()}
    averages = {name: tensor.tolist() for name, tensor in ema.averaged()['model'].items()}
    with ema.swapped():
        swapped = {name: tensor.tolist() for name, tensor in distrib.full_state(model).items()}
    assert swapped == averages
    state = optimizer_state.full_state(optimizer)
    moments = {number: {name: value.tolist() for name, value in own.items()} for number, own in state['state'].items()}
    with torch.no_grad():
        scores = model.scores(torch.ones(2, 3)).tolist()
    return {'seen': seen, 'weights': weights, 'averages': averages, 'moments': moments,
            'groups': [group['params'] for group in state['param_groups']], 'scores': scores}


def again(mode, *old):
    """New objects with the states of the old ones, through whole states as a checkpoint has them."""
    model = Net()
    distrib.parallelize(model, mode)
    distrib.load_full_state(model, distrib.full_state(old[0]))
    optimizer = optim.build_optimizer(model, {'lr': 0.05, 'optimizer': {'_target_': 'torch.optim.AdamW'}})
    optimizer_state.load_full_state(optimizer, optimizer_state.full_state(old[1]))
    updater = optim.Updater(model.parameters(), optimizer, accumulate=old[2].accumulate, max_norm=old[2].max_norm)
    updater.load_state_dict(old[2].state_dict())
    ema = optim.EMA({'model': model}, decay=0.5)
    ema.load_state_dict(old[3].state_dict())
    return model.train(), optimizer, updater, ema


@pytest.fixture(scope='module')
def alone():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield train('none')
    torch.set_num_threads(threads)


def close(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            close(one[key], other[key])
    else:
        torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('mode', ['none', 'ddp', 'fsdp'])
def test_two_processes_train_what_one_does(mode, alone):
    first, second = run_ranks(train, 2, mode)
    assert first == second
    close({**first, 'seen': first['seen'][1::2]}, {**alone, 'seen': alone['seen'][1::2]})


@pytest.mark.parametrize('mode', ['ddp', 'fsdp'])
def test_accumulation_and_checkpointed_blocks(mode, alone):
    first, second = run_ranks(train, 2, mode, 2, 0.5, True)
    assert first == second
    close(first['weights'], alone['weights'])
    close(first['averages'], alone['averages'])


def test_accumulation_of_one_process_is_two_processes(alone):
    close(train('none', accumulate=2)['weights'], run_ranks(train, 2, 'ddp')[0]['weights'])


@pytest.mark.parametrize('mode', ['ddp', 'fsdp'])
def test_states_are_whole_and_go_on_to_the_bit(mode, alone):
    plain, resumed = run_ranks(train, 2, mode), run_ranks(train, 2, mode, 1, 0.5, False, 2)
    assert plain == resumed
    assert plain[0]['groups'] == alone['groups'] and plain[0]['moments'].keys() == alone['moments'].keys()


def different_metrics():
    averager = Averager()
    averager.update({'loss': 1., 'extra' if distrib.rank() else 'other': 2.})
    return Averager.merged(distrib.gather(averager.state_dict()))


def test_metrics_that_differ_are_an_error_on_all():
    for text in run_ranks(different_metrics, 2, fails=True):
        assert 'UserError: The processes have different metrics: other only on process 0, extra only on' in text


def test_merged_means_are_weighted():
    one, two = Averager(), Averager()
    one.update({'loss': 1.}, 3)
    two.update({'loss': 5.}, 1)
    two.update({'loss': float('nan')}, 1)
    merged = Averager.merged([one.state_dict(), two.state_dict()])
    assert merged.compute() == {'loss': 2.} and merged.nonfinite == {'loss': 1}


def lose_the_other(folder):
    if distrib.rank():
        os._exit(3)
    try:
        for _ in range(100):
            distrib.barrier()
    except RuntimeError as error:
        (folder / 'known').write_text(str(distrib.is_lost_peer(error)))
    assert not distrib.is_lost_peer(ValueError('connection closed by peer'))
    os._exit(0)


def test_a_lost_peer_is_known(tmp_path):
    run_ranks(lose_the_other, 2, tmp_path, answers=0)
    assert (tmp_path / 'known').read_text() == 'True'
