"""Runs a command of the package that ends, or is asked to end, at an exact point: by a real signal to itself.

    python tests/integ/interrupt.py train:3 SIGTERM run solver=mmaudio/debug   # in the 3rd update of this process
    python tests/integ/interrupt.py save:20 SIGKILL run solver=mmaudio/debug   # at the 20th act of saving
    python tests/integ/interrupt.py item:9 SIGKILL extract --data_dir ...      # before the 9th item is written
    python tests/integ/interrupt.py - - run solver=mmaudio/debug               # nowhere

`POINTS` lists the kinds of points. At the end it prints how often it passed each: `passed: {"train": 9, ...}`.
"""

import collections
import json
import os
import signal
import sys
import typing as tp
from pathlib import Path

from audiocraft.cli.dispatch import main
from audiocraft.data import store_writer
from audiocraft.solvers.compression import CompressionSolver
from audiocraft.solvers.mmaudio import MMAudioSolver
from audiocraft.solvers.resumable import Resumable
from audiocraft.utils import checkpoint

POINTS = {
    'train': 'after the loss and the step of an update, before it is counted',
    'valid': 'after a batch of valid, or of the losses of evaluate',
    'generated': 'before a batch is generated, in evaluate and in generate',
    'commit': 'after the commit of an epoch',
    'save': 'at an act of writing a checkpoint: tensors (half of the file is there), sync, COMMIT, renames, removals',
    'item': 'before an item of an extraction is written',
    'finish': 'at an act of finishing a store: tables, facts, moves',
}
SAVING = ('write_tensors', 'fsync_file', 'sha256_of', 'write_atomic', '_publish', '_remove', '_clean', '_delete_old')
FINISHING = ('write_atomic', 'fsync_file', 'fsync_dir', '_move')


class Points:
    """Counts what passes, and sends the signal when it is its turn."""

    def __init__(self, where: str, name: str):
        self.kind, _, number = where.partition(':')
        self.number, self.signal = int(number or 0), getattr(signal, name, None)
        self.passed: collections.Counter[str] = collections.Counter()

    def reach(self, kind: str, before: tp.Callable[[], tp.Any] = lambda: None) -> None:
        """Pass a point; `before` is called if this is the one."""
        self.passed[kind] += 1
        if self.signal is not None and (kind, self.passed[kind]) == (self.kind, self.number):
            before()
            os.kill(os.getpid(), self.signal)

    def wrap(self, owner: tp.Any, name: str, kind: str | tp.Callable[..., str], after: bool = False) -> None:
        """Make each call of `owner.name` a point, which lies before it or after it."""
        genuine = getattr(owner, name)

        def wrapped(*args: tp.Any, **kwargs: tp.Any) -> tp.Any:
            if not after:
                half = (lambda: _half_of(genuine, *args)) if name == 'write_tensors' else (lambda: None)
                self.reach(tp.cast(str, kind), half)
            result = genuine(*args, **kwargs)
            if after:
                self.reach(kind if isinstance(kind, str) else kind(*args))
            return result
        setattr(owner, name, wrapped)


def _half_of(genuine: tp.Callable[..., tp.Any], path: Path, *args: tp.Any) -> None:
    """What a kill in the middle of writing leaves."""
    genuine(path, *args)
    os.truncate(path, path.stat().st_size // 2)


def install(points: Points) -> None:
    """Put the points in place."""
    for solver in (MMAudioSolver, CompressionSolver):
        points.wrap(solver, 'run_step', lambda solver, *_: 'train' if solver.is_training else 'valid', after=True)
    points.wrap(MMAudioSolver, 'generate_audio', 'generated')
    points.wrap(Resumable, 'commit', 'commit', after=True)
    for name in SAVING:
        points.wrap(checkpoint, name, 'save')
    points.wrap(store_writer.StoreWriter, 'add', 'item')
    for name in FINISHING:
        points.wrap(store_writer, name, 'finish')
    store_writer.ITEMS_PER_SYNC = 3  # so that a short extraction has something to go on from


if __name__ == '__main__':
    here = Points(sys.argv[1], sys.argv[2])
    install(here)
    try:
        sys.exit(main(sys.argv[3:]))
    finally:
        print('passed: ' + json.dumps(here.passed), flush=True)
