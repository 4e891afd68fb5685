import copy

import pytest
import torch
from torch import nn

from audiocraft import optim
from audiocraft.optim import schedules
from audiocraft.utils.errors import UserError


def setup(accumulate=1, max_norm=None, **kwargs):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    schedule = schedules.Linear(optimizer, 10)
    return model, optim.Updater(model.parameters(), optimizer, scheduler=schedule, accumulate=accumulate,
                                max_norm=max_norm, **kwargs)


def losses(model, x):
    return (model(x) ** 2).mean()


def test_equals_a_plain_loop():
    model, updater = setup(max_norm=0.5)
    plain = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.1)
    for update in range(5):
        x = torch.randn(6, 4)
        optimizer.param_groups[0]['lr'] = 0.1 * (1 - update / 10)
        losses(plain, x).backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        metrics = updater(losses(model, x))
        assert torch.equal(metrics['grad_norm'], norm)
        assert metrics['lr'] == pytest.approx(0.1 * (1 - update / 10)) and metrics['skipped'] == 0.
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters()))
    assert updater.updates == 5 and all(param.grad is None for param in model.parameters())


def test_accumulation_is_the_whole_batch():
    whole, update_whole = setup()
    parts, update_parts = setup(accumulate=3)
    for _ in range(3):
        x = torch.randn(6, 4)
        one = update_whole(losses(whole, x))
        found = [update_parts(losses(parts, piece)) for piece in x.chunk(3)]
        assert found[:2] == [{}, {}]
        torch.testing.assert_close(found[2]['grad_norm'], one['grad_norm'])
    for a, b in zip(whole.parameters(), parts.parameters()):
        torch.testing.assert_close(a, b)
    assert update_parts.updates == 3


@pytest.mark.parametrize('where', ['loss', 'gradient', 'first_micro'])
def test_not_finite_is_skipped_and_counted(where):
    model, updater = setup(accumulate=2, max_norm=1.)
    updater(losses(model, torch.ones(2, 4)))
    updater(losses(model, torch.ones(2, 4)))
    before = copy.deepcopy((model.state_dict(), updater.optimizer.state_dict()['state']))

    def bad():
        if where == 'loss':  # not finite, and without a gradient
            return losses(model, torch.ones(2, 4)) * 0 + float('inf')
        return losses(model, torch.full((2, 4), float('nan')))

    steps = [bad, lambda: losses(model, torch.ones(2, 4))]
    for step in steps if where == 'first_micro' else steps[::-1]:
        metrics = updater(step())
    assert metrics['skipped'] == 1.
    assert updater.skipped == updater.skipped_in_row == 1 and updater.updates == 2
    after = (model.state_dict(), updater.optimizer.state_dict()['state'])
    assert all(torch.equal(a, b) for a, b in zip(before[0].values(), after[0].values()))
    assert all(torch.equal(before[1][i][key], after[1][i][key]) for i in before[1] for key in before[1][i])
    assert updater.lr == pytest.approx(0.08), 'the schedule counts skipped updates too'
    updater(losses(model, torch.ones(2, 4)))
    assert updater(losses(model, torch.ones(2, 4)))['skipped'] == 0.
    assert updater.skipped == 1 and updater.skipped_in_row == 0


def test_other_processes_have_a_say(monkeypatch):
    model, updater = setup()
    before = copy.deepcopy(model.state_dict())
    monkeypatch.setattr('audiocraft.distrib.agree', lambda flag: True)
    assert updater(losses(model, torch.ones(2, 4)))['skipped'] == 1.
    assert torch.equal(before['weight'], model.weight)


def test_loss_scale_changes_nothing_but_backs_off():
    scale = optim.LossScale(init=1024., min=256., max=2048., window=2)
    model, updater = setup(loss_scale=scale, max_norm=1.)
    plain, update_plain = setup(max_norm=1.)
    x = torch.randn(6, 4)
    made, expected = updater(losses(model, x)), update_plain(losses(plain, x))
    torch.testing.assert_close(made['grad_norm'], expected['grad_norm'])
    torch.testing.assert_close(model.weight, plain.weight)
    assert made['loss_scale'] == 1024.
    assert updater(losses(model, x) * float('inf'))['skipped'] == 1.
    assert updater(losses(model, x))['loss_scale'] == 512.
    state = updater.state_dict()
    again, other = setup(loss_scale=optim.LossScale(init=1024., min=256., max=2048., window=2))
    other.load_state_dict(state)
    assert other.loss_scale.state_dict() == scale.state_dict() == {'value': 512., 'good': 1, 'hits': 0}


def test_loss_scale_stays_within_its_bounds():
    scale = optim.LossScale(init=1024., min=512., max=2048., window=2)
    for finite, value, hits in [(False, 512., 0), (False, 512., 1), (False, 512., 2), (True, 512., 2), (True, 1024., 2),
                                (True, 1024., 2), (True, 2048., 2), (True, 2048., 2), (True, 2048., 2)]:
        scale.update(finite)
        assert (scale.value, scale.hits) == (value, hits)
    for wrong in [{'min': 0.}, {'init': 1.}, {'max': 100.}, {'window': 0}]:
        with pytest.raises(UserError):
            optim.LossScale(**wrong)


def test_average_steps_once_per_update():
    class Count:
        steps = 0

        def step(self):
            self.steps += 1

    model, updater = setup(accumulate=2, ema=Count())
    for _ in range(6):
        updater(losses(model, torch.ones(2, 4)))
    assert updater.ema.steps == 3


def test_state_is_plain_and_restores():
    model, updater = setup(accumulate=2)
    updater(losses(model, torch.ones(2, 4)))
    updater(losses(model, torch.full((2, 4), float('nan'))))
    updater(losses(model, torch.ones(2, 4)))
    state = updater.state_dict()
    assert state == {'updates': 1, 'skipped': 1, 'skipped_in_row': 1, 'micro': 1}
    model, other = setup(accumulate=2)
    other.load_state_dict(state)
    assert (other.updates, other.skipped, other.skipped_in_row, other.micro) == (1, 1, 1, 0)


def test_frozen_parameters_are_left_alone():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    updater = optim.Updater(model.parameters(), torch.optim.SGD([model.weight], lr=1.), max_norm=1.)
    assert len(updater.params) == 1
    updater(losses(model, torch.ones(1, 2)))
    with pytest.raises(ValueError, match='accumulate'):
        optim.Updater(model.parameters(), updater.optimizer, accumulate=0)
