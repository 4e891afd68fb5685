"""Batches of items of any length: padding, lengths, windows, buffers that grow."""
import itertools

import pytest
import torch

from audiocraft.data.loaders import HELD, StoreLoader, build_loader
from audiocraft.data.mixture import Mixture
from audiocraft.data.store_dataset import Batch
from audiocraft.data.store_writer import StoreWriter
from audiocraft.utils.errors import UserError

from . import stores

KEYS = stores.RAGGED


@pytest.fixture
def mixture(tmp_path):
    """Items 0 to 4 twice and 50 to 55 with codes, 100 to 102 without."""
    stores.make(tmp_path / 'ragged', keys=KEYS, rows=5)
    stores.make(tmp_path / 'more', keys=KEYS, rows=6, first=50)
    stores.make(tmp_path / 'none', keys={key: KEYS[key] for key in ('mean', 'text_features')}, rows=3, first=100)
    return Mixture([{'path': tmp_path / 'ragged', 'repeat': 2}, tmp_path / 'more', tmp_path / 'none'])


def loader(mixture, **kwargs):
    return StoreLoader(mixture, **{'batch_size': 4, 'seed': 7, **kwargs})


def check(batch, pad=0):
    """Every item is in its place, with its length; behind its end is the pad."""
    for key in ('codes', 'mean'):
        having = [i for i, id in enumerate(batch.ids) if key == 'mean' or int(id) < 100]
        assert batch.rows.get(key, torch.arange(len(batch))).tolist() == having
        lengths = [stores.frames(int(id)) if i in having else 0 for i, id in enumerate(batch.ids)]
        assert batch.lengths[key].tolist() == lengths and batch.lengths[key].dtype == torch.int64
        tensor = batch.tensors[key]
        assert tensor.shape[:2] == (len(having), max(lengths)) and tensor.is_contiguous()
        for place, value in zip(having, tensor):
            expected = stores.item(KEYS, int(batch.ids[place]))[key]
            assert torch.equal(value[:lengths[place]], expected)
            assert bool((value[lengths[place]:] == (pad if key == 'codes' else 0)).all())
    assert 'text_features' not in batch.lengths


def same(first, second):
    return all(torch.equal(getattr(first, name)[key], values[key])
               for name in ('tensors', 'rows', 'lengths') for values in [getattr(second, name)] for key in values)


@pytest.mark.parametrize('threads', [0, 1, 3])
@pytest.mark.parametrize('pad', [0, -1])
def test_batches(mixture, threads, pad):
    data = loader(mixture, shuffle=True, threads=threads, check_finite=True, padding={'codes': pad})
    for _ in range(2):
        seen = []
        for batch in data:
            check(batch, pad)
            seen += batch.ids
        assert sorted(seen) == sorted(mixture.ids)
    data.close()


def test_a_batch_stays_as_it_is_while_buffers_grow(mixture):
    data = loader(mixture, batch_size=2, shuffle=True, infinite=True, threads=2, buffers=HELD + 1)
    kept, copies = [], []
    for batch in itertools.islice(data.iterate(), 60):
        check(batch)
        kept, copies = [*kept, batch][-HELD:], [*copies, batch.clone()][-HELD:]
        assert all(same(old, copy) for old, copy in zip(kept, copies))
    data.close()


def test_memory_is_used_again(mixture):
    data = loader(mixture, infinite=True, threads=0)
    places = [batch.tensors['codes'].data_ptr() for batch in itertools.islice(data, 80)]
    assert len(set(places[40:])) <= data.buffers


def test_processes_read_the_parts_of_a_batch(mixture):
    options = dict(shuffle=True, infinite=True, windows={'codes': 2, 'mean': 2})
    whole = [batch.clone() for batch in itertools.islice(loader(mixture, **options), 9)]
    for rank in (0, 1):
        for batch, both in zip(loader(mixture, rank=rank, world_size=2, **options), whole):
            part = both.slice(2 * rank, 2 * rank + 2)
            assert part.ids == batch.ids and torch.equal(part.lengths['codes'], batch.lengths['codes'])
            longest = batch.tensors['mean'].shape[1]
            assert torch.equal(part.tensors['mean'][:, :longest], batch.tensors['mean'])


# -- windows ---------------------------------------------------------------------------------------------------------

@pytest.fixture
def counting(tmp_path):
    """Items of 20 and of 3 frames which count from their number times 100."""
    keys = {'codes': ((None, 1), 'int32'), 'latents': ((None,), 'float32')}
    writer = StoreWriter(tmp_path / 'counting', keys=keys, ids=[str(i) for i in range(10)])
    for i in range(10):
        frames = 100 * i + torch.arange(20 if i % 2 else 3)
        writer.add(str(i), {}, {'codes': frames[:, None].int(), 'latents': frames.float()})
    return Mixture([writer.finish()])


