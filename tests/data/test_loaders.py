import itertools
import threading

import numpy as np
import pytest
import torch

from audiocraft.data.loaders import HELD, StoreLoader, build_loader
from audiocraft.data.mixture import Mixture
from audiocraft.data.store_dataset import Batch
from audiocraft.utils.errors import UserError

from . import stores


@pytest.fixture
def mixture(tmp_path):
    stores.make(tmp_path / 'video', rows=5)
    stores.make(tmp_path / 'audio', keys=stores.AUDIO, rows=6, first=100)
    return Mixture([{'path': tmp_path / 'video', 'repeat': 2}, tmp_path / 'audio'])


def loader(mixture, **kwargs):
    return StoreLoader(mixture, **{'batch_size': 4, 'seed': 7, **kwargs})


def check(batch):
    """Every tensor of a batch is that of the item with its id; keys that an item lacks are not there."""
    for key, tensor in batch.tensors.items():
        positions = batch.rows.get(key, torch.arange(len(batch))).tolist()
        having = [i for i, id in enumerate(batch.ids) if key in stores.AUDIO or int(id) < 100]
        assert positions == having and len(tensor) == len(having)
        for position, value in zip(positions, tensor):
            assert torch.equal(value, stores.item(stores.VIDEO, int(batch.ids[position]))[key])
    assert batch.captions == [f'sound "{int(id)}"' for id in batch.ids]


def ids(batches, n=None):
    return [list(batch.ids) for batch in itertools.islice(batches, n)]


def test_items_of_video_and_of_audio_only_make_the_same_tensors():
    """What the checks of this file rely on: the shared keys come first in the random stream."""
    video, audio = stores.item(stores.VIDEO, 3), stores.item(stores.AUDIO, 3)
    assert all(torch.equal(video[key], audio[key]) for key in audio)


@pytest.mark.parametrize('threads', [0, 1, 3])
def test_batches_of_a_mixture(mixture, threads):
    data = loader(mixture, shuffle=True, threads=threads, check_finite=True)
    for _ in range(3):  # a loader can be used again
        seen = []
        for batch in data:
            check(batch)
            seen += batch.ids
        assert sorted(seen) == sorted(mixture.ids) and len(data) == 4
    data.close()


@pytest.mark.parametrize('threads', [0, 2])
def test_goes_on_at_any_batch(mixture, threads):
    whole = ids(loader(mixture, shuffle=True, infinite=True, threads=0).iterate(0), 12)
    data = loader(mixture, shuffle=True, infinite=True, threads=threads)
    for start in range(9):
        batches = data.iterate(start)
        assert ids(batches, 3) == whole[start:start + 3]
        batches.close()
    assert ids(loader(mixture).iterate(3)) == [mixture.ids[12:]] and ids(loader(mixture).iterate(4)) == []


@pytest.mark.parametrize('infinite', [True, False])
def test_the_order_does_not_depend_on_the_number_of_processes(mixture, infinite):
    options = dict(shuffle=True, infinite=infinite)
    whole = ids(loader(mixture, **options).iterate(), 4)
    ranks = [ids(loader(mixture, rank=rank, world_size=2, threads=2, **options).iterate(), 4) for rank in (0, 1)]
    assert [first + second for first, second in zip(*ranks)] == whole


def test_a_batch_stays_as_it_is_until_the_next_but_one(mixture):
    data = loader(mixture, shuffle=True, infinite=True, threads=2, buffers=HELD + 1)
    kept, copies = [], []
    for batch in itertools.islice(data.iterate(), 40):
        kept, copies = [*kept, batch][-HELD:], [*copies, batch.clone()][-HELD:]
        for old, copy in zip(kept, copies):
            assert all(torch.equal(old.tensors[key], copy.tensors[key]) for key in copy.tensors)
    data.close()


def test_buffers_are_used_again(mixture):
    data = loader(mixture, infinite=True)
    places = {batch.tensors['mean'].data_ptr() for batch in itertools.islice(data, 30)}
    assert len(places) <= data.buffers


def test_two_iterations_at_once(mixture):
    data = loader(mixture, shuffle=True)
    for first, second in zip(data, data.iterate()):
        assert first.ids == second.ids and first.tensors['mean'].data_ptr() != second.tensors['mean'].data_ptr()
        check(first), check(second)


def test_an_error_in_a_thread_surfaces_in_its_turn_and_names_the_store(mixture, monkeypatch):
    data = loader(mixture, threads=2)
    read = data._read

    def broken(places, buffers, first):
        if places[0][1] == 3 and places[0][0].name == 'video':
            raise OSError('the disk is gone')
        return read(places, buffers, first)

    monkeypatch.setattr(data, '_read', broken)
    batches = iter(data)
    assert [next(batches).ids for _ in range(2)] == [mixture.ids[:4], mixture.ids[4:8]]
    with pytest.raises(RuntimeError, match=r'batch 2 of .*video.*the disk is gone'):
        next(batches)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith('data-')]
    monkeypatch.undo()
    assert len(ids(data)) == 4


