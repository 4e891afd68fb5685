"""Stores with items of any length: what is on disk, damage, several processes, kills and crashes."""
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from audiocraft.data import ragged_writer, store_writer
from audiocraft.data.mixture import Mixture
from audiocraft.data.store import Store, check_store
from audiocraft.data.store_writer import StoreWriter
from audiocraft.utils.errors import UserError

from . import stores

TESTS = Path(__file__).resolve().parents[1]
KEYS = stores.RAGGED


def make(path, rows=8, first=0):
    return stores.make(path, keys=KEYS, rows=rows, first=first)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


@pytest.fixture
def store(tmp_path):
    return make(tmp_path / 'train')


def test_reads_what_was_written(store, tmp_path):
    assert check_store(tmp_path / 'train', deep=True) == []
    lengths = [stores.frames(number) for number in range(8)]
    assert store.keys['codes'] == ((None, 4), torch.int16) and list(store.keys) == list(KEYS)
    for key in ('codes', 'mean'):
        assert store.lengths(key).tolist() == lengths and store.lengths(key).dtype == torch.int64
        assert store.facts['lengths'][key] == {'total': sum(lengths), 'min': min(lengths), 'max': max(lengths)}
    for number in range(8):
        expected = stores.item(KEYS, number)
        assert all(torch.equal(store.item(key, number), expected[key]) for key in KEYS)
    assert torch.equal(store.item('codes', -1), store.item('codes', 7))
    for key, wrong in (('codes', 8), ('text_features', 8)):
        with pytest.raises(IndexError):
            store.item(key, wrong)
    with pytest.raises(KeyError, match='text_features'):
        store.lengths('text_features')


def test_facts_name_the_files_and_shapes(store):
    assert store.facts['keys']['codes'] == {'shape': [None, 4], 'dtype': 'int16'}
    assert {'codes.memmap', 'codes_offsets.memmap'} <= store.facts['files'].keys()
    frames = torch.cat([stores.item(KEYS, number)['mean'] for number in range(8)])
    torch.testing.assert_close(store.latent_stats()[0], frames.mean(0))
    torch.testing.assert_close(store.latent_stats()[1], frames.std(0))
    assert store.nbytes == sum((store.files.folder / name).stat().st_size for name in store.facts['files']
                               if name.endswith('.memmap'))


def test_others_read_it(store):
    theirs = TensorDict.load_memmap(store.files.folder)
    assert set(theirs.keys()) == {*KEYS, 'codes_offsets', 'mean_offsets'}
    assert torch.equal(theirs['codes'], store.tensors['codes'])
    assert torch.equal(theirs['codes_offsets'], store.offsets['codes'])


def test_reads_what_others_wrote(tmp_path):
    flat = torch.arange(6).view(6, 1)
    TensorDict({'notes': flat, 'notes_offsets': torch.tensor([0, 2, 2, 6])}).memmap_(tmp_path / 'theirs')
    (tmp_path / 'theirs.tsv').write_text('id\na\nb\nc\n')
    ours = Store(tmp_path / 'theirs')
    assert ours.keys == {'notes': ((None, 1), torch.int64)} and len(ours) == 3
    assert [ours.item('notes', row).flatten().tolist() for row in range(3)] == [[0, 1], [], [2, 3, 4, 5]]


@pytest.mark.parametrize('offsets, said', [
    ([1, 2, 6], 'begins at 1'), ([0, 7, 6], 'item 1 .*ends before'), ([0, -2, 6], 'item 0 .*ends before'),
    ([0, 2, 5], 'ends at 5, but there are 6'), ([0, 2, 9], 'ends at 9'), ([0, 6], 'a.tsv: 2 rows.*have 1')])
def test_offsets_are_checked_before_anything_is_read(tmp_path, offsets, said):
    TensorDict({'x': torch.ones(6, 2), 'x_offsets': torch.tensor(offsets)}).memmap_(tmp_path / 'a')
    (tmp_path / 'a.tsv').write_text('id\na\nb\n')
    with pytest.raises(UserError, match=rf'(?s){said}'):
        Store(tmp_path / 'a')
    assert check_store(tmp_path / 'a')


@pytest.mark.parametrize('name', ['codes', 'codes_offsets'])
def test_cut_and_missing_files(store, tmp_path, name):
    path = store.files.memmap(name)
    path.chmod(0o644)
    os.truncate(path, path.stat().st_size - 2)
    problems = check_store(tmp_path / 'train')
    assert any(f'{name}.memmap' in problem and 'expected' in problem for problem in problems)
    path.unlink()
    assert any(f'{name}.memmap: missing' in problem for problem in check_store(tmp_path / 'train'))


def test_facts_that_say_another_shape(store, tmp_path):
    facts = {**store.facts, 'keys': {**store.facts['keys'], 'codes': {'shape': [7, 4], 'dtype': 'int16'}}}
    store.files.facts.write_text(json.dumps(facts))
    assert any('facts.json' in problem and '"keys"' in problem for problem in check_store(tmp_path / 'train'))


