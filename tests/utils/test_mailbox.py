"""Commands by files."""

import logging
import os
import threading
import time

import pytest

from audiocraft.utils import mailbox
from audiocraft.utils.errors import UserError
from audiocraft.utils.mailbox import Mailbox, send


def post(folder, text, when=1):
    (folder / 'control').mkdir(exist_ok=True)
    number = f'{when:012x}'[-12:]
    (folder / 'control' / f'{when}-{number}.cmd').write_bytes(text if isinstance(text, bytes) else text.encode())
    return number


def files(folder):
    return sorted(os.listdir(folder / 'control'))


class Answering(threading.Thread):
    """A process that answers each command with its text, in capitals."""

    def __init__(self, folder):
        super().__init__(daemon=True)
        self.box, self.ended, self.seen = Mailbox(folder, interval=0.), threading.Event(), []

    def run(self):
        while not self.ended.wait(0.01):
            for number, text in self.box.take():
                self.seen.append(text)
                self.box.answer(number, text.upper())

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc_info):
        self.ended.set()
        self.join()


def test_question_and_answer(tmp_path):
    with Answering(tmp_path) as other:
        assert send(tmp_path, 'save', wait=60.) == 'SAVE'
        assert send(tmp_path, 'é' * 2000, wait=60.) == 'É' * 2000
    assert other.seen == ['save', 'é' * 2000] and files(tmp_path) == []


def test_many_senders(tmp_path):
    answers = {}
    with Answering(tmp_path) as other:
        senders = [threading.Thread(target=lambda text=f'c{i}': answers.update({text: send(tmp_path, text, wait=60.)}))
                   for i in range(8)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
    assert answers == {f'c{i}': f'C{i}' for i in range(8)} and len(other.seen) == 8 and files(tmp_path) == []


def test_nobody_answers(tmp_path):
    assert send(tmp_path, 'save', wait=0.) is None
    assert files(tmp_path) == [] and Mailbox(tmp_path).take() == []


def test_taken_but_not_answered(tmp_path, monkeypatch):
    box, wait, answers = Mailbox(tmp_path, interval=0.), mailbox._wait, ['', 'done']

    def taken_meanwhile(path, seconds):
        for number, _ in box.take():
            box.answer(number, answers.pop()) if answers[-1] else None
            return None
        return wait(path, seconds)
    monkeypatch.setattr(mailbox, '_wait', taken_meanwhile)
    assert send(tmp_path, 'save') == 'done'  # the answer came at the last moment
    assert send(tmp_path, 'save') == 'error: the command was taken, but not answered yet'


def test_wrong_sending(tmp_path):
    with pytest.raises(UserError, match='no XP folder'):
        send(tmp_path / 'gone', 'save')
    with pytest.raises(UserError, match='4096 bytes'):
        send(tmp_path, 'é' * 2049)
    (tmp_path / 'control').touch()
    with pytest.raises(UserError, match='Cannot write'):
        send(tmp_path, 'save')
    assert Mailbox(tmp_path).take() == []


def test_oldest_first_and_once(tmp_path):
    for when in (20, 3, 100):
        post(tmp_path, f'at {when}', when=10 ** 17 + when)
    box = Mailbox(tmp_path, interval=0.)
    assert [text for _, text in box.take()] == ['at 3', 'at 20', 'at 100']
    assert box.take() == [] and files(tmp_path) == []


def test_looks_at_most_once_per_interval(tmp_path, monkeypatch):
    now, looks = [0.], []
    listdir = os.listdir
    monkeypatch.setattr(mailbox.os, 'listdir', lambda path: looks.append(path) or listdir(path))
    box = Mailbox(tmp_path, clock=lambda: now[0])
    for tenth in range(35):
        now[0] = tenth / 10
        box.take()
    assert len(looks) == 4


def test_only_small_regular_files_of_ours(tmp_path, caplog):
    long, raw = post(tmp_path, 'x' * 5000, when=1), post(tmp_path, b'\xff\x00save', when=2)
    target = tmp_path / 'secret'
    target.write_text('not a command')
    (tmp_path / 'control' / '3-000000000003.cmd').symlink_to(target)
    (tmp_path / 'control' / '4-000000000004.cmd').mkdir()
    if hasattr(os, 'mkfifo'):
        os.mkfifo(tmp_path / 'control' / '5-000000000005.cmd')
    for name in ('6-000000000006.cmd.tmp', '.7-000000000007.cmd', 'x.cmd', '8-..cmd'):
        (tmp_path / 'control' / name).touch()
    box = Mailbox(tmp_path, interval=0.)
    assert box.take() == [(raw, '\ufffd\0save')]
    assert '4096 bytes' in (tmp_path / 'control' / f'{long}.answer').read_text()
    assert 'regular file' in (tmp_path / 'control' / '000000000003.answer').read_text()
    assert target.exists() and caplog.text.count('was dropped') == 2 + hasattr(os, 'mkfifo')
    assert box.take() == []


@pytest.mark.parametrize('number', ['', '../../x', '000000000001/../x', '0000000000010', 'XYZXYZXYZXYZ'])
def test_answers_stay_in_the_folder(tmp_path, number):
    (tmp_path / 'control').mkdir()
    Mailbox(tmp_path).answer(number, 'text')
    assert files(tmp_path) == [] and os.listdir(tmp_path) == ['control']


def test_answer_to_a_folder_that_cannot_be_written(tmp_path, caplog):
    (tmp_path / 'control').touch()
    Mailbox(tmp_path).answer('0' * 12, 'text')
    assert 'could not be written' in caplog.text


def test_clear_drops_what_is_stale(tmp_path, caplog):
    number = post(tmp_path, 'quit')
    with caplog.at_level(logging.WARNING):
        Mailbox(tmp_path).clear()
    assert "'quit' was dropped: it came before the run" in caplog.text
    assert files(tmp_path) == [f'{number}.answer']
    assert (tmp_path / 'control' / f'{number}.answer').read_text().startswith('error: dropped')


def test_old_answers_are_removed(tmp_path):
    box = Mailbox(tmp_path)
    box.answer('0' * 12, 'old')
    box.answer('1' * 12, 'new')
    past = time.time() - 7200
    os.utime(tmp_path / 'control' / f'{"0" * 12}.answer', (past, past))
    box.answer('2' * 12, 'newer')
    assert files(tmp_path) == [f'{"1" * 12}.answer', f'{"2" * 12}.answer']
    Mailbox(tmp_path / 'nowhere').clear()
