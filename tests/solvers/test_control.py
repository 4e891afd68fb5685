"""Commands to a run: what they mean, where they come from, when they are due."""

import json
import logging
import os
import random
import subprocess as sp
import sys
import threading
import time
from pathlib import Path

import pytest

from audiocraft.solvers.control import COMMANDS, Command, Control, parse
from audiocraft.utils import mailbox, terminal
from audiocraft.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize('text, name, value, update, written', [
    ('save', 'save', None, None, 'save'),
    ('  SAVE \n', 'save', None, None, 'save'),
    ('lr', 'lr', None, None, 'lr'),
    ('lr 1e-4', 'lr', 1e-4, None, 'lr 1e-4'),
    ('lr\t.5', 'lr', .5, None, 'lr .5'),
    ('lr +3.E-2@12', 'lr', .03, 12, 'lr +3.E-2@12'),
    ('save@5000', 'save', None, 5000, 'save@5000'),
    ('quit @ 100', 'quit', None, 100, 'quit@100'),
    ('quit@0100', 'quit', None, 100, 'quit@100'),
    *[(name, name, None, None, name) for name in COMMANDS],
])
def test_commands(text, name, value, update, written):
    assert parse(text) == Command(name, value, update, written)
    assert parse(written) == parse(text)


@pytest.mark.parametrize('text, said', [
    ('', 'no command'), ('   ', 'no command'), ('sav', 'did you mean "save"?'), ('qiut@3', 'did you mean "quit"?'),
    ('destroy', 'save, quit, lr'), ('@5', 'no command'), ('save now', 'takes no value'), ('save\nquit', 'no value'),
    ('lr nan', 'finite number above 0'), ('lr inf', 'finite'), ('lr -1e-4', 'above 0'), ('lr 0', 'above 0'),
    ('lr 1e400', 'finite'), ('lr 1e-400', 'above 0'), ('lr 1_0', 'finite'), ('lr ١', 'finite'), ('lr x', 'finite'),
    ('lr 1e-4 2', 'one number'), ('lr 1e-4@x', 'the number of an update after @'), ('lr 1e-4@', 'after @'),
    ('save@-1', 'after @'), ('save@1.5', 'after @'), ('save@1@2', 'after @'), ('save@' + '9' * 16, 'after @'),
    ('save@١', 'after @'), ('save' + ' ' * 300, 'no command'), ('x' * 100_000, 'no command'),
    ('\x1b[31msave\x07', 'no command'), ('save\0', 'no command'),
])
def test_wrong_commands_are_one_short_line(text, said):
    with pytest.raises(UserError) as caught:
        parse(text)
    message = str(caught.value)
    assert said in message and len(message) < 250 and message.isprintable()


def test_random_text_is_a_command_or_an_error():
    draw = random.Random(0)
    alphabet = ['save', 'lr', 'quit', '@', ' ', '1e-4', '-', '.', 'nan', '\n', '\0', 'é', '\ufffd', '9' * 30, '"', '\\']
    for _ in range(3000):
        text = ''.join(draw.choices(alphabet, k=draw.randrange(8)))
        try:
            command = parse(text)
        except UserError:
            continue
        assert command.name in COMMANDS and (command.value is None or 0 < command.value < float('inf'))


@pytest.fixture
def controls(tmp_path, caplog):
    """The controls of two ranks; the first listens."""
    caplog.set_level(logging.INFO)
    pair = [Control(tmp_path, listen=rank == 0) for rank in range(2)]
    pair[0]._mailbox.interval = 0.
    return pair


def typed(*lines):
    return [json.dumps(['', line]) for line in lines]


def names(commands):
    return [command.text for command in commands]


def accept(controls, texts, update):
    """Accept on both ranks, which have to agree."""
    first, second = (one.accept(texts, update) for one in controls)
    assert first == second and controls[0].pending == controls[1].pending
    assert controls[0].state_dict() == controls[1].state_dict()
    return first


def test_commands_wait_for_their_update(controls, caplog):
    assert names(accept(controls, typed('save@5', 'quit@3', 'lr 1e-4', 'eval@5', 'time@2'), 2)) == ['lr 1e-4', 'time@2']
    assert controls[0].state_dict() == ['quit@3', 'save@5', 'eval@5']
    assert [controls[1].due(update) for update in (2, 3, 4)] == [False, True, True]
    assert names(accept(controls, typed('lr 2e-4'), 3)) == ['quit@3', 'lr 2e-4']
    assert names(accept(controls, [], 4)) == []
    assert names(accept(controls, [], 7)) == ['save@5', 'eval@5']
    assert not controls[0].due(10 ** 9) and accept(controls, [], 8) == []
    assert '> save@5: noted, for when 5 updates are done' in caplog.text


def test_past_updates_are_refused(controls, caplog):
    assert accept(controls, typed('save@4'), 5) == [] and controls[0].pending == []
    assert '> save@4: error: update 4 is past, 5 updates are done.' in caplog.text


