import copy
import math

import pytest
import torch
from processes import run_ranks
from torch import nn
from torch.nn import functional as F

from audiocraft import distrib
from audiocraft.quantization import codebook as codebook_module
from audiocraft.quantization.gaussian import GaussianBottleneck
from audiocraft.quantization.rvq import ResidualVectorQuantizer
from audiocraft.utils.random import Draws, rng_state, set_rng_state

DIM, FRAME_RATE = 6, 50.


def build(training=True, **kwargs):
    torch.manual_seed(0)
    quantizer = ResidualVectorQuantizer(**{'dimension': DIM, 'n_q': 3, 'bins': 16, 'kmeans_iters': 3, **kwargs})
    return quantizer.train(training)


def batch(seed=0, size=2, length=20, dim=DIM):
    return torch.randn(size, dim, length, generator=torch.Generator().manual_seed(seed))


def trained(steps=2, **kwargs):
    quantizer = build(**kwargs)
    for step in range(steps):
        quantizer(batch(100 + step), FRAME_RATE)
    return quantizer


def state_of(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(first, second):
    return all(torch.equal(value, second[key]) for key, value in first.items())


class TestInterface:
    def test_shapes_and_types(self):
        quantizer = build()
        output = quantizer(batch(), FRAME_RATE)
        assert output.x.shape == (2, DIM, 20) and output.codes.shape == (2, 3, 20)
        assert output.codes.dtype == torch.int64 and output.penalty.shape == output.bandwidth.shape == ()
        assert output.bandwidth.item() == pytest.approx(3 * 4 * FRAME_RATE / 1000)
        assert all(value.shape == () and not value.requires_grad for value in output.metrics.values())
        assert (quantizer.input_dimension, quantizer.total_codebooks, quantizer.bins) == (DIM, 3, 16)

    def test_keys(self):
        names = ('inited', 'cluster_size', 'embed', 'embed_avg')
        assert set(build().state_dict()) == {f'vq.layers.{i}._codebook.{name}' for i in range(3) for name in names}
        assert not list(build().parameters())

    def test_encode_and_decode_are_what_forward_does(self):
        quantizer = trained().eval()
        output = quantizer(batch(), FRAME_RATE)
        codes = quantizer.encode(batch()).codes
        assert torch.equal(codes, output.codes)
        assert torch.equal(quantizer.decode(codes), output.x)

    def test_each_codebook_makes_it_better(self):
        quantizer, x = trained(bins=32).eval(), batch(100)
        codes = quantizer.encode(x).codes
        errors = [F.mse_loss(quantizer.decode(codes[:, :n]), x).item() for n in (1, 2, 3)]
        assert errors[0] > errors[1] > errors[2]

    def test_fewer_codebooks_are_the_first_ones(self):
        quantizer = trained().eval()
        codes = quantizer.encode(batch()).codes
        quantizer.set_num_codebooks(2)
        output = quantizer(batch(), FRAME_RATE)
        assert quantizer.num_codebooks == 2 and quantizer.total_codebooks == 3
        assert torch.equal(output.codes, codes[:, :2]) and torch.equal(quantizer.encode(batch()).codes, codes[:, :2])
        assert output.bandwidth.item() == pytest.approx(2 * 4 * FRAME_RATE / 1000)

    @pytest.mark.parametrize('n', [0, 4, -1])
    def test_wrong_number_of_codebooks(self, n):
        with pytest.raises(ValueError, match='from 1 to 3'):
            build().set_num_codebooks(n)

    @pytest.mark.parametrize('value', [-1, 16])
    def test_codes_out_of_range_name_the_level(self, value):
        codes = torch.zeros(2, 3, 5, dtype=torch.int64)
        codes[1, 2, 3] = value
        with pytest.raises(ValueError, match='level 2 .* 0 to 15'):
            build().decode(codes)

    @pytest.mark.parametrize('codes', [torch.zeros(2, 4, 5).long(), torch.zeros(2, 0, 5).long(), torch.zeros(2, 3, 5),
                                       torch.zeros(3, 5).long()])
    def test_what_are_no_codes(self, codes):
        with pytest.raises(ValueError, match='K from 1 to 3'):
            build().decode(codes)

    def test_wrong_width(self):
        with pytest.raises(ValueError, match=r"\[B, 6, T'\], got \[2, 5, 20\]"):
            build()(batch(dim=5), FRAME_RATE)

    @pytest.mark.parametrize('kwargs', [{'expire': 'never'}, {'kmeans_average': 'sum'}, {'n_q': 0}, {'bins': 0}])
    def test_wrong_arguments(self, kwargs):
        with pytest.raises(ValueError, match=next(iter(kwargs))):
            build(**kwargs)

    def test_half_precision_changes_no_code(self):
        quantizer, x = trained().eval(), batch().bfloat16()
        expected = quantizer.encode(x.float()).codes
        with torch.autocast('cpu', torch.bfloat16):
            output = quantizer(x, FRAME_RATE)
        assert output.x.dtype == torch.bfloat16 and output.penalty.dtype == torch.float32
        assert torch.equal(output.codes, expected)


class TestNearest:
    def test_is_the_nearest(self):
        rows, embed = batch(size=1, length=300)[0].t(), batch(1, size=1, length=40)[0].t()
        expected = torch.cdist(rows.double(), embed.double()).argmin(1)
        assert torch.equal(codebook_module.nearest(rows, embed), expected)

    def test_first_of_equal_ones(self):
        embed = torch.ones(5, 3)
        embed[0] = 2.
        assert codebook_module.nearest(torch.zeros(4, 3), embed).tolist() == [1] * 4

    def test_in_parts(self, monkeypatch):
        rows, embed = batch(size=1, length=301)[0].t(), batch(1, size=1, length=40)[0].t()
        whole = codebook_module.nearest(rows, embed)
        monkeypatch.setattr(codebook_module, 'DISTANCES_AT_ONCE', 40 * 50)
        assert torch.equal(codebook_module.nearest(rows, embed), whole)

    def test_rounds_as_published_codes_were_made(self):
        # Entries that differ by little more than the rounding, far from zero: other forms give other codes.
        torch.manual_seed(0)
        rows = torch.randn(2000, 8) + 100
        embed = rows[:64] + 1e-3 * torch.randn(64, 8)
        score = -(rows.pow(2).sum(1, keepdim=True) - 2 * rows @ embed.t() + embed.t().pow(2).sum(0, keepdim=True))
        assert torch.equal(codebook_module.nearest(rows, embed), score.max(dim=-1).indices)
        assert not torch.equal(torch.cdist(rows.double(), embed.double()).argmin(1), score.max(dim=-1).indices)


class TestGradients:
    def test_of_the_output_is_the_identity(self):
        quantizer, x, weight = trained(), batch().requires_grad_(), batch(5)
        output = quantizer(x, FRAME_RATE)
        (output.x * weight).sum().backward()
        torch.testing.assert_close(x.grad, weight)

    def test_of_the_penalty_is_that_of_the_distances_to_the_entries(self):
        quantizer, x = trained(), batch().requires_grad_()
        entries = [level.codebook.embed.clone() for level in quantizer.levels]
        output = quantizer(x, FRAME_RATE)
        output.penalty.backward()
        residual, losses = batch(), []
        expected = torch.zeros_like(residual)
        for embed, codes in zip(entries, output.codes.unbind(1)):
            quantized = embed[codes].transpose(1, 2)
            expected += 2 * (residual - quantized) / residual.numel() / 3
            losses.append(F.mse_loss(residual, quantized))
            residual = residual - quantized
        torch.testing.assert_close(x.grad, expected)
        torch.testing.assert_close(output.penalty, torch.stack(losses).mean())

    def test_backward_after_two_passes(self):
        # Updates of the buffers between a pass and its backward would raise, if a buffer itself were saved.
        quantizer, x = trained(codebook_dim=4), batch().requires_grad_()
        first = quantizer(x, FRAME_RATE)
        second = quantizer(x * 2, FRAME_RATE)
        (first.x.sum() + first.penalty + second.x.sum() + second.penalty).backward()
        assert x.grad.isfinite().all()

    def test_no_penalty_in_eval(self):
        assert trained().eval()(batch(), FRAME_RATE).penalty.item() == 0

    def test_projections_learn(self):
        quantizer, x = trained(codebook_dim=4), batch()
        assert quantizer.levels[0].codebook.embed.shape == (16, 4)
        assert 'vq.layers.0.project_in.weight' in quantizer.state_dict()
        output = quantizer(x, FRAME_RATE)
        (F.mse_loss(output.x, x) + output.penalty).backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in quantizer.parameters())

    def test_orthogonality_is_in_the_penalty(self):
        first, second = build(kmeans_init=False), build(kmeans_init=False, orthogonal_reg_weight=2.)
        expected = torch.stack([codebook_module.orthogonality(level.codebook.embed) for level in first.levels]).mean()
        difference = second(batch(), FRAME_RATE).penalty - first(batch(), FRAME_RATE).penalty
        torch.testing.assert_close(difference, 2 * expected)
        assert codebook_module.orthogonality(torch.eye(4) * 3).item() == pytest.approx(0, abs=1e-6)
        assert codebook_module.orthogonality(torch.ones(4, 4)).item() == pytest.approx(12 / 16)


