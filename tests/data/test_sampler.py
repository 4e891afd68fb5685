import pytest
import torch

from audiocraft.data.sampler import BatchSampler, order


def test_order_is_a_permutation_of_seed_and_pass():
    first = order(3, 0, 100)
    assert sorted(first.tolist()) == list(range(100)) and torch.equal(first, order(3, 0, 100))
    assert not torch.equal(first, order(3, 1, 100)) and not torch.equal(first, order(4, 0, 100))


def test_order_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    order(0, 0, 10)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize('batch_size', [1, 3, 4, 10, 25])
def test_endless_batches_are_of_one_size_and_each_pass_has_every_row(batch_size):
    sampler = BatchSampler(10, batch_size, seed=1, shuffle=True, infinite=True)
    rows = [sampler.batch(number) for number in range(30)]
    assert {len(batch) for batch in rows} == {batch_size}
    flat = sum(rows, [])
    passes = [flat[start:start + 10] for start in range(0, len(flat) // 10 * 10, 10)]
    assert all(sorted(one) == list(range(10)) for one in passes) and len({tuple(one) for one in passes}) == len(passes)


@pytest.mark.parametrize('infinite', [True, False])
@pytest.mark.parametrize('world_size', [2, 3, 4])
def test_ranks_share_the_global_batch(infinite, world_size):
    whole = BatchSampler(11, 6, seed=1, shuffle=True, infinite=infinite)
    ranks = [BatchSampler(11, 6, 1, True, rank=rank, world_size=world_size, infinite=infinite)
             for rank in range(world_size)]
    for number in range(len(whole)):
        parts = [rank.batch(number) for rank in ranks]
        assert sum(parts, []) == whole.batch(number)
        assert max(map(len, parts)) <= ranks[0].local_batch_size


def test_one_pass_keeps_or_drops_the_short_batch():
    sampler = BatchSampler(10, 4)
    assert [sampler.batch(number) for number in range(len(sampler))] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(BatchSampler(10, 4, drop_last=True)) == 2 and sampler.batch(3) == []


def test_senseless_sizes():
    for bad in (dict(n=0, batch_size=1), dict(n=1, batch_size=0), dict(n=4, batch_size=1, rank=2, world_size=2)):
        with pytest.raises(ValueError):
            BatchSampler(**bad)
