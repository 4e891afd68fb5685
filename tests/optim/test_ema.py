import pytest
import torch
from torch import nn

from audiocraft.optim import EMA


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.tied = nn.Linear(2, 2)
        self.tied.weight = self.layer.weight
        self.norm = nn.BatchNorm1d(2)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer('index', torch.tensor([1, 2]))
        self.register_buffer('table', torch.ones(3), persistent=False)

    def forward(self, x):
        return self.norm(self.layer(x))


def fill(net, value):
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.fill_(value)


def test_is_the_unbiased_average():
    net, decay = Net(), 0.7
    ema = EMA({'net': net}, decay=decay)
    values = [3., 5., -1., 2.]
    for count in range(1, 5):
        fill(net, values[count - 1])
        ema.step()
        weights = torch.tensor([decay ** (count - 1 - i) for i in range(count)])
        expected = (weights * torch.tensor(values[:count])).sum() / weights.sum()
        states = ema.averaged()['net']
        for key in ('layer.weight', 'tied.weight', 'tied.bias', 'norm.running_mean'):
            torch.testing.assert_close(states[key], torch.full_like(states[key], expected))
        assert states['frozen'].tolist() == [values[count - 1]] * 2
        assert states['index'].tolist() == [int(values[count - 1])] * 2
    assert states.keys() == net.state_dict().keys()
    Net().load_state_dict(states)


def test_averaged_is_a_copy_and_before_the_first_step_the_weights():
    net = Net()
    ema = EMA({'net': net}, decay=0.5)
    states = ema.averaged()['net']
    assert all(torch.equal(states[key], value) for key, value in net.state_dict().items())
    fill(net, 4.)
    ema.step()
    assert not torch.equal(states['layer.weight'], ema.averaged()['net']['layer.weight'])


@pytest.mark.parametrize('decay, expected', [(1., 2.), (0., 3.)])
def test_extreme_decays(decay, expected):
    net = nn.Linear(1, 1)
    ema = EMA({'net': net}, decay=decay)
    for value in (1., 2., 3.):
        fill(net, value)
        ema.step()
    assert ema.averaged()['net']['bias'].item() == pytest.approx(expected)


def test_plain_average_remembers_the_initial_weights():
    net = nn.Linear(1, 1)
    fill(net, 8.)
    ema = EMA({'net': net}, decay=0.5, unbiased=False)
    for value in (4., 2.):
        fill(net, value)
        ema.step()
    assert ema.averaged()['net']['bias'].item() == pytest.approx(8 / 4 + 4 / 4 + 2 / 2)


def test_every_n_updates():
    net = nn.Linear(1, 1)
    ema = EMA({'net': net}, decay=1., updates=2)
    for value in (1., 2., 3., 4., 5.):
        fill(net, value)
        ema.step()
    assert ema.averaged()['net']['bias'].item() == 3.


def test_swapped_restores_bit_for_bit_also_after_an_error():
    net = Net()
    ema = EMA({'net': net}, decay=0.9)
    for _ in range(3):
        with torch.no_grad():
            net.layer.weight.add_(torch.randn(2, 2))
        ema.step()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    weight = net.layer.weight
    with pytest.raises(RuntimeError, match='inside'), ema.swapped():
        average = ema.averaged()['net']
        assert all(torch.equal(average[key], value) for key, value in net.state_dict().items())
        assert not torch.equal(net.layer.weight, before['layer.weight'])
        net.train()(torch.randn(4, 2))  # moves running statistics and num_batches_tracked
        raise RuntimeError('inside')
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert net.layer.weight is weight and net.tied.weight is weight
    saved = ema.averaged()['net']
    with ema.swapped():
        pass
    assert all(torch.equal(saved[key], value) for key, value in ema.averaged()['net'].items())


def test_half_precision_weights_are_averaged_in_fp32():
    net = nn.Linear(1, 1).to(torch.bfloat16)
    ema = EMA({'net': net}, decay=0.999)
    for value in [1.] * 1000 + [2.] * 500:
        fill(net, value)
        ema.step()
    average = ema.averaged()['net']['bias']
    old = (0.999 ** 500 - 0.999 ** 1500) / (1 - 0.999 ** 1500)
    assert average.dtype == torch.float32 and average.item() == pytest.approx(2 - old, rel=1e-4)
    with ema.swapped():
        assert net.bias.dtype == torch.bfloat16


def test_resumes_exactly():
    def run(ema, net, values):
        for value in values:
            fill(net, value)
            ema.step()

    values = torch.randn(10).tolist()
    net = Net()
    straight = EMA({'net': net}, decay=0.9)
    run(straight, net, values)
    expected = straight.averaged()['net']
    first = EMA({'net': net}, decay=0.9)
    run(first, net, values[:4])
    other = Net()
    second = EMA({'net': other}, decay=0.9)
    second.load_state_dict(first.state_dict())
    run(second, other, values[4:])
    assert all(torch.equal(a, expected[key]) for key, a in second.averaged()['net'].items())


def test_refuses_the_average_of_another_module():
    state = EMA({'net': nn.Linear(2, 2)}).state_dict()
    with pytest.raises(ValueError, match='shape'):
        EMA({'net': nn.Linear(3, 2)}).load_state_dict(state)
    with pytest.raises(ValueError, match='another module'):
        EMA({'net': nn.Linear(2, 2, bias=False)}).load_state_dict(state)
    with pytest.raises(ValueError, match='another module'):
        EMA({'other': nn.Linear(2, 2)}).load_state_dict(state)
    for kwargs in (dict(decay=1.1), dict(updates=0)):
        with pytest.raises(ValueError):
            EMA({'net': nn.Linear(2, 2)}, **kwargs)


def test_follows_a_module_whose_buffers_are_replaced():
    net = nn.BatchNorm1d(2)
    ema = EMA({'net': net}, decay=0.)
    net.running_mean = torch.full((2,), 5.)
    ema.step()
    assert ema.averaged()['net']['running_mean'].tolist() == [5., 5.]


def test_modules_that_average_themselves_are_taken_as_they_are() -> None:
    class Codebook(nn.Module):
        averages_itself = True

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer('embed', torch.zeros(2))

    model = nn.Sequential(nn.Linear(1, 1), Codebook())
    ema = EMA({'model': model}, decay=0.9)
    for value in (1., 2., 3.):
        model[1].embed.fill_(value)
        nn.init.constant_(model[0].weight, value)
        ema.step()
    averaged = ema.averaged()['model']
    assert averaged['1.embed'].tolist() == [3., 3.] and averaged['0.weight'].item() < 2.5
    with ema.swapped():
        assert model[1].embed.tolist() == [3., 3.]
    restored = EMA({'model': model}, decay=0.9)
    restored.load_state_dict(ema.state_dict())
    assert torch.equal(restored.averaged()['model']['0.weight'], averaged['0.weight'])