def test_close_ends_the_threads(mixture):
    before = threading.active_count()
    data = loader(mixture, infinite=True, threads=3)
    first, second = data.iterate(), data.iterate()
    next(first), next(second)
    assert threading.active_count() == before + 6
    data.close()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match='closed'):
        ids(first, 9)
    assert ids(data, 2) == ids(data, 2)


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_values_that_are_not_finite_are_named(tmp_path, dtype, value):
    store = stores.make(tmp_path / 'a', keys={'mean': ((4, 3), dtype), 'std': ((4, 3), dtype)})
    path = store.files.memmap('std')
    path.chmod(0o644)
    bad = store.tensors['std'].clone()
    bad[6, 1, 2] = value
    path.write_bytes(bad.view(torch.uint8).numpy().tobytes())
    data = loader(Mixture([tmp_path / 'a']), check_finite=True)
    with pytest.raises(UserError, match=r'(?s)"std".*std.memmap: row 6 \(id "00000006"\)'):
        ids(data)
    assert len(ids(loader(Mixture([tmp_path / 'a'])))) == 2


def test_large_finite_values_are_no_error(tmp_path):
    store = stores.make(tmp_path / 'a', keys={'mean': ((4, 3), 'float32')})
    path = store.files.memmap('mean')
    path.chmod(0o644)
    path.write_bytes(np.full(8 * 12, 3e38, dtype=np.float32).tobytes())
    assert len(ids(loader(Mixture([tmp_path / 'a']), check_finite=True))) == 2


def test_reading_ahead_changes_nothing(mixture):
    assert [ids(loader(mixture, readahead=ahead)) for ahead in (True, False)] == [ids(loader(mixture))] * 2


def test_says_how_large_the_stores_are(mixture, caplog, monkeypatch):
    with caplog.at_level('INFO'):
        loader(mixture, name='train')
        assert 'train: 16 rows' in caplog.text and 'in 2 stores' in caplog.text and 'memory available' in caplog.text
        monkeypatch.setattr('audiocraft.data.loaders.available_memory', lambda: 10)
        loader(mixture)
    assert caplog.records[-1].levelname == 'WARNING' and 'do not fit' in caplog.text


def test_build(mixture, tmp_path):
    dset = {'stores': [str(tmp_path / 'video')], 'media': None}
    dataset = {'batch_size': 2, 'num_workers': 1, 'valid': {'num_samples': 3},
               'evaluate': {'batch_size': 4, 'num_samples': None}}
    build = {stage: build_loader(dset, dataset, stage=stage, seed=0) for stage in ('train', 'valid', 'evaluate')}
    assert ids(build['valid']) == [['00000000', '00000001'], ['00000002']]
    assert [len(batch) for batch in ids(build['evaluate'])] == [4, 1]
    assert {len(batch) for batch in ids(build['train'], 6)} == {2}
    assert len(build_loader(dset, dataset, stage='valid', seed=0, limit=1).mixture) == 1


@pytest.mark.parametrize('dset', [None, {}, {'stores': None}, {'stores': []}])
def test_no_stores(dset):
    with pytest.raises(UserError, match='dset.valid.stores'):
        build_loader(dset, {'batch_size': 2}, stage='valid', seed=0)


# -- batches ---------------------------------------------------------------------------------------------------------

def batch():
    tensors = {'mean': torch.arange(10.).view(5, 2), 'clip': torch.ones(2, 3, 2)}
    return Batch(list('abcde'), [''] * 5, tensors, {'clip': torch.tensor([1, 4])})


def test_fill_puts_the_null_at_the_missing_rows():
    null = torch.full((2,), 7., requires_grad=True)
    full = batch().fill('clip', null)
    assert full.shape == (5, 3, 2) and full[:, 0, 0].tolist() == [7, 1, 7, 7, 1]
    full.sum().backward()
    assert null.grad.tolist() == [9, 9]
    assert batch().fill('mean', null).tolist() == batch().tensors['mean'].tolist()


def test_exists():
    assert batch().exists('clip').tolist() == [False, True, False, False, True]
    assert batch().exists('mean').tolist() == [True] * 5 and batch().exists('sync').tolist() == [False] * 5


def test_slices_are_the_parts_of_the_whole():
    null = torch.zeros(3, 2)
    for cut in range(6):
        parts = [batch().slice(0, cut), batch().slice(cut, 5)]
        assert sum((part.ids for part in parts), []) == list('abcde')
        assert torch.equal(torch.cat([part.tensors['mean'] for part in parts]), batch().tensors['mean'])
        assert torch.equal(torch.cat([part.fill('clip', null) for part in parts]), batch().fill('clip', null))
    assert 'clip' not in batch().slice(4, 9).rows


def test_to_and_clone():
    here = batch()
    assert here.to('cpu') is here and here.to('meta').tensors['clip'].device.type == 'meta'
    copy = here.clone()
    here.tensors['mean'].zero_()
    assert copy.tensors['mean'].sum() == 45
