"""Running means."""

import math

import pytest
import torch

from audiocraft.utils.averager import Averager


def test_weighted_mean_of_numbers_and_tensors():
    mean = Averager()
    mean.update({'a': 1., 'b': torch.tensor(2.)}, 3)
    mean.update({'a': torch.tensor([5.], dtype=torch.bfloat16)}, 1)
    assert mean.compute() == {'a': 2., 'b': 2.}


def test_values_are_copies():
    mean, value = Averager(), torch.ones((), requires_grad=True) * 2
    mean.update({'a': value})
    with torch.no_grad():
        value.fill_(9.)
    assert mean.compute() == {'a': 2.}


def test_non_finite_values_are_counted_apart():
    mean = Averager()
    for value in (1., math.nan, torch.tensor(math.inf), 3.):
        mean.update({'a': value})
    mean.update({'b': math.nan})
    assert mean.compute()['a'] == 2. and math.isnan(mean.compute()['b'])
    assert mean.nonfinite == {'a': 2, 'b': 1}


def test_a_state_in_between_changes_no_bit():
    values = torch.rand(100).tolist()
    whole, parts = Averager(), Averager()
    for index, value in enumerate(values):
        whole.update({'a': value}, index + 1)
        parts.update({'a': torch.tensor(value)}, index + 1)
        if index % 7 == 0:
            parts.compute()
            state = parts.state_dict()
            parts = Averager()
            parts.load_state_dict(state)
    assert parts.compute() != {} and abs(parts.compute()['a'] - whole.compute()['a']) < 1e-7
    again = Averager()
    for index, value in enumerate(values):
        again.update({'a': torch.tensor(value)}, index + 1)
    assert again.compute() == parts.compute()


def test_reads_once(monkeypatch):
    mean = Averager()
    reads = []
    genuine = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, 'tolist', lambda self: reads.append(1) or genuine(self))
    for _ in range(50):
        mean.update({'a': torch.rand(()), 'b': torch.rand(())})
    assert not reads
    mean.compute()
    assert len(reads) == 1


def test_only_scalars():
    with pytest.raises(ValueError, match=r'"a" must be a single number, got a tensor of shape \(2,\)'):
        Averager().update({'a': torch.zeros(2)})
