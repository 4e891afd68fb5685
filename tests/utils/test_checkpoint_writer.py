"""Checkpoints are written behind the back of training: from a copy, one at a time, and no error is lost."""

import threading

import pytest
import torch

from audiocraft.utils import checkpoint_writer
from audiocraft.utils.checkpoint import list_checkpoints, load_latest
from audiocraft.utils.checkpoint_writer import CheckpointWriter, HostCopy
from audiocraft.utils.errors import UserError


@pytest.fixture
def gate(monkeypatch):
    """Writing waits until the gate is opened."""
    gate, genuine = threading.Event(), checkpoint_writer.save_checkpoint

    def save(*args, **kwargs):
        assert gate.wait(30)
        return genuine(*args, **kwargs)
    monkeypatch.setattr(checkpoint_writer, 'save_checkpoint', save)
    yield gate
    gate.set()


def save(writer, update, weights, **state):
    writer.save(update, models={'model': weights}, state={'n': update, **state}, config='a: 1\n', rank_states={0: {}})


def test_training_goes_on_and_the_copy_does_not(tmp_path, gate):
    writer, weights, history = CheckpointWriter(tmp_path), {'w': torch.zeros(4)}, [{'loss': 1.}]
    save(writer, 1, weights, history=history)
    weights['w'] += 1
    history.append({'loss': 0.5})
    order = []
    writer.afterwards(lambda: order.append(len(list_checkpoints(tmp_path))))
    assert order == [] and not list_checkpoints(tmp_path)
    gate.set()
    writer.wait()
    found = load_latest(tmp_path)
    assert found.models['model']['w'].tolist() == [0.] * 4 and found.state['history'] == [{'loss': 1.}]
    assert order == [1], 'after the checkpoint was on disk'
    writer.afterwards(lambda: order.append('now'))
    assert order == [1, 'now']


def test_one_at_a_time(tmp_path, gate):
    writer = CheckpointWriter(tmp_path, keep_last=5)
    save(writer, 1, {'w': torch.ones(2)})
    first = writer._thread
    threading.Timer(0.2, gate.set).start()
    save(writer, 2, {'w': torch.ones(2)})
    assert not first.is_alive(), 'the second waits for the first'
    writer.wait()
    assert [path.name for path in list_checkpoints(tmp_path)] == ['1', '2']


@pytest.mark.parametrize('method', ['check', 'wait', 'save', 'afterwards'])
def test_an_error_is_raised_by_the_next_call(tmp_path, method):
    (tmp_path / 'file').touch()
    writer = CheckpointWriter(tmp_path / 'file')
    save(writer, 1, {'w': torch.ones(2)})
    writer._thread.join()
    with pytest.raises(UserError, match='Cannot write the checkpoint'):
        if method == 'save':
            save(writer, 2, {'w': torch.ones(2)})
        elif method == 'afterwards':
            writer.afterwards(lambda: None)
        else:
            getattr(writer, method)()
    writer.check()


def test_at_the_end_an_error_is_logged(tmp_path, caplog):
    (tmp_path / 'file').touch()
    writer = CheckpointWriter(tmp_path / 'file')
    save(writer, 1, {'w': torch.ones(2)})
    writer.finish()
    assert 'Cannot write the checkpoint' in caplog.text


def test_without_a_thread(tmp_path):
    writer = CheckpointWriter(tmp_path, asynchronous=False)
    save(writer, 3, {'w': torch.ones(2)})
    assert load_latest(tmp_path).update == 3


def test_copies_reuse_their_memory_and_keep_ties():
    copy, shared = HostCopy(), torch.arange(3.)
    tree = {'a': shared, 'b': [shared, torch.zeros(2, dtype=torch.int64)], 'c': ('text', 3, None)}
    first = copy(tree)
    assert first['a'] is first['b'][0] and first['c'] == ('text', 3, None)
    place = first['a'].data_ptr()
    shared += 1
    second = copy(tree)
    assert second['a'].data_ptr() == place and second['a'].tolist() == [1., 2., 3.]
    other = copy({'a': torch.zeros(5)})
    assert other['a'].shape == (5,)