def test_deep_names_the_item_of_a_frame_that_is_not_finite(store, tmp_path):
    flat = store.tensors['mean'].clone()
    row = 5
    flat[store.offsets['mean'][row], 1] = float('nan')
    flat[store.offsets['mean'][row + 1] - 1, 2] = float('inf')
    TensorDict({'mean': flat, 'mean_offsets': store.offsets['mean']}).memmap_(tmp_path / 'nan')
    (tmp_path / 'nan.tsv').write_bytes(store.files.tsv.read_bytes())
    assert check_store(tmp_path / 'nan') == []
    problems = check_store(tmp_path / 'nan', deep=True)
    assert len(problems) == 1 and 'row 5 (id "00000005")' in problems[0]


def test_what_cannot_be_stored(tmp_path):
    for keys in ({'x': ((3, None), 'int16')}, {'x': ((None, 0), 'int16')}, {'x_offsets': ((2,), 'int64')}):
        with pytest.raises(ValueError, match='"x'):
            StoreWriter(tmp_path / 'a', keys=keys, ids=['a'])
    writer = StoreWriter(tmp_path / 'a', keys={'x': ((None, 2), 'int16')}, ids=['a'])
    for wrong in (torch.ones(3, dtype=torch.int16), torch.ones(3, 3, dtype=torch.int16), torch.ones(3, 2)):
        with pytest.raises(ValueError, match='item "a"'):
            writer.add('a', {}, {'x': wrong})
    writer.add('a', {}, {'x': torch.ones(0, 2, dtype=torch.int16)})
    with pytest.raises(UserError, match='any frames of "x"'):
        writer.finish()


def test_an_item_without_frames_is_one(tmp_path):
    writer = StoreWriter(tmp_path / 'a', keys={'x': ((None,), 'int32')}, ids=list('abc'))
    for name, length in zip('cab', (2, 0, 1)):
        writer.add(name, {}, {'x': torch.full((length,), ord(name), dtype=torch.int32)})
    assert writer.finish().lengths('x').tolist() == [0, 1, 2]
    assert Store(tmp_path / 'a').tensors['x'].tolist() == [ord('b'), ord('c'), ord('c')]


# -- several processes, kills and crashes ----------------------------------------------------------------------------

@pytest.mark.parametrize('order', [range(7), range(6, -1, -1), (3, 0, 6, 1, 5, 2, 4)])
@pytest.mark.parametrize('processes', [1, 3])
def test_the_order_is_that_of_the_ids_however_it_was_written(tmp_path, order, processes):
    make(tmp_path / 'one' / 'a', rows=7)
    writers = [stores.writer(tmp_path / 'two' / 'a', keys=KEYS, rows=7, rank=rank) for rank in range(processes)]
    for i, number in enumerate(order):
        stores.add(writers[i % processes], number)
    for target in reversed(writers):
        target.close()
    writers[0].finish()
    assert contents(tmp_path / 'one') == contents(tmp_path / 'two')


def test_rejected_items_leave_nothing(tmp_path):
    target = stores.writer(tmp_path / 'a', keys=KEYS, rows=5)
    for number in (4, 1, 3):
        stores.add(target, number)
    target.reject('00000000', 'silent')
    tensors = stores.item(KEYS, 2)
    tensors['mean'][-1, 0] = float('inf')
    assert not target.add('00000002', {}, tensors)
    store = target.finish()
    assert store.lengths('codes').tolist() == [stores.frames(number) for number in (1, 3, 4)]
    assert store.facts['rejected'] == 2 and check_store(tmp_path / 'a', deep=True) == []


def test_resumes_with_another_number_of_processes(tmp_path):
    make(tmp_path / 'one' / 'a')
    first = [stores.writer(tmp_path / 'two' / 'a', keys=KEYS, rank=rank) for rank in (0, 1, 2)]
    for number in (7, 1, 5, 2):
        stores.add(first[number % 3], number)
    for target in first:
        target.close()
    again = [stores.writer(tmp_path / 'two' / 'a', keys=KEYS, rank=rank) for rank in (0, 1)]
    for number in range(8):
        stores.add(again[number % 2], number)
    again[1].close()
    again[0].finish()
    assert contents(tmp_path / 'one') == contents(tmp_path / 'two')


def test_without_ids_the_order_is_that_of_the_calls(tmp_path):
    for numbers in ((4, 1), (3, 0)):
        target = StoreWriter(tmp_path / 'a', keys={'codes': KEYS['codes'], 'mean': KEYS['mean']}, rows=1)
        for number in numbers:
            tensors = stores.item(KEYS, number)
            target.add(str(number), {}, {key: tensors[key] for key in target.keys})
        target.close()
    store = target.finish()
    assert store.ids == ['4', '1', '3', '0']
    assert store.lengths('mean').tolist() == [stores.frames(number) for number in (4, 1, 3, 0)]


