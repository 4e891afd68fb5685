"""What a solver holds, and how it is saved and found again."""

import functools
import math
import time
import typing as tp
from contextlib import contextmanager, nullcontext
from pathlib import Path

import omegaconf
from torch import nn

from .. import distrib
from ..launch.slurm import requeue_after_save
from ..utils.checkpoint import Checkpoint, load_latest, read_checkpoint
from ..utils.config import suggest, to_plain, to_yaml
from ..utils.errors import UserError
from ..utils.lock import XPLock
from ..utils.random import rng_state, seed_all, set_rng_state
from ..utils.secrets import hide_config
from ..utils.signals import StopFlag, Stopped
from ..utils.watchdog import Watchdog
from . import state as states
from .continuing import go_on
from .control import Control
from .feed import Feed
from .progress import Progress
from .reporting import Reporting
from .results import Metrics
from .setup import best_metric_name


class Resumable(Reporting):
    """A Flashy solver whose state is whole at any update: an interrupted run, resumed, equals the uninterrupted one."""

    def __init__(self, cfg: omegaconf.DictConfig) -> None:
        super().__init__(cfg)
        self.seed = int(cfg.seed)
        self.accumulate = int(cfg.optim.accumulate)
        self.save_every = cfg.checkpoint.save_every  # read at each update, and reading a config is slow
        self.is_training = False
        self.dataloaders: dict[str, tp.Any] = {}
        self.ema: tp.Any = None
        self.stop = StopFlag()
        self.control = Control(self.folder, listen=distrib.is_rank_zero())
        self.watchdog = Watchdog(self.folder, distrib.rank(), cfg.watchdog.timeout)
        self._config_text = to_yaml(hide_config(to_plain(cfg)))
        self._feed: Feed | None = None
        self._feed_position: dict[str, int] | None = None
        self._alone = self._save_asked = self._leaving = False
        self._saved: tp.Any = None  # the point at which the last checkpoint was made
        self._began = time.perf_counter()
        self._rows: tuple[int, int] | None = None  # size of the global batch, first row of the micro-batch
        self._draw_batch = self._draw_calls = 0

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The registered modules by name."""
        return states.stateful_modules(self.stateful)

    @functools.cached_property
    def _trained_together(self) -> list[nn.Module]:
        """The modules whose gradients travel during the backward pass; kept, since each micro-batch asks."""
        return [module for module in self.modules.values() if distrib.is_parallel(module)]

    @property
    def checkpoint_name(self) -> str:
        """Which weights the stages after an epoch use, in words."""
        return f'update {self.update}' if self.best.states is None else f'best, of update {self.best.update}'

    # -- saving ------------------------------------------------------------------------------------------------------

    @property
    def _in_epoch(self) -> bool:
        return bool(self._progress.done or self._pending_metrics)

    def _point(self) -> tp.Any:
        return self.update, len(self.history), self._progress.done, sorted(self._pending_metrics)

    def save(self) -> None:
        """Write a checkpoint: now, or, in the middle of an update, as soon as it is done."""
        if self._current_stage is None:
            self._write_checkpoint()
        else:
            self._save_asked = True

    def _write_checkpoint(self) -> None:
        """Begin to write a checkpoint; all processes call it at the same update."""
        progress = self._progress.state_dict()
        if self._current_stage == 'train':
            progress['seconds'] += time.perf_counter() - self._began
        ranks = distrib.gather({**rng_state(), **self._progress.means()}, everywhere=False)
        if distrib.is_rank_zero() or states.is_cut(self):
            models, state = states.collect(self)
        if distrib.is_rank_zero():
            feed = self._feed_position if self._feed is None else self._feed.state_dict()
            state |= {'progress': progress, 'pending': self._pending_metrics, 'feed': feed,
                      'control': self.control.state_dict()}
            self._writer.save(self.update, models=models, state=state, config=self._config_text,
                              rank_states=dict(enumerate(ranks)))
        self._save_asked, self._saved = False, self._point()

    def commit(self, save_checkpoint: bool = True) -> None:
        """End the epoch: its metrics enter the history, a checkpoint is written, then `history.json`."""
        self.history.append(self._pending_metrics)
        self._pending_metrics = {}
        self._progress = Progress(skipped=self._progress.skipped)
        if save_checkpoint:
            self._write_checkpoint()
        self._publish_history()

    def restore(self, check: bool = False) -> bool:
        """Load the newest whole checkpoint of this XP; return whether there is one.

        Args:
            check (bool): refuse when the config or the data has changed since.
        Raises:
            UserError: there are checkpoints but none is whole, or (with `check`) something changed.
        """
        checkpoint = self._newest_checkpoint()
        if checkpoint is None:
            self.history.clear()
            return False
        if check:
            states.check_config(checkpoint, self.cfg, self.xp.dora.is_excluded, self.cfg.allow_config_change)
            states.check_data(checkpoint, self._facts_of_data)
        states.restore(self, checkpoint)
        self._restore_progress(checkpoint)
        self._results.add_to(self.history)
        self._saved = self._point()
        epoch = min(self.epoch, self.epochs)
        self.logger.info('Restored %s: epoch %d, update %d.', checkpoint.path, epoch, self.update)
        return True

    def _newest_checkpoint(self) -> Checkpoint | None:
        """The checkpoint that process 0 chooses; it alone sets damaged ones aside."""
        found: list[Checkpoint | None] = []

        def choose() -> str | None:
            found.append(load_latest(self.folder / 'checkpoints', set_aside=self._alone))
            return None if found[0] is None else str(found[0].path)
        path = distrib.from_rank_zero(choose)
        return found[0] if found else None if path is None else read_checkpoint(Path(path))

    def _restore_progress(self, checkpoint: Checkpoint) -> None:
        """Continue means, position and random generators, with as many processes as before or another number."""
        state, ranks = checkpoint.state, checkpoint.rank_states
        own = ranks.get(distrib.rank(), {}) if len(ranks) == distrib.world_size() else {}
        self._progress.load_state_dict(state['progress'], own if 'mean' in own else None)
        self._pending_metrics = dict(state['pending'])
        self._feed, self._feed_position = None, state['feed']
        self.control.load_state_dict(state.get('control') or self.control.state_dict())
        if own:
            set_rng_state(own)
        else:
            seed_all(self.seed, 'train', distrib.rank(), self.update)

    def data_facts(self) -> dict[str, tp.Any]:
        """What tells this data from other data (plain values by stage); recorded, and compared when a run resumes."""
        mixtures = {stage: getattr(loader, 'mixture', None) for stage, loader in self.dataloaders.items()}
        return {stage: {f'{index} {part["name"]}': part for index, part in enumerate(mixture.facts['sources'])}
                for stage, mixture in mixtures.items() if mixture is not None}

    @functools.cached_property
    def _facts_of_data(self) -> dict[str, tp.Any]:
        return self.data_facts()

    def _continue_from(self, restored: bool) -> None:
        if restored:
            self.logger.info('continue_from is not used: this XP has a checkpoint of its own.')
            return
        training = states.continue_from(self, self.cfg.continue_from)
        self.initialize_ema()
        if training is not None:
            go_on(self, training)
            if not self.cfg.execute_only:
                self._write_checkpoint()  # from here on the file is not needed any more

    def initialize_ema(self) -> None:
        """Make the moving average from the weights of now."""
        raise NotImplementedError

    # -- alone in the folder, until the end or a signal ----------------------------------------------------------------

    @contextmanager
    def _running(self) -> tp.Iterator[None]:
        """Hold the lock of the XP and listen to signals and commands; a stop saves what is not saved and ends."""
        lock = XPLock(self.folder)
        distrib.from_rank_zero(lock.acquire)
        self._alone = True
        state = 'failed'
        try:
            with self.stop, self.watchdog, self.control:
                try:
                    yield
                    self._writer.wait()
                    state = 'finished' if len(self.history) >= self.epochs else 'stopped'
                except Stopped:
                    self._save()
                    state = 'stopped'
                    self._exit()
        finally:
            self._alone = self._committed = False
            self._close()
            if self._working:
                self._status(state)
            if distrib.is_rank_zero():
                lock.release()

    def _save(self) -> None:
        """Save what is not saved yet, and wait until all of it is on disk."""
        if self._saved != self._point():
            self._write_checkpoint()
        self._writer.wait()
        distrib.barrier()

    def _exit(self) -> tp.NoReturn:
        signal_name = self.stop.requested or 'a stop'
        self.logger.info('Stopped by %s after update %d, which is saved: the same command goes on from there.',
                         signal_name, self.update)
        self.on_stop(signal_name)
        if distrib.is_rank_zero():
            requeue_after_save(signal_name, self.stop.previous)
        raise SystemExit(self.stop.exit_code)

    def on_stop(self, signal_name: str) -> None:
        """Called after a run that was asked to stop has saved itself, before the process ends."""

    def on_results(self, stage_name: str) -> None:
        """Called on process 0 after the results of a single stage, or of evaluate and generate, were written."""

    def _close(self) -> None:
        if self._feed is not None:
            self._feed_position = self._feed.state_dict()
            self._feed.close()
            self._feed = None
        if self._reporter is not None:
            self._reporter.close()
            self._reporter = None
        self._writer.finish()

    # -- best and average --------------------------------------------------------------------------------------------

    def _update_best(self, metrics: Metrics) -> None:
        name = best_metric_name(self)
        if name is not None and name not in metrics:
            raise UserError(f'best_metric() is "{name}", which valid does not return: it has '
                            f'{", ".join(metrics)}. {suggest(name, metrics)}'.rstrip())
        score = None if name is None else float(metrics[name])
        if not self.best.offer(score, update=self.update, epoch=self.epoch):
            if not math.isfinite(score or 0.):
                self.logger.warning('The %s of valid is not finite: these weights are not the best ones.', name)
        elif name is not None:
            self.logger.info('New best state: %s %.6g at update %d.', name, score, self.update)

    def swap_ema_state(self) -> tp.ContextManager[None]:
        """Within the context the modules hold the moving average, if there is one."""
        return nullcontext() if self.ema is None else self.ema.swapped()

    def swap_best_state(self) -> tp.ContextManager[None]:
        """Within the context the modules hold the best state, or the moving average while there is none."""
        return self.best.swapped() if self.best.states else self.swap_ema_state()
