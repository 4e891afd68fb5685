"""The tables that `dora grid` shows: one explorer per task, all made of `BaseExplorer`."""

import time
import typing as tp

import treetable as tt
from dora import Explorer
from dora.shep import Sheep

History = list[dict[str, tp.Any]]


def ping(sheep: Sheep, now: float | None = None) -> str | None:
    """How long ago the XP wrote to its log, as `12s`, `5m` or `3h`; None when it never did."""
    if sheep.log is None or not sheep.log.exists():
        return None
    seconds = max(0., (time.time() if now is None else now) - sheep.log.stat().st_mtime)
    if seconds < 100:
        return f'{seconds:.0f}s'
    return f'{seconds / 60:.0f}m' if seconds < 6000 else f'{seconds / 3600:.0f}h'


class BaseExplorer(Explorer):
    """The newest metrics of each stage, the epoch, and how long ago the XP was seen.

    A task lists its metrics in `METRICS`: for each stage, from the name of a metric to its format (`.3f`).
    """

    METRICS: tp.ClassVar[dict[str, dict[str, str]]] = {
        'train': {'loss': '.4f'},
        'valid': {'loss': '.4f'},
    }

    def get_grid_meta(self) -> list[tp.Any]:
        """Name, state, signature and SLURM job of an XP."""
        return [tt.leaf('index', align='>'), tt.leaf('name', wrap=100), tt.leaf('state'), tt.leaf('sig', align='>'),
                tt.leaf('sid', align='')]

    def get_grid_metrics(self) -> list[tp.Any]:
        """The columns: epoch and ping, then a group of columns for each stage."""
        stages = [tt.group(stage, [tt.leaf(name, form) for name, form in metrics.items()], align='>')
                  for stage, metrics in self.METRICS.items()]
        return [tt.leaf('epoch'), tt.leaf('ping'), *stages]

    def process_sheep(self, sheep: Sheep, history: History) -> dict[str, tp.Any]:
        """The newest value of each metric that has a column; those that are null (not finite) are left out."""
        parts: dict[str, tp.Any] = {stage: {} for stage in self.METRICS}
        for metrics in history:
            for stage in parts:
                known = {name: value for name, value in metrics.get(stage, {}).items() if name in self.METRICS[stage]}
                parts[stage].update({name: value for name, value in known.items() if value is not None})
        return {'epoch': len(history), 'ping': ping(sheep), **parts}


class GenerationExplorer(BaseExplorer):
    """For solvers that generate audio from video or text."""

    METRICS = {
        'train': {'loss': '.4f', 'grad_norm': '.3f'},
        'valid': {'loss': '.4f'},
        'evaluate': {'loss': '.4f', 'fd': '.3f', 'onset_f1': '.3f', 'kind_accuracy': '.3f'},
    }


class CompressionExplorer(BaseExplorer):
    """For compression models: what they are trained for, and how good and how large what they make is."""

    METRICS = {
        'train': {'loss': '.4f', 'penalty': '.4f', 'd_loss': '.3f', 'grad_norm': '.3f'},
        'valid': {'loss': '.4f'},
        'evaluate': {'si_snr': '.2f', 'mel_distance': '.4f', 'visqol': '.2f', 'codebook_use': '.1%', 'bitrate': '.2f'},
    }
