"""The commands of AudioCraft's training document, one by one, on a light codec made tiny; no cluster."""

import json
import os
import re
import subprocess as sp
import sys
import typing as tp
from pathlib import Path

import pytest

pytestmark = pytest.mark.integ

TINY = ['optim.epochs=1', 'optim.updates_per_epoch=2', 'dataset.batch_size=4', 'logging.log_updates=1',
        'dataset.evaluate.num_samples=2', 'dataset.generate.num_samples=1']
GRID = """
from audiocraft._grids._explorers import CompressionExplorer


@CompressionExplorer
def explorer(launcher):
    launcher.slurm_(gpus=0, time=10)
    launcher.bind_(solver='compression/debug')
    launcher.bind_({TINY!r})
    launcher()
    launcher({{'optim.lr': 1e-3}})
"""
# The script that `pip install` puts beside the interpreter.
DORA = str(Path(sys.executable).with_name('dora'))


@pytest.fixture(scope='module')
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A launch folder with sounds and a grid of its own, which takes the place of the packaged one."""
    folder = tmp_path_factory.mktemp('document')
    team = folder / 'team.yaml'
    team.write_text('default: {dora_dir: /nowhere, reference_dir: /tmp, launcher: local, local_workers: 2}\n')
    (folder / 'grids' / 'compression').mkdir(parents=True)
    for name in ('grids', 'grids/compression'):
        (folder / name / '__init__.py').touch()
    (folder / 'grids' / 'compression' / 'debug.py').write_text(GRID.format(TINY=TINY))
    for seed, part in enumerate(('train', 'valid', 'test')):
        run(folder, sys.executable, '-m', 'audiocraft', 'make_example', '--kind', 'audio', '--out',
            f'data/example/{part}', '--clips', 4, '--seed', seed)
    return folder


def run(folder: Path, *command: tp.Any, code: int = 0) -> str:
    """What a command prints, both streams in one."""
    env = {**os.environ, 'AUDIOCRAFT_DORA_DIR': str(folder / 'out'), 'OMP_NUM_THREADS': '1',
           'AUDIOCRAFT_CONFIG': str(folder / 'team.yaml')}
    done = sp.run([str(word) for word in command], cwd=folder, env=env, text=True, stdout=sp.PIPE, stderr=sp.STDOUT,
                  stdin=sp.DEVNULL, timeout=600)
    assert done.returncode == code, f'{command}: {done.returncode}\n{done.stdout}'
    return done.stdout


def history(folder: Path, sig: str) -> list[dict[str, tp.Any]]:
    return json.loads((folder / 'out' / 'xps' / sig / 'history.json').read_text())


def signature(output: str) -> str:
    return re.findall(r' XP ([0-9a-f]{8}) in ', output)[-1]


def test_the_document(project):
    sig = signature(run(project, DORA, 'run', 'solver=compression/debug', *TINY))
    assert len(history(project, sig)) == 1

    assert 'Nothing to do, this XP is finished' in run(project, DORA, 'run', '-f', sig)

    said = run(project, DORA, 'info', '-f', sig, '-m')
    assert str(project / 'out' / 'xps' / sig) in said and 'Metrics[1]' in said and '"si_snr"' in said
    assert 'Valid Summary | Epoch 1' in run(project, DORA, 'info', '-f', sig, '-l')
    assert 'updates_per_epoch: 2' in run(project, DORA, 'info', '-f', sig, '-v')
    tail = sp.run(['timeout', '10', DORA, 'info', '-f', sig, '-t'], cwd=project, text=True, capture_output=True,
                  env={**os.environ, 'AUDIOCRAFT_DORA_DIR': str(project / 'out')})
    assert tail.returncode == 124 and 'Valid Summary | Epoch 1' in tail.stdout  # it follows for ever

    assert 'Nothing to do, this XP is finished' in run(project, DORA, 'run', '-d', '-f', sig)
    other = signature(run(project, DORA, 'run', '-d', '-f', sig, 'dataset.batch_size=8'))
    assert other != sig and len(history(project, other)) == 1
    said = run(project, DORA, 'info', '-f', other)
    assert 'Process 1 logs to' in said and 'worker_1.log' in said

    checkpoint = project / 'out' / 'xps' / sig / 'checkpoints' / '2' / 'COMMIT'
    before = checkpoint.stat().st_mtime_ns
    assert 'Finished: 1 epochs, 2 updates' in run(project, DORA, 'run', '--clear', '-f', sig)
    assert checkpoint.stat().st_mtime_ns != before


def test_its_grids(project):
    table = run(project, DORA, 'grid', 'compression.debug', '--dry_run', '--init')
    sigs = re.findall(r'\b[0-9a-f]{8}\b', table)
    assert len(set(sigs)) == 2 and all((project / 'out' / 'xps' / sig / '.argv.json').exists() for sig in sigs)
    table = run(project, DORA, 'grid', 'compression.debug')
    assert all(len(history(project, sig)) == 1 for sig in sigs)
    assert len(re.findall(r'\bCOM', table.rpartition('Monitoring')[2] or table)) >= 2
    assert 'SI-SNR' in table or 'si_snr' in table


def test_xps_are_listed_and_compared(project):
    sigs = [path.name for path in (project / 'out' / 'xps').iterdir() if (path / 'history.json').exists()][:2]
    listed = run(project, sys.executable, '-m', 'audiocraft', 'xps')
    assert all(sig in listed for sig in sigs) and 'finished' in listed
    said = run(project, sys.executable, '-m', 'audiocraft', 'compare', *sigs)
    assert all(sig in said for sig in sigs) and 'loss' in said
    assert 'error: ' in run(project, sys.executable, '-m', 'audiocraft', 'control', sigs[0], 'lr', 'x', code=1)
