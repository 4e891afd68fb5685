"""What a run says."""

import json
import logging
import math

import numpy as np
import pytest
import torch

from audiocraft.utils import logging as ours
from audiocraft.utils.logging import MetricsFile, ProgressLine, jsonable, readable_time, setup_logging


@pytest.fixture(autouse=True)
def root_as_before():
    root = logging.getLogger()
    level = root.level
    yield
    for handler in ours._handlers:
        root.removeHandler(handler)
        handler.close()
    ours._handlers.clear()
    root.setLevel(level)


def test_file_without_escape_codes(tmp_path):
    for _ in range(2):  # a second call replaces the first: no line comes twice
        path = setup_logging(tmp_path, 'solver.log.0', 'info')
    logging.getLogger('x.y').info('\x1b[1;31mred\x1b[0m loss \x1b[K0.5')
    logging.getLogger('x.y').debug('not shown')
    text = path.read_text()
    assert '\x1b' not in text and text.count('red loss 0.5') == 1 and 'not shown' not in text


def test_strict_json():
    value = {'a': math.nan, 'b': torch.tensor(2.), 'c': np.float32(1.5), 'd': None, 'e': [math.inf, 1], 'f': 'x',
             'g': np.arange(2)}
    assert jsonable(value) == {'a': None, 'b': 2., 'c': 1.5, 'd': None, 'e': [None, 1], 'f': 'x', 'g': [0, 1]}


def test_metrics_file(tmp_path):
    file = MetricsFile(tmp_path / 'deep' / 'metrics.jsonl')
    assert file.read() == []
    for update in (1, 2, 3):
        file.append(update=update, loss=math.nan)
    with open(file.path, 'a') as raw:
        raw.write('{"update": 4, "lo')
    assert [entry['update'] for entry in file.read()] == [1, 2, 3]
    file.keep(lambda entry: entry['update'] < 3)
    assert [json.loads(line) for line in file.path.read_text().splitlines()] == [
        {'update': 1, 'loss': None}, {'update': 2, 'loss': None}]


class Clock:
    def __init__(self):
        self.now = 0.

    def __call__(self):
        return self.now


def test_lines(caplog):
    caplog.set_level(logging.INFO)
    clock = Clock()
    line = ProgressLine(logging.getLogger('p'), 'Train', total=6, every=2, start=2, terminal=False, clock=clock)

    def source():
        while True:
            clock.now += 0.1
            yield 1

    data, due = source(), []
    for _ in range(4):
        line.wait(data)
        clock.now += 0.4
        due.append(line.step())
        if due[-1]:
            facts = line.line({'loss': '0.5'})
    assert due == [False, True, False, True]
    assert facts == {'speed': pytest.approx(2.), 'data_wait': pytest.approx(0.2), 'eta': 0.}
    assert caplog.messages[0] == 'Train | 4/6 | 2 it/s | data 20% | eta 0:00:01 | loss 0.5'


def test_bar_only_on_a_terminal(capsys, tmp_path):
    clock = Clock()
    path = setup_logging(tmp_path)
    for terminal in (False, True):
        line = ProgressLine(logging.getLogger('p'), 'Train', total=4, every=0, terminal=terminal, clock=clock)
        for _ in range(4):
            clock.now += 1.
            assert not line.step()
            logging.getLogger('p').info('hello')
        line.close()
        shown = capsys.readouterr().err
        assert ('[####' in shown) == terminal and ('\r' in shown) == terminal
    assert '\r' not in path.read_text() and not ours._bars


def test_unknown_total(caplog):
    caplog.set_level(logging.INFO)
    line = ProgressLine(logging.getLogger('p'), 'Valid', total=None, every=1, terminal=False)
    line.step()
    line.line({})
    assert '1/?' in caplog.text and 'eta ?' in caplog.text


def test_readable_time():
    assert [readable_time(s) for s in (0, 61.9, 3600, math.nan)] == ['0:00:00', '0:01:01', '1:00:00', '?']
