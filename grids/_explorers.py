"""The tables that `dora grid` shows: one explorer per task, all made of `BaseExplorer`."""

import json
import time
import typing as tp

import treetable as tt
from dora import Explorer
from dora.shep import Sheep

History = list[dict[str, tp.Any]]
_TAIL = 1 << 16  # bytes at the end of `metrics.jsonl` that are looked at


def short_time(seconds: float) -> str:
    """Return `12s`, `5m`, `3h` or `4d`."""
    seconds = max(0., seconds)
    for unit, size, limit in (('s', 1, 100), ('m', 60, 6000), ('h', 3600, 360_000)):
        if seconds < limit:
            return f'{seconds / size:.0f}{unit}'
    return f'{seconds / 86_400:.0f}d'


def ping(sheep: Sheep, now: float | None = None) -> str | None:
    """How long ago the XP wrote to its log; None when it never did."""
    if sheep.log is None or not sheep.log.exists():
        return None
    return short_time((time.time() if now is None else now) - sheep.log.stat().st_mtime)


def last_step(sheep: Sheep) -> dict[str, tp.Any] | None:
    """The newest line of progress of a training; None before the first."""
    path = sheep.xp.folder / 'metrics.jsonl'
    if not path.exists():
        return None
    with open(path, 'rb') as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        lines = file.read().splitlines()
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # cut by a kill, or by the place where we began to read
        if entry.get('kind') == 'step' and entry.get('stage') == 'train':
            return entry
    return None


def time_left(sheep: Sheep, history: History, now: float | None = None) -> str | None:
    """How long the training will take to its last update; None when it does not run, or nothing is known yet.

    That is the rest of its epoch and the epochs after it, at the speed of its last line of progress, less the time
    since then. Other stages than `train` are not counted.
    """
    if sheep.is_done():
        return None
    step, epochs = last_step(sheep), sheep.xp.cfg.optim.epochs
    if step is None or not step.get('speed') or step.get('eta') is None or len(history) >= epochs:
        return None
    in_epoch = (step['update'] + step['eta'] * step['speed']) / step['epoch']  # updates of each epoch
    seconds = step['eta'] + (epochs - step['epoch']) * in_epoch / step['speed']
    since = (time.time() if now is None else now) - (sheep.xp.folder / 'metrics.jsonl').stat().st_mtime
    return short_time(seconds - since)


class BaseExplorer(Explorer):
    """The newest metrics of each stage, the epoch, how long ago the XP was seen, and how long it will take.

    A task lists its metrics in `METRICS`: for each stage, from the name of a metric to its format (`.3f`).
    """

    METRICS: tp.ClassVar[dict[str, dict[str, str]]] = {
        'train': {'loss': '.4f'},
        'valid': {'loss': '.4f'},
    }

    def get_grid_meta(self) -> list[tp.Any]:
        """Name, state, signature and job of an XP."""
        return [tt.leaf('index', align='>'), tt.leaf('name', wrap=100), tt.leaf('state'), tt.leaf('sig', align='>'),
                tt.leaf('sid', align='>')]

    def get_grid_metrics(self) -> list[tp.Any]:
        """The columns: epoch, ping and ETA, then a group of columns for each stage."""
        stages = [tt.group(stage, [tt.leaf(name, form) for name, form in metrics.items()], align='>')
                  for stage, metrics in self.METRICS.items()]
        return [tt.leaf('epoch'), tt.leaf('ping', align='>'), tt.leaf('ETA', align='>'), *stages]

    def process_sheep(self, sheep: Sheep, history: History) -> dict[str, tp.Any]:
        """The newest value of each metric that has a column; those that are null (not finite) are left out."""
        parts: dict[str, tp.Any] = {stage: {} for stage in self.METRICS}
        for metrics in history:
            for stage in parts:
                known = {name: value for name, value in metrics.get(stage, {}).items() if name in self.METRICS[stage]}
                parts[stage].update({name: value for name, value in known.items() if value is not None})
        return {'epoch': len(history), 'ping': ping(sheep), 'ETA': time_left(sheep, history), **parts}


class GenerationExplorer(BaseExplorer):
    """For solvers that generate audio from video or text."""

    METRICS = {
        'train': {'loss': '.4f', 'grad_norm': '.3f'},
        'valid': {'loss': '.4f'},
        'evaluate': {'loss': '.4f', 'fd_embedded': '.3f', 'onset_f1': '.3f', 'kind_accuracy': '.3f'},
    }


class AVBenchmarkExplorer(BaseExplorer):
    """For solvers that are scored by `metric=av_benchmark`."""

    METRICS = {
        'train': {'loss': '.4f', 'grad_norm': '.3f'},
        'valid': {'loss': '.4f'},
        'evaluate': {'FD-PASST': '.2f', 'KL-PASST-softmax': '.3f', 'ISC-PASST-mean': '.2f', 'IB-Score': '.4f',
                     'DeSync': '.3f'},
    }


class CompressionExplorer(BaseExplorer):
    """For compression models: what they are trained for, and how good and how large what they make is."""

    METRICS = {
        'train': {'loss': '.4f', 'penalty': '.4f', 'd_loss': '.3f', 'grad_norm': '.3f'},
        'valid': {'loss': '.4f'},
        'evaluate': {'si_snr': '.2f', 'mel_distance': '.4f', 'visqol': '.2f', 'codebook_use': '.1%', 'bitrate': '.2f'},
    }
