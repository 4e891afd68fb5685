"""What a run leaves for people and tools: `history.json`, one JSON for each later stage, and metrics as they come."""

import json
import logging
import typing as tp
from pathlib import Path

from ..utils.errors import UserError
from ..utils.files import write_atomic
from ..utils.logging import MetricsFile, jsonable

logger = logging.getLogger(__name__)

LATER_STAGES = ('evaluate', 'generate')
Metrics = dict[str, tp.Any]
History = list[dict[str, Metrics]]


class StageResults:
    """The results of stages that run after an epoch was committed: `<folder>/<stage>/<update>.json`.

    The history of a run is that of its checkpoint plus these files, so that a crash in such a stage loses nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, stage: str, update: int) -> Path:
        """Return where the results of a stage at an update are."""
        return self.folder / stage / f'{update}.json'

    def write(self, stage: str, update: int, *, epoch: int, metrics: Metrics, **more: tp.Any) -> Path:
        """Write the results of a stage, whole or not at all."""
        path = self.path(stage, update)
        content = {'stage': stage, 'update': update, 'epoch': epoch, **more, 'metrics': metrics}
        write_atomic(path, json.dumps(jsonable(content), indent=2, allow_nan=False))
        return path

    def all(self, stage: str) -> dict[int, dict[str, tp.Any]]:
        """Return the readable results of a stage by update."""
        found = {}
        for path in (self.folder / stage).glob('*.json'):
            try:
                content = json.loads(path.read_text(encoding='utf-8'))
                found[int(path.stem)] = {**content, 'metrics': dict(content['metrics'])}
            except (ValueError, KeyError, TypeError):
                continue
        return found

    def is_done(self, stage: str, update: int) -> bool:
        """Whether a stage has its results for the epoch that ended with this update."""
        return self.all(stage).get(update, {}).get('whole_epoch', False)

    def rewind(self, update: int) -> None:
        """Remove results that are later than the checkpoint from which a run goes on: it makes them again."""
        for stage in LATER_STAGES:
            for later in [number for number in self.all(stage) if number > update]:
                self.path(stage, later).unlink()

    def add_to(self, history: History) -> None:
        """Put the results of the later stages into the epochs that they belong to."""
        for stage in LATER_STAGES:
            for _, content in sorted(self.all(stage).items()):
                epoch = content.get('epoch')
                if isinstance(epoch, int) and 0 < epoch <= len(history) and content.get('whole_epoch'):
                    history[epoch - 1][stage] = content['metrics']


def write_history(path: Path, history: History) -> None:
    """Write the history as Dora reads it: a list with `{stage: {metric: value}}` for each epoch."""
    write_atomic(path, json.dumps(jsonable(history), indent=2, allow_nan=False))


class Reporter:
    """Metrics as they come: `metrics.jsonl`, and TensorBoard and Weights & Biases if asked for.

    Args:
        folder (Path): of the XP.
        name (str): signature of the XP, the name of the run at Weights & Biases.
        update (int): updates done.
        is_past (callable): whether an entry of an earlier process came before the checkpoint; others are dropped.
        config (dict): resolved config, shown at Weights & Biases.
        tensorboard (bool): write event files to `<folder>/tensorboard`.
        wandb (bool): log to Weights & Biases; `wandb_mode` is `offline` (the files stay in `<folder>/wandb`),
            `online` or `disabled`.
    """

    def __init__(self, folder: Path, name: str, *, update: int = 0, is_past: tp.Callable[[Metrics], bool] = bool,
                 config: dict[str, tp.Any] | None = None, tensorboard: bool = False, wandb: bool = False,
                 wandb_mode: str = 'offline', wandb_project: str = 'audiocraft') -> None:
        self.file = MetricsFile(folder / 'metrics.jsonl')
        self.file.keep(is_past)
        self._tensorboard = _open_tensorboard(folder / 'tensorboard', update) if tensorboard else None
        self._wandb = _open_wandb(folder, name, wandb_mode, wandb_project, config or {}) if wandb else None

    def add(self, kind: str, stage: str, *, epoch: int, update: int, metrics: Metrics, **facts: tp.Any) -> None:
        """Add one entry.

        Args:
            kind (str): `step` (means since the entry before) or `stage` (means of a whole stage).
            stage (str): `train`, `valid`, ...
            epoch, update (int): where in the training.
            metrics (dict): the metrics.
            facts: speed, share of time spent waiting for data, ...
        """
        self.file.append(kind=kind, stage=stage, epoch=epoch, update=update, metrics=metrics, **facts)
        numbers = {f'{stage}/{name}' if kind == 'step' else f'{stage}_epoch/{name}': float(value)
                   for name, value in {**metrics, **facts}.items()
                   if isinstance(value, (int, float)) and not isinstance(value, bool)}
        if self._tensorboard is not None:
            for name, value in numbers.items():
                self._tensorboard.add_scalar(name, value, update)
        if self._wandb is not None:
            self._wandb.log({**numbers, 'update': update, 'epoch': epoch})

    def close(self) -> None:
        """Write out what is buffered."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def _missing(key: str, package: str) -> UserError:
    return UserError(f'logging.{key}=true needs the package {package}, which is not installed: '
                     f'pip install "audiocraft[{key}]", or leave logging.{key} off.')


def _open_tensorboard(folder: Path, update: int) -> tp.Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise _missing('tensorboard', 'tensorboard') from error
    return SummaryWriter(str(folder), purge_step=update + 1)


def _open_wandb(folder: Path, name: str, mode: str, project: str, config: dict[str, tp.Any]) -> tp.Any:
    try:
        import wandb
    except ImportError as error:
        raise _missing('wandb', 'wandb') from error
    return wandb.init(dir=str(folder), id=name, name=name, project=project, mode=mode, config=config,  # type: ignore
                      resume='allow')
