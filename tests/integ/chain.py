"""The main job in miniature, by the commands that a user types: videos, a codec, stores, a video-to-audio model.

`make_chain(folder)` runs it once; what is asked of it is in `test_chain.py` and in `tests/soak`.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess as sp
import sys
import typing as tp
from dataclasses import dataclass, field
from pathlib import Path

import torch

from audiocraft.utils.checkpoint import load_latest

ROOT = Path(__file__).resolve().parents[2]
DORA_DIR = 'outputs'
PARTS = {'train': (16, 1), 'valid': (4, 2), 'test': (4, 3)}  # clips, seed

CODEC = ['solver=compression/mel_vae_debug', 'num_threads=1', 'model.width=16', 'model.depth=1',
         'model.griffin_lim_iter=2', 'dataset.batch_size=4', 'dataset.evaluate.num_samples=1',
         'dataset.generate.num_samples=1', 'optim.epochs=1', 'optim.updates_per_epoch=3', 'schedule.warmup=1']
SCHEDULE = '# A schedule of the launch folder.\n_target_: audiocraft.optim.schedules.Cosine\nmin_ratio: 0.1\n'
MODEL = ['solver=mmaudio/debug', 'schedule=own', 'num_threads=1', 'model.hidden_dim=32', 'model.num_heads=2',
         'model.depth=2', 'model.fused_depth=1', 'dataset.batch_size=8', 'dataset.evaluate.batch_size=2',
         'dataset.generate.num_samples=2', 'optim.epochs=3', 'optim.updates_per_epoch=3', 'checkpoint.save_every=2',
         'sampling.steps=2', 'evaluate.fit_clips=16', 'logging.log_updates=2']
UPDATES = 9

# Metrics of time, which no two runs share.
_TIMES = ('duration', 'seconds', 'speed', 'data_wait', 'eta')


@dataclass
class Chain:
    """What was made.

    Attributes:
        folder (Path): where the commands are started.
        codec, model (str): signatures.
        outputs (dict): what each step printed, by name.
    """
    folder: Path
    codec: str = ''
    model: str = ''
    outputs: dict[str, str] = field(default_factory=dict)

    def launch(self, *args: tp.Any, code: int | tuple[int, ...] = 0, dora_dir: str = DORA_DIR) -> str:
        """Run `python ARGS` in the folder and return what it prints. Fails on another exit status than `code`.

        A command that ends with 1 was refused: that takes one message at most, and no traceback.
        """
        done = sp.run(self.command(*args), cwd=self.folder, env=self.environment(dora_dir), text=True, stdout=sp.PIPE,
                      stderr=sp.STDOUT, stdin=sp.DEVNULL, timeout=800)
        tail = '\n'.join([' '.join(map(str, args)), *done.stdout.splitlines()[-40:]])
        assert done.returncode in (code if isinstance(code, tuple) else (code,)), f'exit {done.returncode}: {tail}'
        if done.returncode == 1:
            assert 'Traceback' not in done.stdout and done.stdout.count('error: ') <= 1, tail
        return done.stdout

    def command(self, *args: tp.Any) -> list[str]:
        """The command line of `python ARGS`."""
        return [sys.executable, *map(str, args)]

    def environment(self, dora_dir: str = DORA_DIR) -> dict[str, str]:
        """Environment variables of the commands; `python -m dora` works from any folder with it."""
        return {**os.environ, 'AUDIOCRAFT_DORA_DIR': str(self.folder / dora_dir), 'PYTHONPATH': str(ROOT),
                'DORA_PACKAGE': 'audiocraft', 'OMP_NUM_THREADS': '1'}

    def audiocraft(self, *args: tp.Any, code: int | tuple[int, ...] = 0, dora_dir: str = DORA_DIR) -> str:
        """Run `python -m audiocraft ARGS`."""
        return self.launch('-m', 'audiocraft', *args, code=code, dora_dir=dora_dir)

    def interrupt(self, where: str, signal: str, *args: tp.Any, code: int | tuple[int, ...],
                  dora_dir: str = DORA_DIR) -> str:
        """Run `python -m audiocraft ARGS` up to a point; see `interrupt.py`."""
        return self.launch(ROOT / 'tests' / 'integ' / 'interrupt.py', where, signal, *args, code=code,
                           dora_dir=dora_dir)

    def xp(self, signature: str, dora_dir: str = DORA_DIR) -> Path:
        """The folder of an XP."""
        return self.folder / dora_dir / 'xps' / signature

    def store(self, part: str, root: str = 'data/example') -> Path:
        """A store, without suffix."""
        return self.folder / root / 'stores' / part

    def extract(self, part: str, output: str, *more: str) -> list[str]:
        """Arguments of the extraction of a part of the example data."""
        media = f'data/example/{part}'
        return ['--data_dir', media, '--captions_tsv', f'{media}/captions.tsv', '--output_dir', output,
                '--codec', f'//sig/{self.codec}', '--batch_size', '4', *more]

    def fresh_dora_dir(self, name: str) -> str:
        """Another folder of XPs, in which there is only the codec."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        self.xp('', name).mkdir(parents=True)
        self.xp(self.codec, name).symlink_to(self.xp(self.codec))
        return name


