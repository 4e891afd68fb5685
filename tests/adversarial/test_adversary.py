"""Training of a discriminator and what it asks of a generator."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from audiocraft import train
from audiocraft.adversarial.adversary import Adversary
from audiocraft.adversarial.losses import ADVERSARIAL, relative_l1
from audiocraft.adversarial.mpd import MultiPeriodDiscriminator
from audiocraft.adversarial.msd import MultiScaleDiscriminator
from audiocraft.adversarial.msstft import MultiScaleSTFTDiscriminator
from audiocraft.utils.config import build
from audiocraft.utils.errors import UserError

NODE = {'_target_': 'audiocraft.adversarial.adversary.Adversary',
        'discriminator': {'_target_': 'audiocraft.adversarial.msstft.MultiScaleSTFTDiscriminator', 'filters': 2,
                          'n_ffts': [64, 32], 'hop_lengths': [16, 8], 'win_lengths': [64, 32]}}
HINGE = (lambda x: F.relu(1 - x).mean(), lambda x: F.relu(1 + x).mean())
LOSSES = {'hinge': (*HINGE, lambda x: -x.mean()), 'hinge2': (*HINGE, lambda x: F.relu(1 - x).mean()),
          'mse': (lambda x: ((x - 1) ** 2).mean(), lambda x: (x ** 2).mean(), lambda x: ((x - 1) ** 2).mean())}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def spectral():
    norms = ['spectral_norm', 'weight_norm']
    return MultiScaleDiscriminator(filters=4, downsample_scales=[2], groups=[1], max_filters=8, scale_norms=norms)


def make(kind='msstft', **kwargs):
    discriminators = {
        'msstft': lambda: build(NODE['discriminator']), 'msd': spectral,
        'mpd': lambda: MultiPeriodDiscriminator(filters=2, filters_scale=2, n_layers=2, periods=[2, 3])}
    return Adversary(discriminator=discriminators[kind](), **kwargs)


def audio(batch=2, samples=200):
    return torch.randn(batch, 1, samples, requires_grad=True), torch.randn(batch, 1, samples)


def grads(adversary):
    return {name: parameter.grad.clone() for name, parameter in adversary.named_parameters()}


@pytest.mark.parametrize('kind', ['msstft', 'mpd'])
@pytest.mark.parametrize('loss', LOSSES)
class TestAgainstFourPasses:
    """As one would write it: each side through the whole discriminator, for the update and for the losses."""

    def test_discriminator_update(self, loss, kind):
        adversary, (fake, real) = make(kind, loss=loss), audio()
        on_real, on_fake, _ = LOSSES[loss]
        fakes, reals = adversary.discriminator(fake.detach()).logits, adversary.discriminator(real).logits
        expected = sum(on_fake(x) + on_real(y) for x, y in zip(fakes, reals)) / len(fakes)
        expected.backward()
        by_hand = grads(adversary)
        adversary.zero_grad()
        found = adversary.discriminator_loss(adversary.prepare(fake, real))
        found.backward()
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(grads(adversary), by_hand, rtol=1e-6, atol=1e-7)
        assert fake.grad is None

    def test_generator_losses(self, loss, kind):
        adversary, (fake, real) = make(kind, loss=loss), audio()
        (logits, fmaps), (_, reals) = adversary.discriminator(fake), adversary.discriminator(real)
        adv = sum(LOSSES[loss][2](logit) for logit in logits) / len(logits)
        feat = sum(sum(F.l1_loss(x, y) for x, y in zip(maps, others)) / len(maps)
                   for maps, others in zip(fmaps, reals)) / len(fmaps)
        found = adversary.generator_losses(adversary.prepare(fake, real))
        assert set(found) == {'adv', 'feat'}
        for name, expected in (('adv', adv), ('feat', feat)):
            torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=1e-7)
            (by_hand,) = torch.autograd.grad(expected, fake, retain_graph=True)
            (grad,) = torch.autograd.grad(found[name], fake, retain_graph=True)
            torch.testing.assert_close(grad, by_hand, rtol=1e-6, atol=1e-9)
            assert grad.abs().max() > 0


class TestFrozen:
    def test_generator_losses_leave_the_discriminator_alone(self):
        adversary, (fake, real) = make('msd'), audio()
        before = {key: value.clone() for key, value in adversary.state_dict().items()}
        sum(adversary.generator_losses(adversary.prepare(fake, real)).values()).backward()
        assert fake.grad.abs().max() > 0
        assert all(parameter.grad is None and parameter.requires_grad for parameter in adversary.parameters())
        torch.testing.assert_close(adversary.state_dict(), before, rtol=0, atol=0)
        assert all(module.training for module in adversary.modules())

    def test_an_update_advances_spectral_normalisation(self):
        adversary = make('msd')
        state = adversary.state_dict()
        key = next(key for key in state if key.endswith('_u') and state[key].numel() > 1)
        before = adversary.state_dict()[key].clone()
        adversary.discriminator_loss(adversary.prepare(*audio()))
        assert not torch.equal(adversary.state_dict()[key], before)

    def test_restored_after_an_exception(self):
        adversary = make()
        fixed = next(adversary.parameters()).requires_grad_(False)
        with pytest.raises(RuntimeError, match='stop'):
            with adversary.frozen():
                assert not any(parameter.requires_grad for parameter in adversary.parameters())
                raise RuntimeError('stop')
        assert [parameter for parameter in adversary.parameters() if not parameter.requires_grad] == [fixed]
        assert adversary.discriminator.training

    def test_eval_mode_stays(self):
        adversary = make().eval()
        with adversary.frozen():
            pass
        assert not adversary.discriminator.training

    def test_without_gradients(self):
        adversary = make()
        with torch.no_grad():
            losses = adversary.generator_losses(adversary.prepare(*audio()))
        assert not any(value.requires_grad for value in losses.values())


def test_spectrograms_are_shared():
    adversary, calls = make(), []
    for module in adversary.discriminator.discriminators:
        module.spec_transform.register_forward_hook(lambda *args: calls.append(1))
    prepared = adversary.prepare(*audio())
    adversary.discriminator_loss(prepared).backward()
    adversary.generator_losses(prepared)
    assert len(calls) == 2 * len(adversary.discriminator.discriminators)  # once for each side


def test_generator_meets_the_updated_discriminator():
    adversary, (fake, real) = make(), audio()
    optimizer = torch.optim.Adam(adversary.parameters(), lr=1e-2)
    prepared = adversary.prepare(fake, real)
    before = adversary.generator_losses(prepared)['adv']
    adversary.discriminator_loss(prepared).backward()
    optimizer.step()
    after = adversary.generator_losses(prepared)['adv']
    torch.testing.assert_close(after, adversary.generator_losses(adversary.prepare(fake, real))['adv'])
    assert not torch.isclose(before, after)


def test_thirty_updates_of_both_sides():
    adversary, model = make(), nn.Conv1d(1, 1, 9, padding=4)
    untrained = copy.deepcopy(model)
    optimizers = [torch.optim.Adam(module.parameters(), lr=3e-3, betas=(0.5, 0.9)) for module in (adversary, model)]
    real = torch.sin(torch.arange(256) * torch.tensor([[[0.1]], [[0.2]], [[0.3]], [[0.5]]]))
    history = []
    for _ in range(30):
        prepared = adversary.prepare(model(real + 0.3 * torch.randn(real.shape)), real)
        d_loss = adversary.discriminator_loss(prepared)
        optimizers[0].zero_grad()
        d_loss.backward()
        optimizers[0].step()
        losses = adversary.generator_losses(prepared)
        optimizers[1].zero_grad()
        sum(losses.values()).backward()
        optimizers[1].step()
        history.append([d_loss.item(), losses['adv'].item(), losses['feat'].item()])
    history = torch.tensor(history)
    assert history.isfinite().all() and history.abs().max() < 5
    assert history[-5:, 0].mean() < history[0, 0]  # the discriminator learns to tell the two
    heard = [adversary.generator_losses(adversary.prepare(net(real), real))['feat'] for net in (model, untrained)]
    assert heard[0] < heard[1]  # and to it the model sounds better than before


def test_a_discriminator_learns_to_tell():
    adversary, (fake, real) = make(), audio(4)
    optimizer = torch.optim.Adam(adversary.parameters(), lr=1e-2)
    prepared = adversary.prepare(0.1 * fake, real)
    losses = []
    for _ in range(30):
        losses.append(adversary.discriminator_loss(prepared))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[0] > 1.5 and losses[-1] < 1


def test_sum_over_sub_discriminators():
    mean, total = make(), make(normalize=False)
    total.load_state_dict(mean.state_dict())
    fake, real = audio()
    count = len(mean.discriminator.discriminators)
    for adversary in (mean, total):
        adversary.found = adversary.generator_losses(adversary.prepare(fake, real))
    for name in mean.found:
        torch.testing.assert_close(total.found[name], count * mean.found[name])


def test_relative_distance_ignores_the_scale():
    fake, real = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    torch.testing.assert_close(relative_l1(10 * fake, 10 * real), relative_l1(fake, real))
    torch.testing.assert_close(relative_l1(fake, real), (fake - real).abs().mean() / real.abs().mean())
    assert relative_l1(fake, torch.zeros_like(real)).isfinite()


@pytest.mark.parametrize('name', ['l2', 'relative_l1'])
def test_other_feature_distances(name):
    adversary, (fake, real) = make(feature_loss=name), audio()
    assert adversary.generator_losses(adversary.prepare(fake, real))['feat'] > 0
    same = adversary.generator_losses(adversary.prepare(real, real))['feat']
    assert same == 0


@pytest.mark.parametrize('key, value, hint', [('loss', 'hing', 'hinge, hinge2, mse.*mean "hinge"'),
                                              ('feature_loss', 'L1', 'l1, l2, relative_l1')])
def test_unknown_loss(key, value, hint):
    with pytest.raises(UserError, match=f'{key}: {value} is unknown.*{hint}'):
        build({**NODE, key: value})


def test_sides_of_different_lengths():
    with pytest.raises(ValueError, match=r'\[2, 1, 200\] and \[2, 1, 201\]'):
        make().prepare(torch.randn(2, 1, 200), torch.randn(2, 1, 201))


def test_too_short_audio():
    with pytest.raises(UserError, match='at least 64 samples of audio, got 40'):
        make().prepare(torch.randn(2, 1, 40), torch.randn(2, 1, 40))


def test_losses_are_the_known_ones():
    assert set(ADVERSARIAL) == set(LOSSES)


@pytest.mark.parametrize('name', ['msstftd', 'msstftd_tiny', 'mpd', 'msd'])
def test_configured_ones(name):
    cfg = train.main.get_xp(['solver=compression/debug', f'adversarial={name}', 'channels=2']).cfg.adversarial
    (node,) = cfg.discriminators.values()
    with torch.device('meta'):
        discriminator = build(node).discriminator
    assert discriminator.channels == 2 and cfg.every == 1 and cfg.optim.lr > 0
    assert name != 'msstftd_tiny' or isinstance(discriminator, MultiScaleSTFTDiscriminator)