class TestUpdates:
    def test_only_in_training(self):
        quantizer = trained()
        before = state_of(quantizer)
        quantizer.encode(batch())
        quantizer.eval()(batch(), FRAME_RATE)
        assert same(before, quantizer.state_dict())
        quantizer.train()(batch(), FRAME_RATE)
        assert not same(before, quantizer.state_dict())

    def test_are_moving_averages(self):
        quantizer = build(n_q=1, kmeans_init=False, threshold_ema_dead_code=0, decay=0.9)
        codebook, rows = quantizer.levels[0].codebook, batch().transpose(1, 2).reshape(-1, DIM)
        size, average = codebook.cluster_size.clone(), codebook.embed_avg.clone()
        one_hot = F.one_hot(quantizer(batch(), FRAME_RATE).codes.flatten(), 16).float()
        torch.testing.assert_close(codebook.cluster_size, 0.9 * size + 0.1 * one_hot.sum(0))
        torch.testing.assert_close(codebook.embed_avg, 0.9 * average + 0.1 * one_hot.t() @ rows)
        torch.testing.assert_close(codebook.embed, codebook.embed_avg / codebook.cluster_size[:, None],
                                   rtol=1e-3, atol=1e-3)

    def test_in_place(self):
        quantizer = build()
        places = {key: value.data_ptr() for key, value in quantizer.named_buffers()}
        for _ in range(3):
            quantizer(batch(), FRAME_RATE)
        assert places == {key: value.data_ptr() for key, value in quantizer.named_buffers()}

    @pytest.mark.parametrize('value', [math.nan, math.inf])
    def test_a_batch_that_is_not_finite_changes_nothing(self, value):
        for quantizer in (trained(), build()):
            before, x = state_of(quantizer), batch()
            x[0, 0, 0] = value
            quantizer(x, FRAME_RATE)
            assert same(before, quantizer.state_dict())
            quantizer(batch(), FRAME_RATE)
            assert all(tensor.isfinite().all() for tensor in quantizer.buffers())
            assert all(level.codebook.inited.item() == 1 for level in quantizer.levels)

    def test_resumed_is_uninterrupted(self):
        whole, other = build(bins=64), build(bins=64)
        for step in range(3):
            whole(batch(step), FRAME_RATE)
        saved, random = copy.deepcopy(state_of(whole)), rng_state()
        expired = sum(float(whole(batch(step), FRAME_RATE).metrics['codes_expired']) for step in range(3, 40))
        assert expired > 0
        other.load_state_dict(saved)
        set_rng_state(random)
        for step in range(3, 40):
            other(batch(step), FRAME_RATE)
        assert same(whole.state_dict(), other.state_dict())


