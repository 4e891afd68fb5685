import logging
import math

import pytest
import torch

from audiocraft.data.samples import Clip
from audiocraft.metrics.cosine import cosine_score
from audiocraft.metrics.desync import desync, offset_grid
from audiocraft.metrics.embedded import CepstralStatistics
from audiocraft.metrics.frechet import FrechetDistance, frechet_distance, gaussian
from audiocraft.metrics.inception_score import inception_score
from audiocraft.metrics.kid import KernelDistance, kernel_distance, squared_mmd
from audiocraft.metrics.kl import kl_sigmoid, kl_softmax

from .sounds import clips, noise


def spd(dim, seed):
    matrix = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return matrix @ matrix.T + 0.1 * torch.eye(dim, dtype=torch.float64)


def test_frechet_of_gaussians_in_closed_form():
    mean, variance = torch.tensor([1., -2.]), torch.tensor([4., 9.])
    other_mean, other_variance = torch.tensor([0., 0.]), torch.tensor([1., 1.])
    # Diagonal: |difference of means|^2 + sum of (difference of deviations)^2.
    value = frechet_distance(mean, variance.diag(), other_mean, other_variance.diag())
    assert value == pytest.approx(5 + 1 + 4)
    # Commuting: B = c A gives tr A (1 - sqrt c)^2.
    cov = spd(5, 0)
    assert frechet_distance(torch.zeros(5), cov, torch.zeros(5), 4 * cov) == pytest.approx(float(cov.trace()))
    # One dim: any two.
    assert frechet_distance(torch.zeros(1), torch.eye(1), torch.ones(1), 9 * torch.eye(1)) == pytest.approx(5.)


def test_frechet_is_symmetric_invariant_and_zero_for_equals():
    a, b, mean = spd(6, 1), spd(6, 2), torch.arange(6.)
    value = frechet_distance(mean, a, torch.zeros(6), b)
    assert frechet_distance(torch.zeros(6), b, mean, a) == pytest.approx(value)
    turn = torch.linalg.qr(spd(6, 3)).Q
    turned = frechet_distance(turn @ mean.double(), turn @ a @ turn.T, torch.zeros(6), turn @ b @ turn.T)
    assert turned == pytest.approx(value)
    assert frechet_distance(mean, a, mean, a) == pytest.approx(0., abs=1e-9)
    assert frechet_distance(mean + 0.1, a, mean, a) > 0.01


def test_frechet_of_samples_converges():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(40_000, 3, generator=generator)
    b = 2 * torch.randn(40_000, 3, generator=generator) + 1
    assert frechet_distance(*gaussian(a), *gaussian(b)) == pytest.approx(3 + 3, rel=0.03)
    with pytest.raises(ValueError, match='N >= 2'):
        gaussian(a[:1])


def test_frechet_metric_reports_the_count_and_warns(caplog):
    metric, true = FrechetDistance(), clips(4)
    with caplog.at_level(logging.WARNING):
        metric.update(true[:1], true[:1])
        first = metric.compute()
        metric.compute()
    assert first == {'fd_embedded': pytest.approx(0., abs=1e-6), 'fd_embedded_n': 5.}
    assert len(caplog.records) == 1 and 'singular' in caplog.text
    metric.update(true[1:], [None, *true[2:]])
    assert metric.compute()['fd_embedded_n'] == 15.
    metric.reset()
    assert metric.compute()['fd_embedded'] is None and 'needs 2' in metric.compute()['fd_embedded_reason']


def test_embedded_distances_order_sounds_by_likeness():
    true, like = clips(8, seed=1), clips(8, seed=2)
    unlike = [Clip(id='x', audio=noise(3., 16_000, 0.1, seed)[None], sample_rate=16_000) for seed in range(8)]
    for metric, name in ((FrechetDistance(), 'fd_embedded'), (KernelDistance(), 'kid_embedded')):
        values = []
        for generated in (like, unlike):
            metric.reset()
            metric.update(generated, true)
            values.append(metric.compute()[name])
        assert values[1] > 10 * abs(values[0])


def test_embedded_features_are_the_same_at_any_rate_and_for_stereo():
    extractor = CepstralStatistics()
    clip = clips(1)[0]
    stereo = Clip(id='s', audio=clip.audio.expand(2, -1), sample_rate=16_000)
    assert torch.equal(extractor([stereo]), extractor([clip]))
    assert extractor([clip]).shape == (5, extractor.dim) and extractor([]).shape == (0, extractor.dim)
    short = Clip(id='t', audio=clip.audio[:, :100], sample_rate=16_000)
    assert extractor([short]).shape == (1, extractor.dim)
    bad = Clip(id='n', audio=torch.full((1, 16_000), float('nan')), sample_rate=16_000)
    assert extractor([bad]).isfinite().all()


def test_kl_by_hand():
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert kl_softmax(p.log(), q.log()).item() == pytest.approx(expected, rel=1e-5)
    assert kl_softmax(p.log(), p.log()).item() == pytest.approx(0., abs=1e-7)
    assert kl_softmax(q.log(), p.log()).item() != pytest.approx(expected, rel=1e-2)
    assert kl_sigmoid(p.logit(), q.logit()).item() == pytest.approx(expected, rel=1e-5)


def test_inception_score_by_hand():
    certain = 100. * torch.eye(4).repeat(5, 1)
    assert inception_score(certain, splits=1)[0] == pytest.approx(4.)
    assert inception_score(torch.zeros(20, 4), splits=2) == pytest.approx((1., 0.))
    assert inception_score(certain[:1].repeat(20, 1), splits=2) == pytest.approx((1., 0.))
    assert inception_score(certain, splits=10)[0] < 3.
    with pytest.raises(ValueError, match='splits'):
        inception_score(certain, splits=21)


def test_kernel_distance_by_hand():
    a, b = torch.tensor([[1.], [2.]]), torch.tensor([[0.], [1.]])
    # Kernel (x y + 1)^3: within a 27, within b 1, across 1, 8, 1, 27.
    assert squared_mmd(a, b) == pytest.approx(27 + 1 - 2 * (1 + 8 + 1 + 27) / 4)
    generator = torch.Generator().manual_seed(0)
    same = torch.randn(400, 4, generator=generator), torch.randn(400, 4, generator=generator)
    mean, std = kernel_distance(*same, subsets=20, subset_size=100)
    assert abs(mean) < 3 * std
    assert kernel_distance(same[0], same[1] + 1, subsets=5, subset_size=100)[0] > 10 * std
    with pytest.raises(ValueError, match='subsets'):
        kernel_distance(a, b, subset_size=3)


def test_cosine_and_desync():
    a = torch.tensor([[1., 0.], [0., 2.]])
    assert cosine_score(a, torch.tensor([[3., 0.], [0., -1.]])) == pytest.approx(0.)
    assert cosine_score(a, 2 * a) == pytest.approx(1.)
    with pytest.raises(ValueError, match='pairs'):
        cosine_score(a[:0], a[:0])
    grid = offset_grid()
    assert grid[[0, 10, 20]].tolist() == pytest.approx([-2., 0., 2.], abs=1e-6) and len(grid) == 21
    first = torch.nn.functional.one_hot(torch.tensor([10, 0]), 21)
    last = torch.nn.functional.one_hot(torch.tensor([11, 20]), 21)
    assert desync([first, last]) == pytest.approx((0 + 2 + 0.2 + 2) / 4, rel=1e-5)
