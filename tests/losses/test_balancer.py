"""The balancer: shares of the gradient, one backward pass through the model, averages that survive."""

import json

import pytest
import torch
from torch import nn

from audiocraft import distrib
from audiocraft.losses.balancer import Balancer

WEIGHTS = {'l1': 1., 'l2': 3.}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def batch(batch=4):
    return torch.randn(batch, 2, 50, requires_grad=True), torch.randn(batch, 2, 50)


def losses_of(output, target):
    return {'l1': (output - target).abs().mean(), 'l2': 1000 * (output - target).square().mean()}


def item_norm(gradient):
    return gradient.flatten(1).norm(dim=1).mean()


def gradients(losses, output):
    return {name: torch.autograd.grad(loss, output, retain_graph=True)[0] for name, loss in losses.items()}


def call(balancer, data, weights=WEIGHTS):
    """Loss and gradient of one call."""
    output, target = data
    output = output.detach().requires_grad_()
    loss = balancer(losses_of(output, target), output, weights).loss
    loss.backward()
    return loss.detach(), output.grad


def test_first_call_has_the_shares_of_the_weights():
    output, target = batch()
    losses = losses_of(output, target)
    each = gradients(losses, output)
    balanced = Balancer(total_norm=2.)(losses, output, WEIGHTS)
    scales = {name: WEIGHTS[name] / 4 * 2 / item_norm(each[name]) for name in each}
    balanced.loss.backward()
    torch.testing.assert_close(output.grad, sum(scales[name] * each[name] for name in each))
    torch.testing.assert_close(balanced.loss.detach(), sum(scales[name] * losses[name].detach() for name in each))
    assert balanced.ratios == {}


@pytest.mark.parametrize('name', ['l1', 'l2'])
def test_scale_of_a_loss_does_not_count(name):
    output, target = batch()
    found = []
    for scale in (1., 1e4):
        losses = losses_of(output, target)
        losses[name] = scale * losses[name]
        found.append(torch.autograd.grad(Balancer()(losses, output, WEIGHTS).loss, output)[0])
    torch.testing.assert_close(found[0], found[1])


def test_only_losses_that_are_there_share():
    output, target = batch()
    losses = {'l1': losses_of(output, target)['l1']}
    gradient, = torch.autograd.grad(Balancer()(losses, output, WEIGHTS).loss, output)
    torch.testing.assert_close(item_norm(gradient), torch.tensor(1.))


def test_average_is_not_biased_to_the_start():
    balancer, decay = Balancer(ema_decay=0.8), 0.8
    norms = []
    for step in range(4):
        output, target = batch()
        loss = (10 ** step) * (output - target).square().mean()
        gradient, = torch.autograd.grad(loss, output, retain_graph=True)
        norms.append(item_norm(gradient))
        found, = torch.autograd.grad(balancer({'l2': loss}, output, {'l2': 1.}).loss, output)
        ages = torch.tensor([decay ** (step - i) for i in range(step + 1)])
        average = (ages * torch.stack(norms)).sum() / ages.sum()
        torch.testing.assert_close(found, gradient / average)


def test_norm_of_the_whole_batch():
    output, target = batch()
    losses = losses_of(output, target)
    each = gradients(losses, output)
    found, = torch.autograd.grad(Balancer(per_batch_item=False)(losses, output, WEIGHTS).loss, output)
    expected = sum(WEIGHTS[name] / 4 * gradient / gradient.norm() for name, gradient in each.items())
    torch.testing.assert_close(found, expected)


def test_order_of_the_losses_does_not_matter():
    one, other = Balancer(monitor=True), Balancer(monitor=True)
    weights = {**WEIGHTS, 'l3': 0.7, 'cos': 0.1}  # sums of two would be the same anyway
    for _ in range(3):
        output, target = batch()
        losses = {**losses_of(output, target), 'l3': (output - target).abs().pow(3).mean(), 'cos': output.cos().mean()}
        first = one(losses, output, weights)
        second = other(dict(reversed(losses.items())), output, dict(reversed(weights.items())))
        assert torch.equal(first.loss, second.loss) and first.ratios == second.ratios
        assert torch.equal(*(torch.autograd.grad(made.loss, output)[0] for made in (first, second)))


