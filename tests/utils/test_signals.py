"""Signals set a flag, and handlers are put back."""

import os
import signal
import threading

import pytest

from audiocraft.utils.signals import StopFlag


@pytest.mark.parametrize('name, code', [('SIGTERM', 143), ('SIGINT', 130), ('SIGUSR1', 0), ('SIGUSR2', 0),
                                        ('SIGHUP', 0)])
def test_flag_and_exit_code(name, code):
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with StopFlag() as flag:
            assert flag.requested is None
            os.kill(os.getpid(), number)
            assert flag.requested == name and flag.exit_code == code
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_first_request_counts():
    flag = StopFlag()
    flag.request('SIGUSR1')
    flag.request('SIGTERM')
    assert flag.exit_code == 0


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopFlag() as flag:
            os.kill(os.getpid(), signal.SIGHUP)
            assert flag.requested is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_second_ctrl_c_ends_the_process():
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with StopFlag():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGINT


def test_outside_of_the_main_thread():
    seen = []

    def use():
        with StopFlag() as flag:
            seen.append(flag.previous)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [{}]