class TestStart:
    def test_never_in_eval(self):
        quantizer = build(training=False)
        before = state_of(quantizer)
        output = quantizer(batch(), FRAME_RATE)
        quantizer.train()
        quantizer.encode(batch())
        assert same(before, quantizer.state_dict()) and before['vq.layers.0._codebook.inited'].item() == 0
        assert output.x.isfinite().all() and output.x.abs().sum() > 0

    def test_once_in_training(self, monkeypatch):
        calls = []
        kmeans = codebook_module.kmeans
        monkeypatch.setattr(codebook_module, 'kmeans', lambda *args: calls.append(1) or kmeans(*args))
        quantizer = build()
        for step in range(3):
            quantizer(batch(step), FRAME_RATE)
        assert len(calls) == 3
        loaded = build()
        loaded.load_state_dict(quantizer.state_dict())
        loaded(batch(), FRAME_RATE)
        assert len(calls) == 3
        quantizer.load_state_dict(build().state_dict())
        quantizer(batch(), FRAME_RATE)
        assert len(calls) == 6

    @pytest.mark.parametrize('average, stays', [('weighted', True), ('upstream', False)])
    def test_entries_stay_where_the_clusters_are(self, monkeypatch, average, stays):
        monkeypatch.setattr(codebook_module, 'sample_rows', lambda rows, count: rows[:count])
        x = 5 * batch(1, size=1, length=4).repeat(1, 1, 10)
        quantizer = build(n_q=1, bins=4, threshold_ema_dead_code=0, kmeans_average=average)
        for _ in range(3):
            output = quantizer(x, FRAME_RATE)
        assert (F.mse_loss(output.x, x) < 1e-6 * x.square().mean()) == stays

    def test_kmeans_finds_clusters(self):
        torch.manual_seed(0)
        centres = torch.tensor([[0., 0.], [10., 0.], [0., 10.]])
        rows = centres.repeat_interleave(50, 0) + 0.1 * torch.randn(150, 2)
        means, counts = codebook_module.kmeans(rows, 3, 10, means=rows[[0, 60, 120]])
        torch.testing.assert_close(means, centres, atol=0.1, rtol=0)
        assert counts.tolist() == [50., 50., 50.]

    def test_empty_clusters_keep_their_mean(self):
        far = torch.tensor([[0., 0.], [100., 100.]])
        means, counts = codebook_module.kmeans(torch.rand(10, 2), 2, 3, means=far)
        assert means[1].tolist() == [100., 100.] and counts.tolist() == [10., 0.]

    def test_fewer_vectors_than_entries(self):
        quantizer = build(bins=64)
        output = quantizer(batch(size=1, length=5), FRAME_RATE)
        assert output.x.isfinite().all()
        assert all(tensor.isfinite().all() for tensor in quantizer.buffers())

    def test_is_a_function_of_the_global_generator(self):
        assert same(trained().state_dict(), trained().state_dict())


