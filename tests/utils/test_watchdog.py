"""A run that hangs says where, and ends."""

import os
import subprocess as sp
import sys
from pathlib import Path

import pytest

from audiocraft.utils.errors import HUNG
from audiocraft.utils.watchdog import Watchdog

ROOT = Path(__file__).resolve().parents[2]
BEGIN = """
import ctypes, os, sys, threading, time
from audiocraft.utils import watchdog
watchdog.GRACE = 0.5
dog = watchdog.Watchdog(sys.argv[1], 3, TIMEOUT)
def stuck_here():
    time.sleep(600)
"""


def start(folder, code, timeout=0.5, **kwargs):
    text = BEGIN.replace('TIMEOUT', str(timeout)) + code
    return sp.Popen([sys.executable, '-c', text, str(folder)], cwd=ROOT, stdin=sp.DEVNULL, text=True, **kwargs)


def stacks(folder):
    return (folder / 'stacks.3.log').read_text()


def test_a_hang_ends_with_the_stacks(tmp_path):
    (tmp_path / 'stacks.3.log').write_text('of a run before\n')
    code = ('threading.Thread(target=stuck_here, daemon=True).start()\n'
            'with dog:\n    dog.beat("update 12")\n    stuck_here()')
    process = start(tmp_path, code, stderr=sp.PIPE)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == HUNG
    for text in (stacks(tmp_path), said):
        assert text.count('stuck_here') == 2 and 'most recent call first' in text
        assert 'Rank 3: nothing has moved for 0.5 s, the last was "update 12".' in text
    assert stacks(tmp_path).startswith('of a run before\n\n== 20')


def test_busy_main_thread(tmp_path):
    code = 'def spin():\n    while True: sum(range(1000))\nwith dog:\n    dog.beat("spin")\n    spin()'
    assert start(tmp_path, code, stderr=sp.DEVNULL).wait(timeout=120) == HUNG
    assert 'in spin' in stacks(tmp_path)


def test_c_code_that_keeps_the_interpreter(tmp_path):
    code = 'def keep():\n    ctypes.PyDLL(None).sleep(600)\nwith dog:\n    dog.beat("keep")\n    keep()'
    assert start(tmp_path, code, stderr=sp.DEVNULL).wait(timeout=120) == 1
    assert 'in keep' in stacks(tmp_path)


def test_a_full_pipe_is_no_reason_to_stay(tmp_path):
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        while True:
            os.write(write, b'x' * 4096)
    except BlockingIOError:
        os.set_blocking(write, True)
    process = start(tmp_path, 'with dog:\n    dog.beat("print")\n    os.write(2, b"y" * 99999)', stderr=write)
    assert process.wait(timeout=120) == HUNG
    assert 'the last was "print"' in stacks(tmp_path)
    os.close(read)
    os.close(write)


@pytest.fixture
def dog(tmp_path):
    """A watchdog of 100 s whose time the test tells; its thread looks at another one."""
    dog = Watchdog(tmp_path, 0, 100)
    dog._file = open(os.devnull, 'ab')
    yield dog
    dog.pause()
    dog._file.close()


def hangs(dog, *times):
    return [dog._is_hanging(now) for now in times].index(True)


def test_the_clock_starts_with_the_first_beat(dog):
    assert not any(dog._is_hanging(now) for now in range(1000))
    dog.beat('x')
    assert hangs(dog, *range(1000, 2000)) == 100


def test_beats_and_pauses_stop_the_clock(dog):
    for now in range(1000):
        if now % 90 == 0:
            dog.beat('x')
        assert not dog._is_hanging(now)
    dog.pause()
    assert not any(dog._is_hanging(now) for now in range(1000, 2000))
    dog.beat('x')
    assert hangs(dog, *range(2000, 3000)) == 100


def test_a_process_that_was_stopped_for_a_while_does_not_hang(dog):
    dog.beat('x')
    assert not dog._is_hanging(1) and not dog._is_hanging(100_000) and not dog._is_hanging(100_001)
    assert hangs(dog, *range(100_002, 100_200)) == 93


def test_it_ends_with_its_context(tmp_path):
    code = 'with dog:\n    dog.beat("x")\nwith dog:\n    dog.beat("x")\n    dog.pause()\ntime.sleep(1.5)'
    assert start(tmp_path, code).wait(timeout=120) == 0
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('timeout', [None, 0])
def test_nothing_is_watched(tmp_path, timeout):
    with Watchdog(tmp_path, 0, timeout) as dog:
        dog.beat('x')
        dog.pause()
        assert dog._thread is None
    dog.beat('after the end')
    assert os.listdir(tmp_path) == []


def test_beats_are_cheap(tmp_path):
    import faulthandler
    before = faulthandler.dump_traceback_later
    calls = []
    faulthandler.dump_traceback_later = lambda *args, **kwargs: calls.append(args)
    try:
        with Watchdog(tmp_path, 0, 3600) as dog:
            for _ in range(1000):
                dog.beat('x')
    finally:
        faulthandler.dump_traceback_later = before
    assert 1 <= len(calls) < 100 and calls[0] == (5400.,)
