"""Randomness: saved, forked, and drawn as a function of seed and update."""

import io
import random

import numpy as np
import pytest
import torch

from audiocraft.utils.random import Draws, fork_rng, generator, rng_state, seed_all, set_rng_state


def sample():
    return random.random(), float(np.random.rand()), random.gauss(0, 1), torch.rand(3).tolist()


def test_state_there_and_back_through_a_safe_file():
    sample()
    buffer = io.BytesIO()
    torch.save(rng_state(), buffer)
    expected = sample()
    buffer.seek(0)
    set_rng_state(torch.load(buffer, weights_only=True))
    assert sample() == expected


def test_fork():
    seed_all(1)
    expected = sample()
    seed_all(1)
    with fork_rng(5, 'valid'):
        inside = sample()
    assert sample() == expected
    with fork_rng(5, 'valid'):
        assert sample() == inside
    with fork_rng(5, 'other'):
        assert sample() != inside


def test_fork_restores_after_an_error():
    seed_all(1)
    expected = sample()
    seed_all(1)
    with pytest.raises(ValueError), fork_rng(5):
        raise ValueError
    assert sample() == expected


def test_generator_depends_on_all_its_keys():
    def draw(*keys):
        return torch.rand(4, generator=generator(*keys)).tolist()
    assert draw(1, 'a', 2) == draw(1, 'a', 2)
    assert len({tuple(draw(*keys)) for keys in [(1, 'a', 2), (2, 'a', 2), (1, 'b', 2), (1, 'a', 3)]}) == 4


@pytest.mark.parametrize('parts', [1, 2, 4])
def test_draws_do_not_depend_on_the_cut(parts):
    whole = Draws(3, 7, total=8)
    expected = whole.randn(5), whole.rand(), whole.randint(0, 9, 2)
    size = 8 // parts
    cut = [Draws(3, 7, total=8, start=start, size=size) for start in range(0, 8, size)]
    found = [(d.randn(5), d.rand(), d.randint(0, 9, 2)) for d in cut]
    for index, tensor in enumerate(expected):
        assert torch.equal(torch.cat([piece[index] for piece in found]), tensor)
    assert not torch.equal(Draws(3, 8, total=8).randn(5), expected[0])


def test_draws_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    Draws(0, 0, total=2).randn(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_rows_outside_of_the_batch():
    with pytest.raises(ValueError, match='Rows 6 to 10 are outside of a global batch of 8'):
        Draws(0, 0, total=8, start=6, size=4)
