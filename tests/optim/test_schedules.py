import math
import warnings

import pytest
import torch

from audiocraft.optim import schedules
from audiocraft.utils.errors import UserError

KINDS = [
    (schedules.Constant, dict(warmup=3)),
    (schedules.WarmupSteps, dict(warmup=2, milestones=[3, 5], gamma=0.1)),
    (schedules.Cosine, dict(warmup=3, min_ratio=0.1)),
    (schedules.Linear, dict(warmup=3, min_ratio=0.1)),
    (schedules.Polynomial, dict(warmup=3, power=2.)),
    (schedules.InverseSqrt, dict(warmup=3)),
    (schedules.Exponential, dict(warmup=3, gamma=0.5, every=2)),
]


def make(kind, total=20, lr=0.5, **kwargs):
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{'params': weights[:1]}, {'params': weights[1:], 'lr': 2 * lr}], lr=lr)
    return optimizer, kind(optimizer, total, **kwargs)


def rates(kind, updates=30, **kwargs):
    optimizer, schedule = make(kind, lr=1., **kwargs)
    found = []
    for _ in range(updates):
        found.append(optimizer.param_groups[0]['lr'])
        schedule.step()
    return found


@pytest.mark.parametrize('kind, kwargs', KINDS)
def test_resumes_at_any_update(kind, kwargs):
    straight = rates(kind, **kwargs)
    for update in (0, 1, 7, 25):
        optimizer, schedule = make(kind, lr=1., **kwargs)
        schedule.load_state_dict({'update': update, 'scale': 1.})
        assert [group['lr'] for group in optimizer.param_groups] == [straight[update], 2 * straight[update]]
        schedule.step()
        assert optimizer.param_groups[0]['lr'] == straight[update + 1]


@pytest.mark.parametrize('kind, kwargs', KINDS)
def test_warmup_never_starts_at_zero_and_reaches_the_rate(kind, kwargs):
    found = rates(kind, **kwargs)
    warmup = kwargs['warmup']
    assert found[:warmup] == pytest.approx([(i + 1) / (warmup + 1) for i in range(warmup)])
    assert found[warmup] == pytest.approx(1.)
    assert all(math.isfinite(rate) and rate >= 0 for rate in found)


def test_closed_forms():
    assert rates(schedules.WarmupSteps, warmup=2, milestones=[5, 3])[2:9] == pytest.approx([1, 1, 1, .1, .1, .01, .01])
    cosine = rates(schedules.Cosine, warmup=0, min_ratio=0.2)
    assert [cosine[i] for i in (0, 10, 20, 29)] == pytest.approx([1, 0.6, 0.2, 0.2])
    linear = rates(schedules.Linear, warmup=10)
    assert [linear[i] for i in (10, 15, 20, 25)] == pytest.approx([1, 0.5, 0, 0])
    assert rates(schedules.Polynomial, warmup=10, power=3.)[15] == pytest.approx(0.125)
    assert rates(schedules.InverseSqrt, warmup=4)[16] == pytest.approx(0.5)
    assert rates(schedules.Exponential, gamma=0.25, every=10)[5] == pytest.approx(0.5)


@pytest.mark.parametrize('kind, kwargs', KINDS)
def test_warmup_from_a_given_start(kind, kwargs):
    for start in (0., 0.25):
        found = rates(kind, **kwargs, warmup_start=start)
        warmup = kwargs['warmup']
        assert found[:warmup] == pytest.approx([start + (1 - start) * i / warmup for i in range(warmup)])
        assert found[warmup] == pytest.approx(1.)
        assert found[warmup:] == rates(kind, **kwargs)[warmup:]


def test_options():
    cosine = rates(schedules.Cosine, warmup=0, min_ratio=0.2, cycle_length=0.5)
    assert [cosine[i] for i in (0, 5, 10, 20, 21)] == pytest.approx([1, 0.6, 0.2, 1, 0.2])
    steps = rates(schedules.Exponential, gamma=0.5, every=4, smooth=False, warmup=2)
    assert steps[2:12] == pytest.approx([1, 1, 1, 1, .5, .5, .5, .5, .25, .25])
    early = rates(schedules.InverseSqrt, warmup=4, ahead=1)
    assert early[:29] == rates(schedules.InverseSqrt, warmup=4)[1:]
    late = rates(schedules.Polynomial, warmup=4, power=1., zero_updates=6)
    assert late[:6] == [0.] * 6 and late[6:10] == pytest.approx([.2, .4, .6, .8])
    assert [late[i] for i in (10, 15, 20, 25)] == pytest.approx([1, .5, 0, 0])


def test_warmup_as_long_as_the_training_is_no_division_by_zero():
    for kind in (schedules.Cosine, schedules.Linear, schedules.Polynomial):
        assert all(math.isfinite(rate) for rate in rates(kind, total=5, warmup=5))


def test_set_lr_rescales_all_groups_and_is_saved():
    optimizer, schedule = make(schedules.Cosine, lr=1.)
    for _ in range(10):
        schedule.step()
    schedule.set_lr(0.05)
    assert [group['lr'] for group in optimizer.param_groups] == pytest.approx([0.05, 0.1])
    schedule.step()
    later = optimizer.param_groups[0]['lr']
    assert later == pytest.approx(0.1 * schedule.factor(11))
    other, again = make(schedules.Cosine, lr=1.)
    again.load_state_dict(schedule.state_dict())
    assert other.param_groups[0]['lr'] == later
    again.rescale(1.)
    assert other.param_groups[0]['lr'] == pytest.approx(schedule.factor(11))


def test_refusals():
    with pytest.raises(UserError, match='total_updates'):
        make(schedules.Constant, total=0)
    with pytest.raises(UserError, match='warmup'):
        make(schedules.InverseSqrt, warmup=0)
    with pytest.raises(UserError, match='cycle_length'):
        make(schedules.Cosine, cycle_length=0.)
    _, schedule = make(schedules.Linear)
    with pytest.raises(UserError, match='not negative'):
        schedule.rescale(-1.)
    schedule.load_state_dict({'update': 20, 'scale': 1.})
    with pytest.raises(UserError, match='at zero'):
        schedule.set_lr(0.1)


def test_no_warning_when_the_first_update_is_skipped():
    _, schedule = make(schedules.Constant)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        schedule.step()


def test_tensor_rates_are_changed_in_place():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([weight], lr=torch.tensor(1.))
    rate = optimizer.param_groups[0]['lr']
    schedule = schedules.Linear(optimizer, 4)
    schedule.step()
    assert optimizer.param_groups[0]['lr'] is rate and rate.item() == pytest.approx(0.75)
