"""One process per folder."""

import multiprocessing
import os

import pytest

from audiocraft.utils.errors import UserError
from audiocraft.utils.lock import XPLock, holder

pytest.importorskip('fcntl')


def _try(folder, sender):
    try:
        with XPLock(folder):
            sender.send('taken')
    except UserError as error:
        sender.send(str(error))


def in_another_process(folder) -> str:
    context = multiprocessing.get_context('fork')
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_fresh_try, args=(str(folder), sender))
    child.start()
    answer = receiver.recv()
    child.join()
    return answer


def _fresh_try(folder, sender):
    from audiocraft.utils import lock
    lock._held.clear()  # a fork knows of the locks of its parent, a new process does not
    _try(folder, sender)


def test_second_process(tmp_path):
    with XPLock(tmp_path):
        answer = in_another_process(tmp_path)
        assert 'already running' in answer and f'process {os.getpid()} on ' in answer and '\n' not in answer
    assert in_another_process(tmp_path) == 'taken'


def test_same_process_may_take_it_twice(tmp_path):
    with XPLock(tmp_path):
        with XPLock(tmp_path):
            pass
        assert 'already running' in in_another_process(tmp_path)


def test_holder(tmp_path):
    assert holder(tmp_path) is None
    with XPLock(tmp_path):
        assert f'process {os.getpid()}' in holder(tmp_path)
    assert holder(tmp_path) is None


def test_leftover_file_of_a_killed_process_is_no_lock(tmp_path):
    (tmp_path / '.lock').write_text('{"pid": 1, "host"')
    assert holder(tmp_path) is None
    with XPLock(tmp_path):
        pass
