"""The path between noise and data."""

import pytest
import torch

from audiocraft.flow.path import binned, flow_loss, interpolate, logit_normal, velocity


@pytest.mark.parametrize('min_sigma', [0., 0.1])
def test_path_from_noise_to_data(min_sigma):
    x0, x1 = torch.randn(3, 5, 2), torch.randn(3, 5, 2)
    assert torch.equal(interpolate(x0, x1, torch.zeros(3), min_sigma), x0)
    torch.testing.assert_close(interpolate(x0, x1, torch.ones(3), min_sigma), x1 + min_sigma * x0)


def test_velocity_is_the_derivative():
    x0, x1, t = (torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64),
                 torch.rand(3, dtype=torch.float64))
    slope = (interpolate(x0, x1, t + 1e-6, 0.2) - interpolate(x0, x1, t - 1e-6, 0.2)) / 2e-6
    torch.testing.assert_close(slope, velocity(x0, x1, 0.2))


def test_loss_is_per_item_and_zero_for_the_velocity():
    x0, x1 = torch.randn(3, 5, 2), torch.randn(3, 5, 2)
    pred = velocity(x0, x1)
    pred[1] += 2.
    torch.testing.assert_close(flow_loss(pred, x0, x1), torch.tensor([0., 4., 0.]))


def test_logit_normal():
    z = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    t = logit_normal(z)
    assert 0 < t.min() and t.max() < 1 and abs(t.median() - 0.5) < 0.02
    assert logit_normal(z, mean=1.).median() > 0.7 and logit_normal(z, scale=0.1).std() < 0.03


def test_binned_loss():
    sums, counts = binned(torch.tensor([1., 2., 3., 4.]), torch.tensor([0., 0.49, 0.5, 1.]), bins=2)
    assert sums.tolist() == [3., 7.] and counts.tolist() == [2., 2.]
