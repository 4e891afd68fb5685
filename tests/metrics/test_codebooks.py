import math

import pytest
import torch

from audiocraft.data.samples import Clip
from audiocraft.metrics.codebooks import CodebookUse, count_codes, entropy


def clip(codes, bins=4, frame_rate=50.):
    return Clip('x', torch.zeros(1, 10), 16_000, codes=torch.tensor(codes), bins=bins, frame_rate=frame_rate)


def results(*clips):
    metric = CodebookUse()
    for one in clips:
        metric.update([one], [None])
    return metric.compute()


def test_use_perplexity_and_bitrate_by_hand():
    found = results(clip([[0, 1], [3, 3]]), clip([[2, 3, 0, 1, 2, 3], [3, 3, 3, 3, 3, 3]]))
    assert found['codebook_use_0'] == 1. and found['codebook_use_1'] == 0.25 and found['codebook_use'] == 0.625
    assert found['codebook_perplexity_0'] == pytest.approx(4.) and found['codebook_perplexity_1'] == pytest.approx(1.)
    assert found['codebook_perplexity'] == pytest.approx(2.5) and found['codebook_use_frames'] == 8.
    assert found['bitrate'] == pytest.approx(2 * 2 * 50 / 1000)
    assert found['bitrate_entropy'] == pytest.approx(2 * 50 / 1000)  # the second level says nothing


def test_perplexity_is_two_to_the_entropy():
    found = results(clip([[0, 0, 0, 1]]))
    bits = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert found['codebook_perplexity'] == pytest.approx(2 ** bits)
    assert found['bitrate_entropy'] == pytest.approx(bits * 50 / 1000)
    assert entropy(torch.zeros(2, 3)).tolist() == [0., 0.]


def test_a_model_without_codebooks_has_a_reason():
    metric = CodebookUse()
    metric.update([Clip('x', torch.zeros(1, 10), 16_000)], [None])
    assert metric.compute() == {'codebook_use': None, 'codebook_use_reason': 'the model has no codebooks: '
                                                                             'no clip has codes'}
    metric.update([clip([[1]])], [None])
    assert metric.compute()['codebook_use'] == 0.25
    metric.reset()
    assert metric.compute()['codebook_use'] is None


def test_bitrate_needs_one_frame_rate():
    for clips in ([clip([[1]], frame_rate=None)], [clip([[1]]), clip([[1]], frame_rate=75.)]):
        found = results(*clips)
        assert found['bitrate'] is None and 'frames a second' in found['bitrate_reason']
        assert found['codebook_use'] == 0.25


def test_codes_that_do_not_fit_are_refused():
    for codes in ([[4]], [[-1]]):
        with pytest.raises(ValueError, match='outside of a codebook of 4'):
            results(clip(codes))
    with pytest.raises(ValueError, match='those before'):
        results(clip([[1]]), clip([[1], [2]]))
    with pytest.raises(ValueError, match='how many bins'):
        results(clip([[1]], bins=None))


def test_counts():
    codes = torch.randint(0, 9, (3, 500), generator=torch.Generator().manual_seed(0))
    counts = count_codes(codes, 9)
    assert counts.sum(dim=1).tolist() == [500] * 3
    assert all(counts[k, i] == (codes[k] == i).sum() for k in range(3) for i in range(9))
