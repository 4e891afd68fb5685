"""Samplers against fields with a known solution."""

import math

import pytest
import torch

from audiocraft.flow.guidance import combine, guided
from audiocraft.flow.samplers import adaptive, euler, midpoint, times

X0 = torch.tensor([[1., -2.], [0.5, 3.]])


def decay(t, x):
    return -x * (1 + t)


def solution(end):
    return X0 * math.exp(-(end + end ** 2 / 2))


def test_times():
    torch.testing.assert_close(times(4), torch.tensor([0., 0.25, 0.5, 0.75, 1.]))
    torch.testing.assert_close(times(2, 1., 0.), torch.tensor([1., 0.5, 0.]))


def error(sampler, n):
    return (sampler(decay, X0, times(n)) - solution(1.)).abs().max().item()


def test_euler_is_of_first_order_and_midpoint_of_second():
    assert error(euler, 20) / error(euler, 40) == pytest.approx(2, rel=0.1)
    assert error(midpoint, 20) / error(midpoint, 40) == pytest.approx(4, rel=0.1)


def test_euler_is_exact_on_straight_paths():
    target = torch.randn(2, 2)
    torch.testing.assert_close(euler(lambda t, x: target - X0, X0, times(3)), target)


def test_adaptive_is_precise_with_few_calls():
    calls = []

    def field(t, x):
        calls.append(t.item())
        return decay(t, x)
    torch.testing.assert_close(adaptive(field, X0, rtol=1e-6, atol=1e-8), solution(1.), rtol=1e-6, atol=1e-6)
    assert len(calls) < 300 and max(calls) <= 1


def test_adaptive_backwards_returns_to_the_start():
    there = adaptive(decay, X0, 0., 1.)
    torch.testing.assert_close(adaptive(decay, there, 1., 0.), X0, rtol=1e-5, atol=1e-5)


def test_adaptive_over_no_time_changes_nothing():
    assert torch.equal(adaptive(decay, X0, 0.5, 0.5), X0)


def test_adaptive_gives_up_on_fields_that_are_not_finite():
    with pytest.raises(RuntimeError, match='No solution from time 0.0 to 1.0'):
        adaptive(lambda t, x: x * math.nan, X0, max_steps=20)


def test_guidance_takes_one_call():
    calls = []

    def field(t, x):
        calls.append(x.shape)
        first, second = x.chunk(2)
        return torch.cat([first + 1, second - 1])
    velocity = guided(field, 3.)(torch.tensor(0.), X0)
    assert calls == [(4, 2)]
    torch.testing.assert_close(velocity, combine(X0 + 1, X0 - 1, 3.))
    torch.testing.assert_close(velocity, X0 + 5)
