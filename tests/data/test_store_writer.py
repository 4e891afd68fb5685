import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from audiocraft.data import store_writer
from audiocraft.data.manifest import read_table
from audiocraft.data.store import check_store
from audiocraft.data.store_writer import StoreWriter
from audiocraft.utils.errors import UserError

from . import stores

TESTS = Path(__file__).resolve().parents[1]


def digest(folder):
    return {path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob('*')) if path.is_file()}


def test_order_is_that_of_the_ids_and_rejected_rows_are_closed_up(tmp_path):
    target = stores.writer(tmp_path / 'a', rows=6)
    for number in (5, 2, 0, 3):
        assert stores.add(target, number)
    target.reject('00000001', 'no audio\ttrack')
    tensors = stores.item(stores.VIDEO, 4)
    tensors['std'][0, 0] = float('inf')
    assert not target.add('00000004', {'caption': 'x'}, tensors)
    store = target.finish()
    assert store.ids == ['00000000', '00000002', '00000003', '00000005']
    assert store.tensors['mean'][:, 0, 0].tolist() == [0, 2, 3, 5]
    rejected = read_table(tmp_path / 'a.rejected.tsv')
    assert [(row['id'], row['reason']) for row in rejected] == [('00000001', 'no audio track'),
                                                               ('00000004', 'std is not finite')]
    assert check_store(tmp_path / 'a', deep=True) == [] and not (tmp_path / 'a.partial').exists()
    assert store.facts['sample_rate'] == 16000 and store.facts['rejected'] == 2
    assert store.latent_stats()[0].tolist() == pytest.approx(store.tensors['mean'].mean((0, 1)).tolist(), abs=1e-6)


def test_two_processes_write_what_one_writes(tmp_path):
    expected = stores.make(tmp_path / 'one' / 'a', rows=7)
    writers = [stores.writer(tmp_path / 'two' / 'a', rows=7, rank=rank) for rank in (0, 1)]
    for number in range(7):
        stores.add(writers[number % 2], number)
    writers[1].close()
    writers[0].finish()
    assert writers[1].finish().ids == expected.ids
    assert digest(tmp_path / 'one') == digest(tmp_path / 'two') and len(expected) == 7


def test_resumes_with_another_number_of_processes(tmp_path):
    expected = stores.make(tmp_path / 'one' / 'a')
    first = [stores.writer(tmp_path / 'two' / 'a', rank=rank) for rank in (0, 1, 2)]
    for number in (0, 1, 5):
        stores.add(first[number % 3], number)
    for target in first:
        target.close()
    again = stores.writer(tmp_path / 'two' / 'a')
    assert [again.has(id) for id in expected.ids] == [number in (0, 1, 5) for number in range(8)]
    for number in range(8):
        stores.add(again, number)
    again.finish()
    assert digest(tmp_path / 'one') == digest(tmp_path / 'two')


def test_repeated_items_are_dropped(tmp_path):
    target = StoreWriter(tmp_path / 'a', keys={'mean': ((4, 3), 'float32')}, ids=['x', 'y', 'x'])
    added = [target.add(id, {'caption': id}, {'mean': torch.ones(4, 3)}) for id in ('x', 'x', 'y')]
    assert added == [True, False, True]
    assert target.finish().ids == ['x', 'y']


def test_without_ids_rows_come_in_order_of_the_calls_and_room_is_made(tmp_path):
    keys = {'codes': ((2,), torch.int16), 'level': ((), torch.float64), 'half': ((2,), torch.bfloat16)}
    target = StoreWriter(tmp_path / 'a', keys=keys, rows=2)
    for number in (4, 1, 3, 0, 2):
        target.add(str(number), {}, {'codes': torch.tensor([number, -number], dtype=torch.int16),
                                     'level': torch.tensor(number / 4), 'half': torch.full((2,), float(number))})
        if number == 1:
            target.reject('bad', 'silent')
        if number == 3:
            target.close()
            target = StoreWriter(tmp_path / 'a', keys=keys, rows=2)
            assert target.has('bad') and target.has('4') and not target.has('0')
    store = target.finish()
    assert store.ids == ['4', '1', '3', '0', '2'] and store.tensors['codes'][0].tolist() == [4, -4]
    assert store.tensors['level'].tolist() == [1, .25, .75, 0, .5] and store.tensors['half'].dtype == torch.bfloat16
    assert check_store(tmp_path / 'a', deep=True) == []


def test_refuses_what_does_not_fit(tmp_path):
    target = stores.writer(tmp_path / 'a')
    tensors = stores.item(stores.VIDEO, 0)
    turned, whole = {**tensors, 'mean': torch.ones(3, 4)}, {**tensors, 'mean': torch.ones(4, 3).int()}
    for bad in (turned, whole, {'mean': tensors['mean']}):
        with pytest.raises(ValueError, match='00000000'):
            target.add('00000000', {}, bad)
    with pytest.raises(ValueError, match='stranger'):
        target.add('stranger', {}, tensors)
    with pytest.raises(ValueError, match='label'):
        target.add('00000000', {'label': 'x'}, tensors)


