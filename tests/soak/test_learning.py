"""The learning chain of the quickstart in full, with three seeds: every target must be met with each of them.

    make soak                                                                    # about 15 minutes a seed on 2 cores
    AUDIOCRAFT_SOAK_SHORT=1 python -m pytest -s -m soak tests/soak/test_learning.py   # one seed, small, no targets
"""

import dataclasses
import importlib.util
import json
import os
import sys
import typing as tp
from pathlib import Path

import pytest
from integ.chain import ROOT

from audiocraft.pages.table import format_table

pytestmark = pytest.mark.soak

SHORT = bool(os.environ.get('AUDIOCRAFT_SOAK_SHORT'))
SEEDS = [1] if SHORT else [1, 2, 3]


@pytest.fixture
def quickstart(tmp_path, monkeypatch):
    """The module of scripts/quickstart.py, in a folder where its commands work."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('AUDIOCRAFT_DORA_DIR', str(tmp_path / 'outputs'))
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)  # as many as the quickstart itself takes
    spec = importlib.util.spec_from_file_location('quickstart', ROOT / 'scripts' / 'quickstart.py')
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, 'quickstart', module)
    spec.loader.exec_module(module)
    return module


def plan_of(quickstart: tp.Any, seed: int) -> tp.Any:
    """The quickstart's plan with a seed and folders of its own, but the same videos."""
    plan = quickstart.SHORT if SHORT else quickstart.FULL
    root = Path('data') / f'seed_{seed}'
    root.mkdir(parents=True)
    for part in plan.parts:
        media = Path('data') / 'media' / part
        media.mkdir(parents=True, exist_ok=True)
        (root / part).symlink_to(media.resolve())
    added = [f'dset.root={root}', f'seed={seed}']
    overrides = {name: [*(x for x in getattr(plan, name) if not x.startswith('dset.root=')), *added]
                 for name in ('codec', 'model')}
    return dataclasses.replace(plan, root=str(root), **overrides)


def scores(folder: Path) -> dict[str, tp.Any]:
    """The results of the last evaluation of an XP."""
    newest = max((folder / 'evaluate').glob('*.json'), key=lambda path: int(path.stem))
    found = json.loads(newest.read_text())['metrics']
    return {**found, 'of_ceiling': found['onset_f1'] / (found['ceiling/onset_f1'] or float('nan'))}


def test_every_seed_meets_every_target(quickstart, tmp_path):
    found = {}
    for seed in SEEDS:
        signature = quickstart.run_steps(quickstart.Steps(), plan_of(quickstart, seed))
        found[seed] = scores(tmp_path / 'outputs' / 'xps' / signature)
    rows, missed = [], []
    for key in found[SEEDS[0]]:
        values = [found[seed].get(key) for seed in SEEDS]
        verdicts = [quickstart.verdict(key, value, True) for value in values]
        missed += [f'{key} {value} with seed {seed}' for seed, value, verdict in zip(SEEDS, values, verdicts)
                   if verdict[1] == 'MISSED']
        texts = [f'{value:.3f}' if isinstance(value, float) else str(value) for value in values]
        rows.append((key, *texts, verdicts[0][0], ' '.join(verdict[1] for verdict in verdicts)))
    print('\n' + format_table(rows, ['metric', *(f'seed {seed}' for seed in SEEDS), 'target', '']), flush=True)
    assert SHORT or not missed, missed