def starts(batches, size):
    """First frame of the window of each item; all that is in the windows must be in order."""
    found = []
    for batch in batches:
        for i, id in enumerate(batch.ids):
            length = int(batch.lengths['codes'][i])
            frames = batch.tensors['codes'][i, :length, 0] - 100 * int(id)
            assert length == (size if int(id) % 2 else 3)
            assert frames.tolist() == list(range(int(frames[0]), int(frames[0]) + length))
            found.append((id, int(frames[0])))
    return found


def test_windows_are_drawn_by_seed_and_batch(counting):
    def drawn(start=0, **kwargs):
        options = {'shuffle': True, 'infinite': True, 'windows': {'codes': 5}, **kwargs}
        return starts(itertools.islice(loader(counting, **options).iterate(start), 40 - start), 5)

    first = drawn()
    assert first == drawn(threads=3) and first[8:] == drawn(start=2)
    assert dict(first[:100]) != dict(drawn(seed=8)[:100])
    places = [place for id, place in first if int(id) % 2]
    assert set(places) == set(range(16)), 'every place from the first to the last one'
    assert {place for id, place in first if not int(id) % 2} == {0}


def test_windows_in_order_are_beginnings(counting):
    found = starts(loader(counting, windows={'codes': 5}), 5)
    assert found == [(str(i), 0) for i in range(10)]


def test_keys_of_one_length_have_one_window(counting):
    data = loader(counting, shuffle=True, infinite=True, windows={'codes': 5, 'latents': 5})
    for batch in itertools.islice(data, 20):
        assert torch.equal(batch.tensors['codes'][..., 0].float(), batch.tensors['latents'])


# -- options ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('options, said', [
    ({'padding': {'text_features': 1}}, '"text_features" is not a ragged key'),
    ({'windows': {'notes': 5}}, '"notes" is not a ragged key of the stores .*mean, codes'),
    ({'windows': {'codes': 0}}, 'from 1 on'), ({'windows': {'codes': 2.5}}, 'whole number'),
    ({'padding': {'codes': 40_000}}, 'does not fit "codes", which is int16'),
    ({'padding': {'codes': 0.5}}, 'does not fit'), ({'padding': {'mean': float('nan')}}, 'does not fit')])
def test_wrong_options(mixture, options, said):
    with pytest.raises(UserError, match=said):
        loader(mixture, **options)


def test_options_of_a_stage(mixture, tmp_path):
    dset = {'stores': [str(tmp_path / 'ragged')]}
    dataset = {'batch_size': 5, 'padding': {'codes': -1}, 'windows': {'codes': 3}, 'valid': {'windows': None}}
    train, valid = (next(iter(build_loader(dset, dataset, stage=stage, seed=0))) for stage in ('train', 'valid'))
    assert train.tensors['codes'].shape[1] == 3 and train.lengths['mean'].max() > 3
    assert valid.lengths['codes'].tolist() == [stores.frames(number) for number in range(5)]
    assert int(valid.tensors['codes'][0, -1, 0]) == -1, 'item 0 has one frame'


def test_values_that_are_not_finite_are_named(mixture):
    store = mixture.stores[0]
    path = store.files.memmap('mean')
    path.chmod(0o644)
    flat = store.tensors['mean'].clone()
    flat[store.offsets['mean'][3] + 1] = float('nan')
    path.write_bytes(flat.numpy().tobytes())
    with pytest.raises(UserError, match=r'(?s)"mean" is not finite in 1 items.*row 3 \(id "00000003"\)'):
        list(loader(Mixture([store.files.folder]), check_finite=True))


@pytest.mark.parametrize('ahead', [True, False])
def test_reading_ahead_changes_nothing(mixture, ahead):
    for batch in loader(mixture, readahead=ahead):
        check(batch)


# -- batches ---------------------------------------------------------------------------------------------------------

def batch():
    tensors = {'mean': torch.arange(10.).view(5, 2), 'codes': torch.arange(12).view(2, 3, 2)}
    return Batch(list('abcde'), [''] * 5, tensors, {'codes': torch.tensor([1, 4])},
                 {'codes': torch.tensor([0, 3, 0, 0, 2])})


def test_fill_keeps_the_width(mixture):
    full = batch().fill('codes', torch.tensor([-1, -2]))
    assert full.shape == (5, 3, 2) and full[0].tolist() == [[-1, -2]] * 3
    assert torch.equal(full[[1, 4]], batch().tensors['codes'])


def test_slices_have_their_lengths():
    for cut in range(6):
        parts = [batch().slice(0, cut), batch().slice(cut, 5)]
        assert torch.equal(torch.cat([part.lengths['codes'] for part in parts]), batch().lengths['codes'])
        assert torch.equal(torch.cat([part.tensors['codes'] for part in parts]), batch().tensors['codes'])


def test_to_and_clone():
    here = batch()
    assert here.to('meta').lengths['codes'].device.type == 'meta'
    copy = here.clone()
    here.lengths['codes'].zero_()
    assert copy.lengths['codes'].sum() == 5
