"""ViSQOL is a program of others: here a script stands for it that reads and writes what it does."""

import logging
import shutil
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from audiocraft.data.samples import Clip
from audiocraft.metrics import visqol
from audiocraft.metrics.visqol import Visqol, find_visqol, read_scores

from .sounds import noise

HEAD = f"""\
#!{sys.executable}
import csv, os, sys
args = sys.argv[1:]
def value(name):
    return args[args.index(name) + 1]
pairs = list(csv.DictReader(open(value('--batch_input_csv'))))
def write(scores):
    with open(value('--results_csv'), 'w') as file:
        print('reference,degraded,moslqo,fvnsim0', file=file)
        for pair, score in zip(pairs, scores):
            print(pair['reference'], pair['degraded'], score, 0.5, sep=',', file=file)
"""
# The score tells what the program saw: how alike the files are, their rate, and from where it was run.
GOOD = """
import wave
def read(path):
    with wave.open(path) as file:
        return file.getframerate(), file.getnchannels(), file.readframes(10 ** 9)
scores = []
for pair in pairs:
    a, b = read(pair['reference']), read(pair['degraded'])
    assert a[:2] == b[:2] == ((16000 if '--use_speech_mode' in args else 48000), 1) and len(a[2]) == len(b[2])
    scores.append(4.75 if a == b else 2.25)
write(scores)
"""


@pytest.fixture(autouse=True)
def no_program(monkeypatch, tmp_path):
    monkeypatch.delenv('VISQOL', raising=False)
    monkeypatch.setenv('PATH', str(tmp_path / 'bin'))
    visqol._warn_once.cache_clear()


@pytest.fixture
def program(tmp_path):
    def make(body, path='build/bazel-bin/visqol'):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(HEAD + textwrap.dedent(body))
        file.chmod(0o755)
        return file
    return make


def clip(seed, rate=16_000, channels=1):
    return Clip(id=str(seed), audio=noise(0.3, rate, 0.1, seed).expand(channels, -1), sample_rate=rate)


def scores(metric, made=(1, 2, 3), true=(1, 2, 4)):
    metric.update([clip(seed) for seed in made[:2]], [clip(seed) for seed in true[:2]])
    metric.update([clip(seed) for seed in made[2:]], [clip(seed) for seed in true[2:]])
    return metric.compute()


def test_absent_is_null_with_a_reason_and_one_warning(caplog):
    with caplog.at_level(logging.WARNING):
        results = [scores(Visqol()) for _ in range(2)]
    assert results[0] == results[1] and results[0]['visqol'] is None
    assert 'not installed' in results[0]['visqol_reason'] and '$VISQOL' in results[0]['visqol_reason']
    assert len(caplog.records) == 1


def test_a_wrong_name_is_named(monkeypatch, tmp_path):
    assert f'no program at {tmp_path}/x' in scores(Visqol(bin=f'{tmp_path}/x'))['visqol_reason']
    monkeypatch.setenv('VISQOL', str(tmp_path / 'y'))
    assert f'no program at {tmp_path}/y' in scores(Visqol())['visqol_reason']


@pytest.mark.parametrize('mode', ['audio', 'speech'])
def test_mean_of_the_scores(program, mode):
    metric = Visqol(bin=str(program(GOOD)), mode=mode)
    assert scores(metric) == {'visqol': pytest.approx((4.75 + 4.75 + 2.25) / 3), 'visqol_n': 3.}
    metric.reset()
    metric.update([clip(1), clip(2, 44_100, channels=2)], [None, clip(2, 22_050)])
    assert metric.compute()['visqol_n'] == 1.
    folder = Path(metric.folder.name)
    assert folder.is_dir()
    metric.reset()
    assert not folder.exists() and 'no generated clip' in metric.compute()['visqol_reason']


def test_where_the_program_is_looked_for(program, monkeypatch, tmp_path):
    built = program(GOOD)
    assert find_visqol(built) == find_visqol(built.parent.parent) == built
    monkeypatch.setenv('VISQOL', str(tmp_path / 'build'))
    assert find_visqol() == built
    monkeypatch.delenv('VISQOL')
    installed = program(GOOD, 'bin/visqol')
    assert find_visqol() == installed and scores(Visqol())['visqol_n'] == 3.
    installed.chmod(0o644)
    assert find_visqol(installed) is None


def test_it_is_run_where_its_models_are(program, tmp_path):
    body = "assert os.path.exists('model/m.txt') and args[-2:] == ['--more', '1']; write([3.0] * len(pairs))"
    path = program(body)
    (tmp_path / 'build' / 'model').mkdir()
    (tmp_path / 'build' / 'model' / 'm.txt').touch()
    assert scores(Visqol(bin=str(path), arguments=['--more', '1']))['visqol'] == 3.


@pytest.mark.parametrize('body, reason', [
    ("print('loading'); print('cannot open the model', file=sys.stderr); sys.exit(3)",
     ['ended with 3', 'cannot open the model']),
    ("write([4.0]); print('half way'); sys.exit(1)", ['ended with 1', 'half way']),
    ("print('all is well')", ['wrote no scores', 'all is well']),
    ("write(['nan', '', 'x'])", ['wrote no scores']),
])
def test_failures_are_told_with_the_last_lines(program, caplog, body, reason):
    with caplog.at_level(logging.WARNING):
        results = scores(Visqol(bin=str(program(body))))
    assert results['visqol'] is None and all(part in results['visqol_reason'] for part in reason)
    assert reason[0] in caplog.text


def test_one_that_takes_too_long_is_ended_with_what_it_started(program, tmp_path):
    path = program('')
    path.write_text(f'#!/bin/sh\n/bin/sleep 600 &\necho $! > {tmp_path}/child\necho at work\nwait\n')
    reason = scores(Visqol(bin=str(path), timeout=3.))['visqol_reason']
    assert 'more than 9 s for 3 clips' in reason and 'at work' in reason
    child = Path('/proc') / (tmp_path / 'child').read_text().strip()
    for _ in range(200):
        if not child.exists() or ') Z' in (child / 'stat').read_text():
            return
        time.sleep(0.1)
    raise AssertionError(f'{child} still runs')


def test_what_cannot_be_run_is_told(program):
    path = program('')
    path.write_text('#!/no/such/interpreter\n')
    assert 'cannot be run' in scores(Visqol(bin=str(path)))['visqol_reason']


def test_clips_that_it_leaves_out_are_counted(program, caplog):
    with caplog.at_level(logging.WARNING):
        results = scores(Visqol(bin=str(program("write([4.0, 'nan', 2.0])"))))
    assert results == {'visqol': 3., 'visqol_n': 2.} and '2 of 3' in caplog.text


def test_broken_sound_reaches_it_too(program):
    broken = clip(1)
    broken.audio = broken.audio.clone()
    broken.audio[0, :5] = torch.tensor([float('nan'), float('inf'), -float('inf'), 2., 0.])
    metric = Visqol(bin=str(program(GOOD)))
    metric.update([broken], [clip(1)])
    assert metric.compute() == {'visqol': 2.25, 'visqol_n': 1.}


def test_results_file(tmp_path):
    assert read_scores(tmp_path / 'none.csv') == []
    (tmp_path / 'r.csv').write_text('reference,degraded,moslqo\na,b,4.5\nc,d,inf\ne,f\n')
    assert read_scores(tmp_path / 'r.csv') == [4.5]


def test_modes():
    with pytest.raises(ValueError, match="'audio' or 'speech'"):
        Visqol(mode='music')
    assert shutil.which('visqol') is None
