import logging

import pytest
import torch

from audiocraft import optim
from audiocraft.optim.dadapt_adam import DAdaptAdam
from audiocraft.optim.schedules import Constant
from audiocraft.utils.errors import UserError


def weight(value=3., size=4):
    return torch.nn.Parameter(torch.full((size,), value))


def train(weights, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        sum((one - 1.).abs().sum() for one in weights).backward()
        optimizer.step()


def test_finds_its_rate_over_orders_of_magnitude():
    for d0 in (1e-8, 1e-4):
        weights = [weight()]
        optimizer = DAdaptAdam(weights, d0=d0)
        train(weights, optimizer, 800)
        assert (weights[0] - 1.).abs().max() < 0.5  # of 2 at the start
        assert optimizer.param_groups[0]['d'] > 1e-3


def test_a_group_is_one_optimizer_with_the_others():
    together, apart = [weight(), weight(2.)], [weight(), weight(2.)]
    one, two = DAdaptAdam(together), DAdaptAdam([{'params': apart[:1]}, {'params': apart[1:]}])
    train(together, one, 50)
    train(apart, two, 50)
    assert all(torch.equal(a, b) for a, b in zip(together, apart))
    assert one.param_groups[0]['d'] == two.param_groups[0]['d'] == two.param_groups[1]['d']


def test_resumes_exactly():
    straight, weights = [weight()], [weight()]
    optimizer = DAdaptAdam(straight, weight_decay=0.1)
    train(straight, optimizer, 60)
    first = DAdaptAdam(weights, weight_decay=0.1)
    train(weights, first, 25)
    second = DAdaptAdam(weights, weight_decay=0.1)
    second.load_state_dict(first.state_dict())
    train(weights, second, 35)
    assert torch.equal(weights[0], straight[0]) and second.param_groups[0]['d'] == optimizer.param_groups[0]['d']


def test_growth_is_limited():
    weights, found = [weight()], []
    optimizer = DAdaptAdam(weights, growth_rate=1.02)
    for _ in range(50):
        train(weights, optimizer, 1)
        found.append(optimizer.param_groups[0]['d'])
    assert max(b / a for a, b in zip(found, found[1:])) <= 1.02 * (1 + 1e-9) and found[-1] > found[0]


def test_weight_decay_is_of_the_weights_or_of_the_gradients():
    plain, decoupled, coupled = ([weight()] for _ in range(3))
    train(plain, DAdaptAdam(plain, d0=1e-2), 1)
    train(decoupled, DAdaptAdam(decoupled, d0=1e-2, weight_decay=0.5), 1)
    train(coupled, DAdaptAdam(coupled, d0=1e-2, weight_decay=0.5, decouple=False), 1)
    torch.testing.assert_close(plain[0] - decoupled[0], torch.full((4,), 3. * 0.5 * 1e-2), rtol=1e-3, atol=0.)
    assert torch.allclose(plain[0], coupled[0])  # the first step of Adam is a sign


def test_no_gradient_or_no_rate_changes_nothing():
    weights = [weight(), weight()]
    optimizer = DAdaptAdam([{'params': weights[:1]}, {'params': weights[1:], 'lr': 0.}])
    optimizer.step()
    weights[1].grad = torch.ones(4)
    optimizer.step()
    assert all((one == 3.).all() for one in weights) and optimizer.param_groups[0]['d'] == 1e-6
    optimizer.param_groups[0]['lr'] = 0.
    weights[0].grad = torch.ones(4)
    assert optimizer.step(lambda: 7.) == 7. and (weights[0] == 3.).all()


def test_groups_of_different_rates_are_refused():
    weights = [weight(), weight()]
    optimizer = DAdaptAdam([{'params': weights[:1]}, {'params': weights[1:], 'lr': 0.5}])
    with pytest.raises(UserError, match='0.5, 1.0'):
        train(weights, optimizer, 1)


def test_follows_a_schedule_and_comes_from_the_config():
    weights = [weight()]
    optimizer = optim.build_optimizer(weights, {'lr': 1., 'optimizer': {
        '_target_': 'audiocraft.optim.dadapt_adam.DAdaptAdam', 'd0': 1e-2, 'betas': [0.9, 0.99]}})
    schedule = Constant(optimizer, 10, warmup=1)
    train(weights, optimizer, 1)
    assert torch.allclose(weights[0], torch.full((4,), 3. - 0.5 * 1e-2 * 0.1 / 0.01 ** 0.5))
    schedule.step()
    assert optimizer.param_groups[0]['lr'] == 1.


def test_refusals(caplog):
    for options in (dict(d0=0.), dict(growth_rate=1.)):
        with pytest.raises(UserError, match=next(iter(options))):
            DAdaptAdam([weight()], **options)
    with caplog.at_level(logging.WARNING):
        DAdaptAdam([weight()], lr=1e-3)
    assert 'optim.lr=0.001' in caplog.text