class Counted(torch.autograd.Function):
    """Identity that counts its backward passes."""

    @staticmethod
    def forward(ctx, x, counts):
        ctx.counts = counts
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.counts.append(1)
        return gradient, None


def test_one_backward_pass_through_the_model():
    model, head = nn.Linear(5, 5), nn.Linear(5, 1)
    above, below = [], []
    output = Counted.apply(model(torch.randn(3, 5)), below)
    seen = Counted.apply(output, above)
    losses = {'head': head(seen).square().mean(), 'l1': seen.abs().mean()}
    balanced = Balancer()(losses, output, {'head': 1., 'l1': 1.})
    assert len(above) == 2 and not below  # each loss alone, and up to the output only
    assert all(parameter.grad is None for parameter in [*model.parameters(), *head.parameters()])
    balanced.loss.backward()
    assert len(above) == 2 and len(below) == 1
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in head.parameters())


def test_accumulated_and_scaled():
    data = [batch(), batch()]
    plain = [call(balancer, item)[1] for balancer in [Balancer()] for item in data]
    weight = torch.zeros(2, 50, requires_grad=True)
    balancer, scaler = Balancer(), torch.amp.GradScaler('cpu', init_scale=1024.)
    for output, target in data:
        made = output.detach() + weight
        scaler.scale(balancer(losses_of(made, target), made, WEIGHTS).loss / 2).backward()
    torch.testing.assert_close(weight.grad / 1024, sum(gradient.sum(0) for gradient in plain) / 2)


def test_other_costs_are_added_beside():
    weight = torch.ones(2, 50, requires_grad=True)
    x, target = torch.randn(4, 2, 50), torch.randn(4, 2, 50)
    alone, = torch.autograd.grad(Balancer()(losses_of(made := x * weight, target), made, WEIGHTS).loss, weight)
    balanced = Balancer()(losses_of(made := x * weight, target), made, WEIGHTS).loss
    (balanced + 5 * weight.sum()).backward()
    torch.testing.assert_close(weight.grad, alone + 5)


@pytest.mark.parametrize('monitor', [False, True])
def test_without_balancing_it_is_the_weighted_sum(monitor):
    output, target = batch()
    losses = losses_of(output, target)
    total = sum(WEIGHTS[name] * loss for name, loss in losses.items())
    balanced = Balancer(balance_grads=False, monitor=monitor)(losses, output, WEIGHTS)
    torch.testing.assert_close(balanced.loss, total)
    found, expected = (torch.autograd.grad(loss, output, retain_graph=True)[0] for loss in (balanced.loss, total))
    torch.testing.assert_close(found, expected)
    assert set(balanced.ratios) == ({'ratio_l1', 'ratio_l2'} if monitor else set())


@pytest.mark.parametrize('no_grad', [False, True])
def test_without_gradients_it_is_the_weighted_sum(no_grad):
    balancer = Balancer(monitor=True)
    output, target = batch()
    with torch.set_grad_enabled(not no_grad):
        output = output if no_grad else output.detach()
        losses = losses_of(output, target)
        balanced = balancer(losses, output, WEIGHTS)
    assert balanced.loss.item() == pytest.approx(float(losses['l1'] + 3 * losses['l2']))
    assert not balanced.loss.requires_grad and balanced.ratios == {} and balancer.state_dict()['sums'] == {}


def test_ratios_are_those_without_balancing():
    output, target = batch()
    losses = losses_of(output, target)
    norms = {name: item_norm(gradient).item() for name, gradient in gradients(losses, output).items()}
    ratios = Balancer(monitor=True)(losses, output, WEIGHTS).ratios
    for name, norm in norms.items():
        assert ratios[f'ratio_{name}'].item() == pytest.approx(norm / sum(norms.values()))
        assert not ratios[f'ratio_{name}'].requires_grad


def test_resumed_is_the_same_bit_for_bit():
    data = [batch() for _ in range(6)]
    balancer = Balancer(ema_decay=0.9)
    for item in data[:3]:
        call(balancer, item)
    resumed = Balancer(ema_decay=0.9)
    resumed.load_state_dict(json.loads(json.dumps(balancer.state_dict())))
    for item in data[3:]:
        for one, other in zip(call(balancer, item), call(resumed, item)):
            assert torch.equal(one, other)
    assert balancer.state_dict() == resumed.state_dict()
    assert not torch.equal(call(Balancer(ema_decay=0.9), data[-1])[1], call(resumed, data[-1])[1])


