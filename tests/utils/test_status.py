"""How far a run is, for those who look from outside."""

import json
import logging
import os
import socket
import subprocess as sp
import sys
import time

import pytest

from audiocraft.utils import status
from audiocraft.utils.lock import XPLock
from audiocraft.utils.status import read_status, write_status

FACTS = {'epoch': 3, 'epochs': 10, 'update': 6000, 'world_size': 2}
BEST = {'metric': 'loss', 'score': 0.5, 'update': 4000, 'epoch': 2}


def rewrite(folder, **changes):
    path = folder / status.NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def ended():
    """The id of a process that is no more."""
    process = sp.Popen([sys.executable, '-c', ''])
    process.wait()
    return process.pid


@pytest.mark.parametrize('state', status.STATES)
def test_written_and_read(tmp_path, state):
    write_status(tmp_path, state=state, best=BEST, stage='train', **FACTS)
    found = read_status(tmp_path)
    assert found.pop('host') == socket.gethostname() and found.pop('pid') == os.getpid()
    assert abs(found.pop('time') - time.time()) < 600
    assert found == {'state': state, 'best': BEST, 'stage': 'train', **FACTS}
    assert os.listdir(tmp_path) == [status.NAME]


def test_unknown_state(tmp_path):
    with pytest.raises(ValueError, match='sleeping'):
        write_status(tmp_path, state='sleeping', best=None, **FACTS)


def test_cannot_be_written(tmp_path, caplog):
    (tmp_path / 'file').touch()
    with caplog.at_level(logging.WARNING):
        write_status(tmp_path / 'file', state='running', best=None, **FACTS)
    assert 'could not be written' in caplog.text


def test_scores_that_are_not_finite_are_none(tmp_path):
    write_status(tmp_path, state='running', best={**BEST, 'score': float('nan')}, **FACTS)
    assert read_status(tmp_path)['best'] is None


@pytest.mark.parametrize('content', ['', '{"state": "run', '[]', 'null', '3', '{}', '{"state": "dead"}', '\0\xff',
                                     '{"state": ["running"]}', '[' * 100_000])
def test_damaged_files(tmp_path, content):
    (tmp_path / status.NAME).write_text(content)
    assert read_status(tmp_path) is None


def test_missing_fields(tmp_path):
    (tmp_path / status.NAME).write_text('{"state": "finished", "epoch": "x", "best": {"score": "low"}}')
    assert read_status(tmp_path) == {'state': 'finished', 'epoch': 0, 'epochs': 0, 'update': 0, 'best': None}
    assert read_status(tmp_path / 'nowhere') is None


def test_killed_process_is_dead(tmp_path, ended):
    write_status(tmp_path, state='running', best=None, **FACTS)
    assert read_status(tmp_path)['state'] == 'running'
    for pid, state in [(ended, 'dead'), (10 ** 30, 'dead'), (1, 'running'), ('x', 'running'), (None, 'running')]:
        rewrite(tmp_path, pid=pid)
        assert read_status(tmp_path)['state'] == state
    rewrite(tmp_path, pid=ended, host='elsewhere')
    assert read_status(tmp_path)['state'] == 'running'  # nobody here can know
    rewrite(tmp_path, state='stopped', host=socket.gethostname())
    assert read_status(tmp_path)['state'] == 'stopped'


def test_held_lock_is_not_dead(tmp_path, ended):
    pytest.importorskip('fcntl')
    write_status(tmp_path, state='running', best=None, **FACTS)
    rewrite(tmp_path, pid=ended)
    with XPLock(tmp_path):
        assert read_status(tmp_path)['state'] == 'running'
    assert read_status(tmp_path)['state'] == 'dead'