@pytest.mark.parametrize('crash_at', [3, 4, 6, 8, 11, 13, 16])
def test_a_crash_while_finishing(tmp_path, monkeypatch, crash_at):
    """Every step of finishing may be the last one of a process; the next one goes on from there."""
    def fill(path):
        target = stores.writer(path, keys=KEYS, rows=5)
        for number in (3, 0, 4):
            stores.add(target, number)
        target.reject('00000001', 'silent')
        target.reject('00000002', 'silent')
        return target

    fill(tmp_path / 'whole' / 'a').finish()
    target = fill(tmp_path / 'cut' / 'a')
    with monkeypatch.context() as patched:
        stores.crash(patched, crash_at, *((store_writer, name) for name in ('_move', 'write_atomic', 'join_parts')),
                     *((ragged_writer, name) for name in ('copy_bytes', '_write_whole')))
        with pytest.raises(KeyboardInterrupt):
            target.finish()
    resumed = stores.writer(tmp_path / 'cut' / 'a', keys=KEYS, rows=5)
    assert all(resumed.has(f'{number:08d}') for number in range(5))
    resumed.finish()
    assert contents(tmp_path / 'whole') == contents(tmp_path / 'cut')


SCRIPT = """
import sys, time
from pathlib import Path
from audiocraft.data import store_writer
from data import stores
store_writer.ITEMS_PER_SYNC = 7
target = stores.writer(Path(sys.argv[1]), keys=stores.RAGGED, rows=60)
for number in reversed(range(60)):
    stores.add(target, number)
    print(number, flush=True)
    time.sleep(.01)
"""


def test_kill_and_resume_is_as_if_never_killed(tmp_path):
    path = tmp_path / 'cut' / 'a'
    env = {**os.environ, 'PYTHONPATH': f'{TESTS.parent}{os.pathsep}{TESTS}'}
    with subprocess.Popen([sys.executable, '-c', SCRIPT, str(path)], stdout=subprocess.PIPE, env=env,
                          text=True) as process:
        for _ in range(20):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    journal = tmp_path / 'cut' / 'a.partial' / 'journal-0.jsonl'
    with open(journal, 'rb+') as file:  # as if it had been killed in the middle of a line
        file.truncate(journal.stat().st_size - 5)
    part = tmp_path / 'cut' / 'a.partial' / 'codes-0.part'
    with open(part, 'ab') as file:  # frames that no line of the journal knows
        file.write(b'\xff' * 999)
    target = stores.writer(path, keys=KEYS, rows=60)
    assert 6 <= sum(target.has(f'{number:08d}') for number in range(60)) < 59
    for number in range(60):
        stores.add(target, number)
    target.finish()
    make(tmp_path / 'whole' / 'a', rows=60)
    assert contents(tmp_path / 'cut') == contents(tmp_path / 'whole')


def test_joining_needs_little_memory(tmp_path, monkeypatch):
    """Frames are copied in pieces, however many follow each other."""
    monkeypatch.setattr(ragged_writer, '_PIECE', 16)
    expected, pieces = make(tmp_path / 'a'), []
    copy = ragged_writer.copy_bytes

    def counted(source, target, start, stop):
        class Counting:
            def write(self, piece):
                pieces.append(len(piece))
                target.write(piece)
        copy(source, Counting(), start, stop)

    monkeypatch.setattr(ragged_writer, 'copy_bytes', counted)
    assert torch.equal(make(tmp_path / 'b').tensors['codes'], expected.tensors['codes'])
    assert max(pieces) <= 16 and sum(pieces) == sum(expected.tensors[key].nbytes for key in ('codes', 'mean'))


# -- mixtures --------------------------------------------------------------------------------------------------------

def test_mixtures_agree_in_what_a_frame_is(store, tmp_path):
    for name, spec in (('wide', ((None, 5), 'int16')), ('long', ((None, 4), 'int32')), ('fixed', ((6, 4), 'int16'))):
        writer = StoreWriter(tmp_path / name, keys={'codes': spec}, ids=['a'])
        shape = [6 if dim is None else dim for dim in spec[0]]
        writer.add('a', {}, {'codes': torch.zeros(shape, dtype=getattr(torch, spec[1]))})
        writer.finish()
        with pytest.raises(UserError, match=r'"codes" is \[None, 4\] int16 in .*train, but'):
            Mixture([store, tmp_path / name])


def test_stores_of_windows_of_other_durations_can_be_mixed(store, tmp_path):
    other = make(tmp_path / 'other', rows=2, first=50)
    other.files.facts.write_text(json.dumps({**other.facts, 'duration': 30.}))
    mixture = Mixture([store, tmp_path / 'other'])
    assert len(mixture) == 10 and mixture.facts['keys']['codes'] == {'shape': [None, 4], 'dtype': 'int16'}
