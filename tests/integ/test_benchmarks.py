"""The benchmarks run (docs/STORES.md runs that of the loader). What they measure is no matter of tests."""

import re
import subprocess as sp
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integ

ROOT = Path(__file__).resolve().parents[2]


def run(folder, name, *args):
    """What a benchmark prints; it leaves no files behind."""
    done = sp.run([sys.executable, ROOT / 'benchmarks' / f'{name}.py', *args], cwd=folder, text=True,
                  stdout=sp.PIPE, stderr=sp.STDOUT, stdin=sp.DEVNULL, timeout=600)
    assert done.returncode == 0, done.stdout
    assert not list(folder.iterdir())
    return done.stdout


def test_solver(tmp_path):
    output = run(tmp_path, 'solver', '--updates', '2', '--rounds', '2', '--seconds', '0', '--batch_size', '2')
    assert 'MMAudio of ' in output and output.count('us per update') == 4
    assert re.search(r'overhead of the solver: -?\d+ us per update, ratio \d+\.\d+ \(medians of [23] rounds', output)


def test_audio(tmp_path):
    output = run(tmp_path, 'audio', '--short')
    assert output.count('soundfile alone') == 2 and 'Resampling a second' in output


def test_compression(tmp_path):
    output = run(tmp_path, 'compression', '--short')
    assert 'discriminators: update' in output and len(re.findall(r'[\d.]+ times real time', output)) == 2


def test_processes(tmp_path):
    output = run(tmp_path, 'processes', '--millions', '1', '--rounds', '1', '--updates', '1')
    assert 'with a thread that writes: ratio' in output and len(re.findall(r'distrib=\w+: ratio [\d.]+', output)) == 3


def test_grid(tmp_path):
    output = run(tmp_path, 'grid', '--xps', '3')
    assert 'The signatures are the same.' in output and 'Dora/ours' in output


def test_mmaudio(tmp_path):
    pictures = tmp_path.with_name(f'{tmp_path.name}-profiles')
    output = run(tmp_path, 'mmaudio', '--short', '--rounds', '1', '--profile', str(pictures))
    assert (pictures / 'small_16k.png').stat().st_size > 5000
    assert 'sound [1, 1, 16000]' in output and 'bfloat16/float32:' in output
    assert 'guidance: one batched call' in output and re.search(r'a video for each sound: [\d.]+ MB of', output)
