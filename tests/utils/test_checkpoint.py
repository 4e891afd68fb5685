"""Checkpoints as files: what they accept, keep, refuse and survive."""

import collections
import json
import logging
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from audiocraft.utils import checkpoint
from audiocraft.utils.checkpoint import (
    list_checkpoints,
    load_latest,
    plain_state,
    read_checkpoint,
    read_tensors,
    save_checkpoint,
    write_tensors,
)
from audiocraft.utils.errors import UserError


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    monkeypatch.setattr(os, 'fsync', lambda descriptor: None)


def save(folder: Path, update: int, **kwargs):
    kwargs = {'models': {'model': {'w': torch.full((3,), float(update))}}, 'state': {'update': update}, **kwargs}
    return save_checkpoint(folder, update, **kwargs)


def test_there_and_back(tmp_path):
    ranks = {0: {'rng': torch.get_rng_state()}, 3: {'python': random.getstate()}}
    path = save(tmp_path, 12, config='seed: 1\n', rank_states=ranks, models={'model': {'w': torch.ones(2)},
                                                                           'best.critic': {'b': torch.zeros(1)}})
    found = read_checkpoint(path)
    assert path == tmp_path / '12' and found.update == 12 and found.config == 'seed: 1\n'
    assert set(found.models) == {'model', 'best.critic'} and set(found.rank_states) == {0, 3}
    assert torch.equal(found.rank_states[0]['rng'], torch.get_rng_state())
    assert set(read_checkpoint(path, names=['model']).models) == {'model'}


def test_states_become_plain():
    value = {'a': np.float32(1.5), 'b': np.arange(3), 'c': Path('x'), 'd': collections.defaultdict(list, k=[1]),
             'e': (torch.ones(2), None, {3}), 5: collections.OrderedDict(z=1)}
    plain = plain_state(value)
    assert plain['a'] == 1.5 and type(plain['a']) is float and type(plain['d']) is dict and plain['c'] == 'x'
    assert plain['b'].tolist() == [0, 1, 2] and plain[5] == {'z': 1}


def test_what_is_not_plain_is_named(tmp_path):
    with pytest.raises(TypeError, match=r'state.optimizer\[1\].hook is a .*: a checkpoint holds'):
        save(tmp_path, 1, state={'optimizer': [0, {'hook': lambda: None}]})
    assert load_latest(tmp_path) is None


def test_a_view_is_saved_without_what_is_around_it(tmp_path):
    big = torch.zeros(100000)
    path = save(tmp_path, 1, state={'x': big[:2]}, models={'model': {'w': big[5:7]}})
    assert sum(file.stat().st_size for file in path.iterdir()) < 10000


def test_tied_weights(tmp_path):
    weight = torch.rand(3, 2)
    state = {'a': weight, 'b': weight, 'c': weight.t(), 'd': weight[:2]}
    write_tensors(tmp_path / 'x.safetensors', state)
    found = read_tensors(tmp_path / 'x.safetensors')
    assert found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)


def test_what_is_kept(tmp_path):
    for update in range(1, 9):
        save(tmp_path, update, keep_last=2, keep_every=3)
    assert [path.name for path in list_checkpoints(tmp_path)] == ['3', '6', '7', '8']
    save(tmp_path, 9)
    assert len(list_checkpoints(tmp_path)) == 5


def test_newest_by_number(tmp_path):
    for update in (9, 100, 20):
        save(tmp_path, update)
    assert load_latest(tmp_path).update == 100


def test_the_same_update_again(tmp_path):
    save(tmp_path, 5, state={'n': 1})
    save(tmp_path, 5, state={'n': 2})
    assert load_latest(tmp_path).state['n'] == 2 and [p.name for p in tmp_path.iterdir()] == ['5']


def test_nothing_there(tmp_path):
    assert load_latest(tmp_path / 'nowhere') is None and load_latest(tmp_path) is None
    (tmp_path / '.tmp-4-12-abc').mkdir()  # a first save that was killed: nothing had been promised
    assert load_latest(tmp_path) is None


def test_reading_somebody_elses_folder_changes_nothing(tmp_path):
    save(tmp_path, 1)
    (save(tmp_path, 2) / 'state.pt').unlink()
    before = sorted(tmp_path.rglob('*'))
    assert load_latest(tmp_path, set_aside=False).update == 1
    assert sorted(tmp_path.rglob('*')) == before
    assert load_latest(tmp_path).update == 1
    assert (tmp_path / '2.corrupt').is_dir()


def test_any_flipped_byte_is_seen(tmp_path):
    path = save(tmp_path, 1)
    dice = random.Random(0)
    for file in path.iterdir():
        if file.name == 'COMMIT':
            continue
        whole = file.read_bytes()
        for _ in range(3):
            damaged = bytearray(whole)
            if not damaged:
                continue
            damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
            file.write_bytes(bytes(damaged))
            with pytest.raises(UserError, match=file.name):
                read_checkpoint(path)
        file.write_bytes(whole)
    read_checkpoint(path)


def test_all_damaged(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    for update in (1, 2):
        (save(tmp_path, update) / 'COMMIT').unlink()
    with pytest.raises(UserError, match='none is whole.*dora run --clear'):
        load_latest(tmp_path)
    assert caplog.text.count('Damaged checkpoint') == 2
    with pytest.raises(UserError, match='none is whole'):
        load_latest(tmp_path)


def test_a_newer_format_is_not_called_damaged(tmp_path):
    path = save(tmp_path, 1)
    commit = json.loads((path / 'COMMIT').read_text())
    (path / 'COMMIT').write_text(json.dumps({**commit, 'version': 99}))
    with pytest.raises(UserError, match='newer version'):
        load_latest(tmp_path)
    assert path.is_dir()


def test_a_pickle_is_not_run(tmp_path, monkeypatch):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / 'hacked'),))

    path = save(tmp_path, 1)
    torch.save({'x': Evil()}, path / 'state.pt')
    (path / 'COMMIT').unlink()
    checkpoint._commit(path, 1)
    with pytest.raises(UserError, match='state.pt: unreadable'):
        read_checkpoint(path)
    assert not (tmp_path / 'hacked').exists()


def test_disk_full(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(checkpoint, 'fsync_file', full)
    with pytest.raises(UserError, match='Cannot write the checkpoint .*No space left on device.* untouched'):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ['1'] and load_latest(tmp_path).update == 1