def make_chain(folder: Path) -> Chain:
    """Everything from the videos to the trained model."""
    chain = Chain(folder)
    (folder / 'config' / 'schedule').mkdir(parents=True)
    (folder / 'config' / 'schedule' / 'own.yaml').write_text(SCHEDULE)
    for part, (clips, seed) in PARTS.items():
        chain.audiocraft('make_example', '--kind', 'video', '--out', f'data/example/{part}', '--clips', clips,
                         '--seed', seed, '--workers', 1)
    chain.outputs['codec'] = chain.audiocraft('run', *CODEC)
    chain.codec = signature_in(chain.outputs['codec'])
    for part in PARTS:
        chain.outputs[part] = chain.launch(ROOT / 'scripts' / 'extract.py',
                                           *chain.extract(part, f'data/example/stores/{part}'))
    chain.outputs['model'] = chain.launch('-m', 'dora', 'run', *MODEL)
    chain.model = signature_in(chain.outputs['model'])
    return chain


def signature_in(output: str) -> str:
    """The signature of the XP that a run says it is."""
    found = re.search(r' XP ([0-9a-f]{8}) in ', output)
    assert found, output
    return found[1]


def contents(*paths: Path) -> dict[str, str]:
    """sha256 of every file at or below some paths, by name relative to the first path's folder."""
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob('*')))]
    return {file.relative_to(paths[0].parent).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in files if file.is_file()}


def store_contents(store: Path) -> dict[str, str]:
    """sha256 of every file of a store, under names that do not depend on its own."""
    beside = [store.with_name(store.name + suffix) for suffix in ('.tsv', '.facts.json')]
    return {name.removeprefix(store.name): digest for name, digest in contents(store, *beside).items()}


def flat(tree: tp.Any, where: str = '') -> dict[str, tp.Any]:
    """Leaves of nested containers by dotted name; tensors as type, shape and bytes, and no times."""
    if isinstance(tree, torch.Tensor):
        data = tree.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tree.numel() else b''
        return {where: (str(tree.dtype), tuple(tree.shape), data)}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, (list, tuple)) else None
    if items is None:
        return {where: repr(tree)}
    return {name: leaf for key, value in items if key not in _TIMES
            for name, leaf in flat(value, f'{where}.{key}').items()}


def outcome(xp: Path) -> dict[str, tp.Any]:
    """All that a training left, to the bit: last checkpoint, history, metrics as they came, scores, samples."""
    last = load_latest(xp / 'checkpoints', set_aside=False)
    assert last is not None
    results = {path.relative_to(xp).as_posix(): json.loads(path.read_text())
               for folder in ('evaluate', 'generate') for path in (xp / folder).rglob('*.json')}
    lines = [json.loads(line) for line in (xp / 'metrics.jsonl').read_text().splitlines()]
    samples = {name: digest for name, digest in contents(xp / 'generate').items() if name.endswith('.wav')}
    return flat({'models': last.models, 'state': last.state, 'rng': last.rank_states, 'results': results,
                 'history': json.loads((xp / 'history.json').read_text()), 'lines': lines, 'samples': samples})


def differences(a: dict[str, tp.Any], b: dict[str, tp.Any]) -> list[str]:
    """Names of the leaves in which two outcomes differ."""
    return sorted(name for name in a.keys() | b.keys() if a.get(name, '') != b.get(name, ''))
