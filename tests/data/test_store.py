import json
import shutil

import pytest
import torch
from tensordict import TensorDict

from audiocraft.data.check import check_path
from audiocraft.data.store import Store, check_store, latent_stats
from audiocraft.utils.errors import UserError

from . import stores


@pytest.fixture
def store(tmp_path):
    return stores.make(tmp_path / 'train')


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def refused(path, *names, deep=False):
    """The store is refused, naming the files, and nothing on disk changes."""
    before = snapshot(path.parent)
    problems = check_store(path, deep)
    assert problems and all(any(name in problem for problem in problems) for name in names), problems
    if not deep:
        with pytest.raises(UserError) as error:
            Store(path)
        assert all(name in str(error.value) for name in names)
    assert snapshot(path.parent) == before
    return problems


def writable(path):
    path.chmod(0o644)
    return path


def test_reads_what_was_written(store, tmp_path):
    assert check_path(tmp_path / 'train', deep=True) == check_path(tmp_path, deep=True) == []
    for path in ('train', 'train.tsv', 'train.facts.json'):
        assert Store(tmp_path / path).ids == [f'{i:08d}' for i in range(8)]
    assert store.captions[3] == 'sound "3"' and store.rows[3]['duration'] == '4.0'
    assert store.keys['clip_features'] == ((3, 6), torch.float32)
    expected = stores.item(stores.VIDEO, 5)
    assert all(torch.equal(store.tensors[key][5], value) for key, value in expected.items())


def test_others_read_it(store):
    theirs = TensorDict.load_memmap(store.files.folder)
    assert set(theirs.keys()) == set(store.keys) and theirs.batch_size == torch.Size([])
    assert all(torch.equal(theirs[key], store.tensors[key]) for key in store.keys)


def test_reads_what_others_wrote(tmp_path):
    TensorDict({'mean': torch.randn(3, 4, 2), 'std': torch.rand(3, 4, 2)}).memmap_(tmp_path / 'theirs')
    (tmp_path / 'theirs.tsv').write_text('id\tlabel\n00008004\tnull\n2\tNA\n3\train\n')
    ours = Store(tmp_path / 'theirs')
    assert ours.ids == ['00008004', '2', '3'] and ours.captions[:2] == ['null', 'NA'] and ours.facts is None
    values = ours.tensors['mean'].reshape(-1, 2)
    mean, std = ours.latent_stats()
    torch.testing.assert_close(mean, values.mean(0))
    torch.testing.assert_close(std, values.std(0))


def test_writing_to_a_tensor_does_not_reach_the_disk(store):
    before = snapshot(store.files.folder)
    store.tensors['mean'].zero_()
    assert snapshot(store.files.folder) == before and bool(Store(store.files.folder).tensors['mean'].any())


def test_cut_by_one_byte(store, tmp_path):
    path = writable(store.files.memmap('sync_features'))
    with open(path, 'rb+') as file:
        file.truncate(path.stat().st_size - 1)
    refused(tmp_path / 'train', 'sync_features.memmap')


def test_stray_pickle(store, tmp_path):
    (store.files.folder / 'other.pickle').write_bytes(b'\x80\x04N.')
    refused(tmp_path / 'train', 'other.pickle')


@pytest.mark.parametrize('field, value', [('_type', "<class 'tensordict.NonTensorData'>"), ('_class', 'os:system')])
def test_other_types(store, tmp_path, field, value):
    path = store.files.folder / 'meta.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    refused(tmp_path / 'train', 'meta.json', field)


def test_missing_row_of_the_table(store, tmp_path):
    lines = store.files.tsv.read_text().splitlines(keepends=True)
    store.files.tsv.write_text(''.join(lines[:-1]))
    refused(tmp_path / 'train', 'train.tsv')


@pytest.mark.parametrize('name', ['train.tsv', 'train/mean.memmap', 'train/meta.json', 'train'])
def test_missing_parts(store, tmp_path, name):
    path = tmp_path / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    refused(tmp_path / 'train', name)


def test_file_that_does_not_belong(store, tmp_path):
    (store.files.folder / 'old.memmap').write_bytes(b'1234')
    refused(tmp_path / 'train', 'old.memmap')


@pytest.mark.parametrize('key, field, value', [
    ('mean', 'dtype', 'torch.float16'), ('mean', 'dtype', 'object'), ('mean', 'shape', [8, 3, 4]),
    ('mean', 'shape', [8, -4, -3]), ('std', 'shape', 'all'), ('std', 'is_nested', True)])
def test_wrong_descriptions(store, tmp_path, key, field, value):
    path = store.files.folder / 'meta.json'
    meta = json.loads(path.read_text())
    meta[key][field] = value
    path.write_text(json.dumps(meta))
    assert any(key in problem for problem in refused(tmp_path / 'train'))


@pytest.mark.parametrize('name', ['meta.json', 'facts'])
def test_broken_json(store, tmp_path, name):
    path = store.files.facts if name == 'facts' else store.files.folder / name
    path.write_text('{"mean": ')
    refused(tmp_path / 'train', path.name)


@pytest.mark.parametrize('field, value', [('rows', 9), ('schema', 99), ('keys', {}), ('files', {}), ('files', 3)])
def test_facts_that_do_not_fit(store, tmp_path, field, value):
    store.files.facts.write_text(json.dumps({**store.facts, field: value}))
    refused(tmp_path / 'train', 'train.facts.json')


def test_deep_finds_a_flipped_bit(store, tmp_path):
    path = writable(store.files.memmap('std'))
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    assert check_store(tmp_path / 'train') == []
    refused(tmp_path / 'train', 'std.memmap', deep=True)


def test_deep_finds_rows_that_are_not_finite(store, tmp_path):
    theirs = {key: tensor.clone() for key, tensor in store.tensors.items()}
    theirs['mean'][5, 2, 1] = float('nan')
    TensorDict(theirs).memmap_(tmp_path / 'nan')
    shutil.copy(store.files.tsv, tmp_path / 'nan.tsv')
    assert check_store(tmp_path / 'nan') == []
    problems = refused(tmp_path / 'nan', 'mean.memmap', deep=True)
    assert len(problems) == 1 and 'row 5' in problems[0] and '00000005' in problems[0]


def test_statistics_do_not_depend_on_the_blocks(monkeypatch):
    latents = torch.randn(50, 7, 3, generator=torch.Generator().manual_seed(0)) * 3 + 100
    monkeypatch.setattr('audiocraft.data.store._BLOCK_BYTES', 4 * 7 * 3 * 4)
    mean, std = latent_stats(latents)
    values = latents.reshape(-1, 3).double()
    torch.testing.assert_close(mean, values.mean(0).float())
    torch.testing.assert_close(std, values.std(0).float())