def test_waiting_commands_are_kept(controls, tmp_path):
    accept(controls, typed('save@9', 'lr 1e-4@7'), 0)
    kept = json.loads(json.dumps(controls[0].state_dict()))
    other = Control(tmp_path, listen=False)
    other.load_state_dict(kept)
    assert other.pending == controls[0].pending and other.due(7)
    assert other.accept([], 8)[0].value == 1e-4


def test_help_and_errors_are_answered_at_once(controls, caplog):
    assert accept(controls, typed('help', 'hlep', 'lr nan'), 0) == []
    assert caplog.text.count('Commands:') == 1 and all(text in caplog.text for text in COMMANDS.values())
    assert '> "hlep": error: There is no command "hlep": did you mean "help"?' in caplog.text
    assert caplog.text.count('a learning rate is') == 1  # the rank that does not listen says nothing


def send(folder, text, answers):
    thread = threading.Thread(target=lambda: answers.update({text: mailbox.send(folder, text, wait=60.)}), daemon=True)
    thread.start()
    return thread


def collect(listening, count):
    texts = []
    while len(texts) < count:
        texts += listening.poll()
        time.sleep(0.01)
    return texts


def test_two_sources_at_once(controls, tmp_path, caplog):
    answers: dict[str, str] = {}
    threads = [send(tmp_path, text, answers) for text in ('lr 1e-4', 'quit@50', 'lr -1', '', '\0' * 300)]
    for line in ('save', '   ', '\n', 'x' * 500):
        controls[0]._typed.put(line)
    texts = collect(controls[0], 7)
    assert all(text.isascii() for text in texts) and controls[1].poll() == []
    due = accept(controls, texts, 10)
    assert sorted(names(due)) == ['lr 1e-4', 'save'] and controls[0].state_dict() == ['quit@50']
    for command in due:
        for one in controls:
            one.answer(command, f'did {command.name}')
    for thread in threads:
        thread.join()
    assert answers.pop('lr 1e-4') == 'did lr' and answers.pop('quit@50').startswith('noted')
    assert len(answers) == 3 and all(text.startswith('error: ') for text in answers.values())
    assert caplog.text.count('did save') == caplog.text.count('did lr') == 1
    # The sender of a command that waited has gone by the time it is due.
    (quit,) = accept(controls, [], 50)
    controls[0].answer(quit, 'did quit')
    assert os.listdir(tmp_path / 'control') == []


def test_random_mail_never_raises(controls, tmp_path, caplog):
    draw = random.Random(1)
    (tmp_path / 'control').mkdir()
    for index in range(60):
        (tmp_path / 'control' / f'{index}-{index:012x}.cmd').write_bytes(draw.randbytes(draw.choice([0, 5, 300, 6000])))
    texts = controls[0].poll()
    assert accept(controls, texts, 0) == []
    answers = list((tmp_path / 'control').iterdir())
    assert len(answers) == 60 and all(path.read_text().startswith('error: ') for path in answers)
    assert all(record.getMessage().isprintable() for record in caplog.records)


def test_stale_and_late_mail_is_refused(controls, tmp_path):
    (tmp_path / 'control').mkdir()
    (tmp_path / 'control' / '1-000000000001.cmd').write_text('quit')
    with controls[0], controls[1]:
        assert controls[0].poll() == []
        (tmp_path / 'control' / '2-000000000002.cmd').write_text('quit')
    texts = [(tmp_path / 'control' / f'00000000000{number}.answer').read_text() for number in (1, 2)]
    assert texts == ['error: dropped, it came before the run', 'error: dropped, the run has stopped']


def test_the_reader_does_not_fill_the_memory(controls, monkeypatch):
    monkeypatch.setattr(terminal, 'has_input', lambda: True)
    endless = lambda stop: iter(lambda: None if stop.is_set() else 'save', None)  # noqa: E731
    monkeypatch.setattr(terminal, 'lines_of_terminal', endless)
    with controls[0], controls[1]:
        assert controls[1]._reader is None
        assert set(collect(controls[0], 150)) == set(typed('save'))
        reader = controls[0]._reader
    reader.join(timeout=60)
    assert not reader.is_alive()


def test_lines_of_a_pipe(controls, monkeypatch):
    read, write = os.pipe()
    with os.fdopen(read) as stdin, os.fdopen(write, 'wb') as other:
        monkeypatch.setattr(sys, 'stdin', stdin)
        with controls[0]:
            assert controls[0]._reader is None  # neither a terminal nor told to
        monkeypatch.setenv(terminal.VARIABLE, '1')
        with controls[0]:
            other.write(b'save\n\n' + b'\xff' * 9000 + b'\nlr 1e-4\n')
            other.flush()
            assert names(accept(controls, collect(controls[0], 3), 0)) == ['save', 'lr 1e-4']


def test_light_to_import():
    code = 'import sys, audiocraft.solvers.control; print(sorted(sys.modules))'
    out = sp.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert all(f"'{name}'" not in out for name in ('torch', 'numpy', 'hydra', 'omegaconf', 'dora'))