def mixture(seed, size=1024, dim=8):
    random = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(32, dim, generator=torch.Generator().manual_seed(1234))
    rows = centres[torch.randint(32, (size,), generator=random)] + torch.randn(size, dim, generator=random)
    return rows.t()[None]


def collapse(quantizer, alive=4):
    for level in quantizer.levels:
        codebook = level.codebook
        codebook.embed[alive:] += 1e4
        codebook.cluster_size[alive:] = 1e-2
        codebook.embed_avg.copy_(codebook.embed * codebook.cluster_size[:, None])


def use_after_collapse(steps=40, **kwargs):
    """Share of the entries in use on unseen data, the lowest of the levels, after a collapse and some updates."""
    quantizer = build(**{'dimension': 8, 'n_q': 2, 'bins': 256, **kwargs})
    quantizer(mixture(0), FRAME_RATE)
    collapse(quantizer)
    for step in range(steps):
        quantizer(mixture(step), FRAME_RATE)
    codes = quantizer.eval().encode(mixture(9999, size=8192)).codes
    return min(level.unique().numel() for level in codes.unbind(1)) / 256


class TestExpiry:
    def test_brings_a_collapsed_codebook_back(self):
        assert use_after_collapse() > 0.9

    @pytest.mark.parametrize('off', [{'threshold_ema_dead_code': 0}, {'expire': 'upstream'}])
    def test_without_it_the_codebook_stays_collapsed(self, off):
        assert use_after_collapse(**off) < 0.1

    def test_dead_entries_become_different_vectors_of_the_batch(self):
        quantizer = trained(n_q=1, bins=16)
        codebook, x = quantizer.levels[0].codebook, batch(7)
        collapse(quantizer)
        output = quantizer(x, FRAME_RATE)
        assert output.metrics['codes_expired'].item() == 12
        rows, new = x.transpose(1, 2).reshape(-1, DIM), codebook.embed[4:]
        assert all((row == rows).all(1).any() for row in new) and len(new.unique(dim=0)) == 12
        sizes = codebook.cluster_size
        assert sizes[4:].unique().numel() == 1 and 0 < sizes[4] <= 1.1 * 2 and sizes[4] < sizes.mean()
        torch.testing.assert_close(codebook.embed_avg[4:], sizes[4] * new)

    def test_an_entry_that_is_used_stays(self):
        quantizer = trained(n_q=1, bins=4)
        size = quantizer.levels[0].codebook.cluster_size
        size.copy_(torch.tensor([1.9, 2.1, 50., 50.]))
        output = quantizer(batch(length=1, size=1), FRAME_RATE)
        assert output.metrics['codes_expired'].item() == 1
        assert size[0] == pytest.approx(2.2) and size[1] < 2.1

    def test_of_a_level_take_its_residuals(self):
        quantizer = trained(n_q=2, bins=16)
        collapse(quantizer)
        first = quantizer.levels[0].codebook.embed.clone()
        output = quantizer(batch(7), FRAME_RATE)
        residual = (batch(7) - first[output.codes[:, 0]].transpose(1, 2)).transpose(1, 2).reshape(-1, DIM)
        assert all((row == residual).all(1).any() for row in quantizer.levels[1].codebook.embed[4:])

    def test_with_fewer_vectors_than_dead_entries(self):
        quantizer = trained(n_q=1, bins=16)
        collapse(quantizer)
        x = batch(7, size=1, length=5)
        quantizer(x, FRAME_RATE)
        new = quantizer.levels[0].codebook.embed[4:]
        assert all((row == x[0].t()).all(1).any() for row in new) and len(new.unique(dim=0)) == 5

    def test_few_vectors_do_not_replace_everything_each_time(self):
        quantizer = build(n_q=1, bins=64)
        expired = [float(quantizer(batch(step), FRAME_RATE).metrics['codes_expired']) for step in range(60)]
        assert sum(expired[10:]) / 50 < 6

    def test_upstream_does_nothing_and_draws_nothing(self):
        quantizer = trained(expire='upstream')
        collapse(quantizer)
        random = torch.get_rng_state()
        assert quantizer(batch(), FRAME_RATE).metrics['codes_expired'].item() == 0
        assert torch.equal(random, torch.get_rng_state())


