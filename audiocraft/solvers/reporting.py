"""What a solver tells while it runs: log lines, `metrics.jsonl`, the history, how far it is."""

import copy
import typing as tp

import flashy
import omegaconf

from .. import distrib
from ..utils.averager import Averager
from ..utils.checkpoint_writer import CheckpointWriter
from ..utils.config import to_plain
from ..utils.logging import ProgressLine
from ..utils.secrets import hide_config
from ..utils.status import write_status
from .best import BestState
from .progress import Progress, merged
from .results import Metrics, Reporter, StageResults, write_history
from .setup import best_metric_name


class Reporting(flashy.BaseSolver):
    """A Flashy solver that knows how far it is, and says so."""

    dataloaders: dict[str, tp.Any]

    def __init__(self, cfg: omegaconf.DictConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.epochs = int(cfg.optim.epochs)
        self.update = 0
        self.best = BestState()
        self._progress = Progress()
        self._results = StageResults(self.folder)
        self._writer = CheckpointWriter(self.folder / 'checkpoints', asynchronous=cfg.checkpoint.asynchronous,
                                        keep_last=cfg.checkpoint.keep_last, keep_every=cfg.checkpoint.keep_every)
        self._reporter: Reporter | None = None
        self._committed = self._working = False

    @property
    def epoch(self) -> int:
        """The epoch that is going on, from 1; in evaluate and generate, the one that was just committed."""
        return len(self.history) + (0 if self._committed else 1)

    @property
    def updates_per_epoch(self) -> int:
        """`optim.updates_per_epoch`, or one pass of the train loader when that is null."""
        return int(self.cfg.optim.updates_per_epoch or len(self.dataloaders['train']))

    @property
    def total_updates(self) -> int:
        """Planned length of the training in updates, for schedules."""
        return self.updates_per_epoch * self.epochs

    def _status(self, state: str) -> None:
        """Tell people and tools how far this XP is."""
        self._working = state == 'running'
        if distrib.is_rank_zero():
            best = None if self.best.states is None else {
                'metric': best_metric_name(self), 'score': self.best.score, 'update': self.best.update,
                'epoch': self.best.epoch}
            write_status(self.folder, state=state, epoch=len(self.history), epochs=self.epochs, update=self.update,
                         best=best, world_size=distrib.world_size())

    def note(self, name: str, value: float) -> None:
        """Keep in the history of this epoch, and in `metrics.jsonl`, that a person changed something."""
        self._pending_metrics.setdefault('control', {}).update({name: value, f'{name}_update': self.update})
        self._report('command', {name: value})

    def _publish_history(self) -> None:
        self._results.add_to(self.history)
        if distrib.is_rank_zero() and self.history:
            history = copy.deepcopy(self.history)
            self._writer.afterwards(lambda: write_history(self.xp.history, history))

    def _open_reporter(self) -> None:
        if distrib.is_rank_zero():
            node, shown = self.cfg.logging, hide_config(to_plain(self.cfg))
            self._reporter = Reporter(self.folder, self.xp.sig, update=self.update, is_past=self._is_past, config=shown,
                                      tensorboard=node.tensorboard, wandb=node.wandb, wandb_mode=node.wandb_mode,
                                      wandb_project=node.wandb_project)

    def _is_past(self, entry: dict[str, tp.Any]) -> bool:
        """Whether an entry of `metrics.jsonl` belongs to what the restored state has behind it."""
        update, epoch = entry.get('update', 0), entry.get('epoch', 0)
        if entry.get('kind') != 'stage':
            return update <= self.update
        done = self.history[epoch - 1] if 0 < epoch <= len(self.history) else self._pending_metrics
        return update <= self.update and entry.get('stage') in done

    def _report(self, kind: str, metrics: Metrics, **facts: tp.Any) -> None:
        if self._reporter is not None:
            self._reporter.add(kind, self.current_stage, epoch=self.epoch, update=self.update, metrics=metrics, **facts)

    def described(self, metrics: Metrics, stage: str) -> dict[str, str]:
        """The metrics of a stage that are printed, as text; what is not a number (None: skipped) as it is."""
        formatter = self.get_formatter(stage)
        shown = formatter.get_relevant_metrics(metrics)
        numbers = {name: value for name, value in shown.items() if isinstance(value, (int, float))}
        others = {name: 'null' if value is None else str(value) for name, value in shown.items() if name not in numbers}
        return {**formatter(numbers), **others}

    def _line(self, total: int | None, start: int) -> ProgressLine:
        title = f'{self.current_stage.capitalize()} | Epoch {self.epoch}/{self.epochs}'
        return ProgressLine(self.logger, title, total=total, every=self.cfg.logging.log_updates, start=start)

    def _report_line(self, line: ProgressLine) -> None:
        """Log the means since the line before; this is where the metrics leave the device."""
        metrics = merged(self._progress.window).compute()
        self._progress.window = Averager()
        facts = line.line(self.described(metrics, self.current_stage))
        self._report('step', metrics, **facts)

    def _log_summary(self, metrics: Metrics) -> None:
        texts = [f'{name} {value}' for name, value in self.described(metrics, self.current_stage).items()]
        self.logger.info(' | '.join([f'{self.current_stage.capitalize()} Summary | Epoch {self.epoch}', *texts]))

    def _report_end(self, worked: bool) -> None:
        last = {stage: metrics for stage, metrics in (self.history[-1] if self.history else {}).items()}
        lines = [f'  {stage}: ' + ', '.join(f'{name} {text}' for name, text in self.described(metrics, stage).items())
                 for stage, metrics in last.items()]
        what = 'Finished' if worked else 'Nothing to do, this XP is finished'
        self.logger.info('\n'.join([f'{what}: {len(self.history)} epochs, {self.update} updates, in {self.folder}',
                                    *lines]))
