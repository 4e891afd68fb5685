import math

import pytest
import torch
from torch import distributions

from audiocraft.quantization.base import Posterior
from audiocraft.quantization.gaussian import GaussianBottleneck
from audiocraft.utils.random import Draws

DIM, FRAME_RATE = 3, 25.


def batch(seed=0, size=4, length=7):
    return torch.randn(size, 2 * DIM, length, generator=torch.Generator().manual_seed(seed))


def pooled(batches):
    rows = torch.cat([x[:, :DIM].transpose(1, 2).reshape(-1, DIM) for x in batches]).double()
    return rows.mean(0).float(), rows.std(0, correction=0).float()


def test_posterior():
    bottleneck = GaussianBottleneck(dimension=DIM)
    assert (bottleneck.input_dimension, bottleneck.dimension, bottleneck.total_codebooks) == (2 * DIM, DIM, 0)
    posterior = bottleneck.encode(batch())
    assert isinstance(posterior, Posterior)
    assert torch.equal(posterior.mean, batch()[:, :DIM])
    torch.testing.assert_close(posterior.std, (1 + batch()[:, DIM:].exp()).log() + 1e-4)


def test_penalty_is_the_divergence():
    output = GaussianBottleneck(dimension=DIM)(batch(), FRAME_RATE)
    posterior = GaussianBottleneck(dimension=DIM).encode(batch())
    normal = distributions.Normal(posterior.mean, posterior.std)
    expected = distributions.kl_divergence(normal, distributions.Normal(0., 1.)).mean()
    torch.testing.assert_close(output.penalty, expected)
    assert output.codes is None and output.bandwidth is None and output.penalty.shape == ()
    assert set(output.metrics) == {'posterior_std', 'latent_rms'}


def test_latents_are_means_or_samples():
    bottleneck = GaussianBottleneck(dimension=DIM)
    posterior = bottleneck.encode(batch())
    assert torch.equal(bottleneck(batch(), FRAME_RATE).x, posterior.mean)
    noise = Draws(0, 1, total=4).randn(DIM, 7)
    sampled = bottleneck(batch(), FRAME_RATE, Draws(0, 1, total=4)).x
    torch.testing.assert_close(sampled, posterior.mean + posterior.std * noise)
    parts = [bottleneck(batch()[start:start + 2], FRAME_RATE, Draws(0, 1, total=4, start=start, size=2)).x
             for start in (0, 2)]
    assert torch.equal(torch.cat(parts), sampled)


def test_gradients():
    x, weight = batch().requires_grad_(), torch.randn(4, DIM, 7)
    bottleneck = GaussianBottleneck(dimension=DIM).train()
    output = bottleneck(x, FRAME_RATE, Draws(0, 1, total=4))
    bottleneck(x.detach(), FRAME_RATE)
    (output.x * weight).sum().backward()
    noise = Draws(0, 1, total=4).randn(DIM, 7)
    torch.testing.assert_close(x.grad, torch.cat([weight, weight * noise * x[:, DIM:].detach().sigmoid()], 1))
    assert bottleneck(x, FRAME_RATE).penalty.requires_grad


def test_decode_is_the_identity():
    bottleneck, latents = GaussianBottleneck(dimension=DIM), torch.randn(2, DIM, 5)
    assert torch.equal(bottleneck.decode(latents), latents)
    with pytest.raises(ValueError, match=r"\[B, 3, T'\], got \[2, 6, 5\]"):
        bottleneck.decode(torch.randn(2, 2 * DIM, 5))
    with pytest.raises(ValueError, match=r"\[B, 6, T'\], got \[2, 3, 5\]"):
        bottleneck.encode(latents)
    with pytest.raises(ValueError, match='no codebooks'):
        bottleneck.set_num_codebooks(1)


def test_half_precision():
    bottleneck = GaussianBottleneck(dimension=DIM).train()
    with torch.autocast('cpu', torch.bfloat16):
        output = bottleneck(batch().bfloat16(), FRAME_RATE, Draws(0, 0, total=4))
    assert output.x.dtype == torch.bfloat16 and output.penalty.dtype == torch.float32
    assert bottleneck.latent_mean.dtype == torch.float32


class TestStatistics:
    def test_are_those_of_all_batches_at_first(self):
        bottleneck, batches = GaussianBottleneck(dimension=DIM).train(), [3 * batch(seed) + seed for seed in range(5)]
        for x in batches:
            bottleneck(x, FRAME_RATE)
        for found, expected in zip(bottleneck.latent_statistics(), pooled(batches)):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    def test_far_from_zero(self):
        bottleneck, batches = GaussianBottleneck(dimension=DIM).train(), [batch(seed) + 3000 for seed in range(5)]
        for x in batches:
            bottleneck(x, FRAME_RATE)
        for found, expected in zip(bottleneck.latent_statistics(), pooled(batches)):
            torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)

    def test_forget_the_beginning(self):
        bottleneck = GaussianBottleneck(dimension=DIM, decay=0.8).train()
        for step in range(60):
            bottleneck(batch(step) * (10 if step < 5 else 1), FRAME_RATE)
        assert (bottleneck.latent_statistics()[1] < 1.5).all()
        assert bottleneck.latent_count.item() == 60

    def test_before_training_are_neutral(self):
        bottleneck = GaussianBottleneck(dimension=DIM).eval()
        bottleneck(batch(), FRAME_RATE)
        bottleneck.train().encode(batch())
        mean, std = bottleneck.latent_statistics()
        assert mean.tolist() == [0.] * DIM and std.tolist() == [1.] * DIM and bottleneck.latent_count.item() == 0

    def test_can_be_off(self):
        bottleneck = GaussianBottleneck(dimension=DIM, track_statistics=False).train()
        bottleneck(batch(), FRAME_RATE)
        assert bottleneck.latent_count.item() == 0

    @pytest.mark.parametrize('value', [math.nan, math.inf, 1e30])
    def test_a_batch_that_is_not_finite_changes_nothing(self, value):
        bottleneck, bad = GaussianBottleneck(dimension=DIM).train(), batch()
        bad[0, 0, 0] = value
        for x in (bad, batch(1), bad, batch(2)):
            bottleneck(x, FRAME_RATE)
        assert bottleneck.latent_count.item() == 2
        for found, expected in zip(bottleneck.latent_statistics(), pooled([batch(1), batch(2)])):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    def test_are_saved(self):
        first, second = GaussianBottleneck(dimension=DIM).train(), GaussianBottleneck(dimension=DIM).train()
        first(batch(), FRAME_RATE)
        second.load_state_dict(first.state_dict())
        for module in (first, second):
            module(batch(1), FRAME_RATE)
        assert all(map(torch.equal, first.latent_statistics(), second.latent_statistics()))

    def test_may_be_missing_in_a_file(self):
        model = torch.nn.Sequential(torch.nn.Linear(2, 2), GaussianBottleneck(dimension=DIM))
        state = {key: value for key, value in model.state_dict().items() if 'latent_' not in key}
        model.load_state_dict(state, strict=True)
        with pytest.raises(RuntimeError, match='0.bias'):
            model.load_state_dict({'0.weight': state['0.weight']}, strict=True)
        with pytest.raises(RuntimeError, match='latent_other'):
            model.load_state_dict({**state, '1.latent_other': torch.zeros(1)}, strict=True)