class TestDropout:
    def numbers(self, quantizer, updates=40):
        return [quantizer(batch(), FRAME_RATE, Draws(0, update, total=2)).codes.shape[1] for update in range(updates)]

    def test_draws_all_numbers(self):
        assert set(self.numbers(build(q_dropout=True))) == {1, 2, 3}

    def test_is_the_same_on_all_ranks(self):
        quantizer = trained(q_dropout=True)
        for update in range(10):
            parts = [Draws(0, update, total=4, start=start, size=2) for start in (0, 2)]
            first, second = (quantizer(batch(), FRAME_RATE, draws).codes.shape[1] for draws in parts)
            assert first == second

    def test_up_to_those_in_use(self):
        quantizer = build(q_dropout=True)
        quantizer.set_num_codebooks(2)
        assert set(self.numbers(quantizer)) == {1, 2}

    def test_not_in_eval_without_draws_or_when_off(self):
        assert set(self.numbers(build(q_dropout=True, training=False), 10)) == {3}
        assert set(self.numbers(build(), 10)) == {3}
        assert build(q_dropout=True)(batch(), FRAME_RATE).codes.shape[1] == 3

    def test_bandwidth_follows(self):
        quantizer = build(q_dropout=True)
        for update in range(5):
            output = quantizer(batch(), FRAME_RATE, Draws(0, update, total=2))
            assert output.bandwidth.item() == pytest.approx(output.codes.shape[1] * 4 * FRAME_RATE / 1000)


class TestMetrics:
    @pytest.mark.parametrize('counts, expected', [([5, 5, 5, 5], 4.), ([7, 0, 0, 0], 1.), ([1, 1, 0, 0], 2.),
                                                  ([0, 0, 0, 0], 1.)])
    def test_perplexity(self, counts, expected):
        assert codebook_module.perplexity(torch.tensor(counts).float()).item() == pytest.approx(expected)

    def test_perplexity_of_a_batch_is_the_mean_over_levels(self):
        output = trained().eval()(batch(), FRAME_RATE)
        levels = [codebook_module.perplexity(level.flatten().bincount(minlength=16).float())
                  for level in output.codes.unbind(1)]
        torch.testing.assert_close(output.metrics['codebook_perplexity'], torch.stack(levels).mean())
        assert 'codes_expired' not in output.metrics


def train_in_parts():
    """Some updates with the part of each batch that is this process's; the states of all modules."""
    rank, world = distrib.rank(), distrib.world_size()
    torch.manual_seed(0)
    modules = [build(dimension=4, bins=8, kmeans_init=False, threshold_ema_dead_code=0), build(dimension=4, bins=32),
               GaussianBottleneck(dimension=2)]
    torch.manual_seed(rank)
    for step in range(6):
        x = batch(step, size=4, length=10, dim=4).chunk(world)[rank]
        for module in modules:
            module(x, FRAME_RATE)
    return [{key: value.tolist() for key, value in module.state_dict().items()} for module in modules]


def test_two_processes():
    first, second = run_ranks(train_in_parts, 2)
    assert first == second
    alone = train_in_parts()
    # The sums are those of the whole batch; what is drawn from it is drawn from the first part.
    for index in (0, 2):
        assert alone[index].keys() == first[index].keys()
        for key, value in alone[index].items():
            torch.testing.assert_close(torch.tensor(first[index][key]), torch.tensor(value), rtol=1e-4, atol=1e-5)
    assert alone[1] != first[1]


def test_on_the_meta_device():
    with torch.device('meta'):
        quantizer = ResidualVectorQuantizer(dimension=128, n_q=4, bins=2048)
    assert isinstance(quantizer, nn.Module)
    assert all(buffer.is_meta for buffer in quantizer.buffers())