@pytest.mark.parametrize('value', [float('nan'), float('inf')])  # the gradient of l1 stays finite
@pytest.mark.parametrize('position', [0, 2])
def test_a_loss_that_is_not_finite_does_not_stay(value, position):
    data = [batch() for _ in range(5)]
    balancer, clean = Balancer(ema_decay=0.9), Balancer(ema_decay=0.9)
    for index, item in enumerate(data):
        if index == position:
            broken = (item[0].detach().clone(), item[1])
            broken[0][0, 0, 0] = value
            loss, gradient = call(balancer, broken)
            assert not loss.isfinite() and not gradient.isfinite().all()
        for one, other in zip(call(balancer, item), call(clean, item)):
            assert torch.equal(one, other)


def test_only_the_broken_loss_is_left_out_of_the_averages():
    balancer = Balancer()
    output, target = batch()
    losses = losses_of(output, target)
    losses['l2'] = losses['l2'] * float('nan')
    assert not balancer(losses, output, WEIGHTS).loss.isfinite()
    sums = balancer.state_dict()['sums']
    assert sums['l1'][1] == 1 and sums['l2'] == [0., 0.]


def test_two_processes_share_their_averages(monkeypatch):
    """Each process with half of the batch gets what one process gets for its half of the whole batch."""
    whole = batch(8)
    halves = [tuple(tensor.detach()[part] for tensor in whole) for part in (slice(4), slice(4, 8))]
    alone = Balancer()
    output, target = whole
    losses = {name: loss * 2 for name, loss in losses_of(output, target).items()}  # means over 8, not 4 items
    alone(losses, output, WEIGHTS)
    sent = []
    monkeypatch.setattr(distrib, 'all_reduce', lambda tensor: sent.append(tensor.clone()) or tensor)
    for half in halves:
        call(Balancer(), half)
    both = sent[0] + sent[1]
    monkeypatch.setattr(distrib, 'all_reduce', lambda tensor: both)
    states = []
    for half in halves:
        balancer = Balancer()
        call(balancer, half)
        states.append(balancer.state_dict()['sums'])
    assert states[0] == states[1]
    for name, (total, count) in alone.state_dict()['sums'].items():
        assert states[0][name] == pytest.approx([total, count])


def test_losses_of_weight_zero_are_left_out():
    output, target = batch()
    losses = {**losses_of(output, target), 'info': torch.tensor(float('nan'))}
    weights = {**WEIGHTS, 'info': 0.}
    expected = Balancer()(losses_of(output, target), output, WEIGHTS)
    assert torch.equal(Balancer()(losses, output, weights).loss, expected.loss)
    nothing = Balancer()({'info': losses['info']}, output, weights)
    assert nothing.loss.item() == 0 and nothing.ratios == {}


def test_half_precision_output():
    output, target = batch()
    output = output.detach().bfloat16().requires_grad_()
    balanced = Balancer()(losses_of(output.float(), target), output, WEIGHTS)
    balanced.loss.backward()
    assert balanced.loss.dtype == torch.float32 and output.grad.dtype == torch.bfloat16
    assert item_norm(output.grad.float()) == pytest.approx(0.98, abs=0.1)


def test_own_weights():
    output, target = batch()
    expected = Balancer()(losses_of(output, target), output, WEIGHTS)
    assert torch.equal(Balancer(weights=WEIGHTS)(losses_of(output, target), output).loss, expected.loss)


def test_errors():
    output, target = batch()
    losses = losses_of(output, target)
    with pytest.raises(ValueError, match="no weight for the loss 'l2'"):
        Balancer()(losses, output, {'l1': 1.})
    with pytest.raises(ValueError, match='ema_decay'):
        Balancer(ema_decay=1.5)
    for other in (torch.tensor(1.), torch.ones(2, requires_grad=True).sum()):
        with pytest.raises(ValueError, match="'other' does not depend on the output"):
            Balancer()({**losses, 'other': other}, output, {**WEIGHTS, 'other': 1.})
