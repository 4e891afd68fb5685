"""Magnitude-preserving layers: magnitudes, gradients, and the normalisation of stored weights."""

import math

import pytest
import torch
from torch import nn

from audiocraft.modules.magnitude_preserving import MPConv1d, mp_cat, mp_silu, mp_sum, normalize, normalize_weights_


def magnitude(x: torch.Tensor) -> float:
    return x.float().square().mean().sqrt().item()


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize('dim', [None, 1, (1, 2)])
def test_normalize(dim) -> None:
    x = 7 * torch.randn(2, 64, 50)
    dims = (1, 2) if dim is None else dim
    torch.testing.assert_close(normalize(x, dim).square().mean(dims), torch.ones_like(x.sum(dims)), rtol=1e-3, atol=0.)


def test_normalize_zeros_and_half_precision() -> None:
    assert torch.equal(normalize(torch.zeros(1, 3, 4)), torch.zeros(1, 3, 4))
    large = torch.full((1, 4096, 1), 300., dtype=torch.float16)  # its sum of squares overflows in half precision
    assert normalize(large).dtype == torch.float16 and magnitude(normalize(large)) == pytest.approx(1., abs=1e-2)


def test_magnitudes_are_kept() -> None:
    a, b = torch.randn(4, 256, 400), torch.randn(4, 128, 400)
    assert magnitude(mp_silu(a)) == pytest.approx(1., abs=0.01)
    assert magnitude(mp_sum(a, torch.randn_like(a), 0.3)) == pytest.approx(1., abs=0.01)
    joined = mp_cat(a, b, 0.7)
    assert joined.shape == (4, 384, 400) and magnitude(joined) == pytest.approx(1., abs=0.01)
    assert magnitude(joined[:, 256:]) / magnitude(joined[:, :256]) == pytest.approx(0.7 / 0.3 * math.sqrt(2), rel=0.02)
    assert magnitude(MPConv1d(256, 512, 3)(a)) == pytest.approx(1., abs=0.02)
    assert magnitude(MPConv1d(256, 512, 1)(a, gain=2.)) == pytest.approx(2., abs=0.04)


def test_only_the_direction_of_a_weight_counts() -> None:
    conv, x = MPConv1d(8, 4, 3), torch.randn(2, 8, 20)
    before = conv(x)
    conv.weight.data *= torch.tensor([0.5, 1., 3., 20.])[:, None, None]
    torch.testing.assert_close(conv(x), before, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(conv.normalized_weight().square().sum((1, 2)), torch.ones(4), rtol=1e-3, atol=0.)


def test_the_gradient_is_orthogonal_to_the_weight() -> None:
    conv = MPConv1d(8, 4, 3)
    conv(torch.randn(2, 8, 20)).square().mean().backward()
    along = (conv.weight.grad * conv.weight).sum((1, 2)) / conv.weight.grad.norm(dim=(1, 2))
    assert along.abs().max() < 1e-2 and conv.weight.grad.abs().max() > 1e-3


def test_stored_weights_are_normalised_in_place() -> None:
    net = nn.Sequential(MPConv1d(8, 8, 3), MPConv1d(8, 4, 1))
    frozen = net[1].weight.requires_grad_(False).clone()
    x, pointer = torch.randn(2, 8, 20), net[0].weight.data_ptr()
    before = net(x)
    net[0].weight.data *= 5
    normalize_weights_(net)
    assert net[0].weight.data_ptr() == pointer and magnitude(net[0].weight) == pytest.approx(1., abs=1e-3)
    assert torch.equal(net[1].weight, frozen)
    torch.testing.assert_close(net(x), before, rtol=1e-3, atol=1e-4)
    once = net[0].weight.clone()
    normalize_weights_(net)  # of micro-batches of one update, the second changes next to nothing
    torch.testing.assert_close(net[0].weight, once, rtol=2e-4, atol=0.)


def test_bf16_autocast_and_bf16_weights() -> None:
    conv, x = MPConv1d(64, 32, 3), torch.randn(2, 64, 20)
    expected = conv(x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        low = conv(x)
    assert low.dtype == torch.bfloat16
    for value in (low.float(), conv.bfloat16()(x)):
        torch.testing.assert_close(value, expected, rtol=0.05, atol=0.05)