def test_finish_needs_all_items(tmp_path):
    target = stores.writer(tmp_path / 'a')
    stores.add(target, 0)
    with pytest.raises(UserError, match='7 items'):
        target.finish()
    target = stores.writer(tmp_path / 'a')
    for number in range(1, 8):
        target.reject(f'{number:08d}', 'silent')
    assert target.finish().ids == ['00000000']


def test_nothing_accepted(tmp_path):
    target = stores.writer(tmp_path / 'a', rows=1)
    target.reject('00000000', 'silent')
    with pytest.raises(UserError, match='rejected.tsv'):
        target.finish()
    assert not (tmp_path / 'a').exists()


def test_one_process_at_a_time(tmp_path):
    target = stores.writer(tmp_path / 'a')
    with pytest.raises(UserError, match='another process'):
        stores.writer(tmp_path / 'a')
    target.close()
    stores.writer(tmp_path / 'a').close()


def test_other_settings_do_not_go_on(tmp_path):
    stores.writer(tmp_path / 'a').close()
    with pytest.raises(UserError, match='"keys"'):
        stores.writer(tmp_path / 'a', keys=stores.AUDIO)
    with pytest.raises(UserError, match='"items"'):
        stores.writer(tmp_path / 'a', rows=9)


def test_a_finished_store_is_complete_or_in_the_way(tmp_path):
    stores.make(tmp_path / 'a')
    again = stores.writer(tmp_path / 'a')
    assert again.complete and again.has('00000003') and len(again.finish()) == 8
    for other in (dict(rows=9), dict(rows=7), dict(keys=stores.AUDIO)):
        with pytest.raises(UserError, match='something else'):
            stores.writer(tmp_path / 'a', **other)
    (tmp_path / 'a.facts.json').unlink()
    with pytest.raises(UserError, match='not written by this command'):
        stores.writer(tmp_path / 'a')


def test_state_elsewhere(tmp_path):
    target = stores.writer(tmp_path / 'out' / 'a', state=tmp_path / 'state')
    for number in range(8):
        stores.add(target, number)
    assert not (tmp_path / 'out').exists()
    assert len(target.finish()) == 8 and not list((tmp_path / 'state').iterdir())


@pytest.mark.parametrize('crash_at', range(1, 9))
def test_a_crash_while_finishing(tmp_path, monkeypatch, crash_at):
    """Every step of finishing may be the last one of a process; the next one goes on from there."""
    def fill(path):
        target = stores.writer(path, rows=6)
        for number in (0, 2, 3, 5):
            stores.add(target, number)
        target.reject('00000001', 'silent')
        target.reject('00000004', 'silent')
        return target

    fill(tmp_path / 'whole' / 'a').finish()
    target = fill(tmp_path / 'cut' / 'a')
    with monkeypatch.context() as patched:
        names = ('_move', 'copy_bytes', 'write_atomic', 'describe_keys')
        stores.crash(patched, crash_at, *((store_writer, name) for name in names))
        with pytest.raises(KeyboardInterrupt):
            target.finish()
    resumed = stores.writer(tmp_path / 'cut' / 'a', rows=6)
    assert all(resumed.has(f'{number:08d}') for number in range(6))
    resumed.finish()
    assert digest(tmp_path / 'whole') == digest(tmp_path / 'cut')


SCRIPT = """
import sys, time
from pathlib import Path
from audiocraft.data import store_writer
from data import stores
store_writer.ITEMS_PER_SYNC = 7
target = stores.writer(Path(sys.argv[1]), rows=60)
for number in range(60):
    stores.add(target, number)
    print(number, flush=True)
    time.sleep(.01)
"""


def test_kill_and_resume_is_as_if_never_killed(tmp_path):
    path = tmp_path / 'cut' / 'a'
    env = {**os.environ, 'PYTHONPATH': f'{TESTS.parent}{os.pathsep}{TESTS}'}
    command = [sys.executable, '-c', SCRIPT, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env, text=True) as process:
        for _ in range(20):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    journal = tmp_path / 'cut' / 'a.partial' / 'journal-0.jsonl'
    with open(journal, 'rb+') as file:  # as if it had been killed in the middle of a line
        file.truncate(journal.stat().st_size - 5)
    target = stores.writer(path, rows=60)
    known = [target.has(f'{number:08d}') for number in range(60)]
    assert known == [number < sum(known) for number in range(60)] and 7 <= sum(known) < 59
    for number in range(60):
        stores.add(target, number)
    target.finish()
    stores.make(tmp_path / 'whole' / 'a', rows=60)
    assert digest(tmp_path / 'cut') == digest(tmp_path / 'whole')
