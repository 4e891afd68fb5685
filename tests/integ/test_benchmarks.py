"""The benchmark of the solver runs (docs/STORES.md runs that of the loader). What it measures is no matter of tests."""

import re
import subprocess as sp
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integ

ROOT = Path(__file__).resolve().parents[2]


def test_solver(tmp_path):
    args = ['--updates', '2', '--rounds', '2', '--seconds', '0', '--batch_size', '2']
    done = sp.run([sys.executable, ROOT / 'benchmarks' / 'solver.py', *args], cwd=tmp_path, text=True,
                  stdout=sp.PIPE, stderr=sp.STDOUT, stdin=sp.DEVNULL, timeout=600)
    output = done.stdout
    assert done.returncode == 0, output
    assert 'MMAudio of ' in output and output.count('us per update') == 4
    assert re.search(r'overhead of the solver: -?\d+ us per update, ratio \d+\.\d+ \(medians of [23] rounds', output)
    assert not list(tmp_path.iterdir())
