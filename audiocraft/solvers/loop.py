"""The order of things: run, epoch, stage, update. What a solver holds and saves is in `resumable.py`."""

import math
import time
import typing as tp
from contextlib import nullcontext

import torch

from .. import distrib
from ..data.sampler import Part
from ..utils.averager import Averager
from ..utils.config import suggest
from ..utils.errors import UserError
from ..utils.random import fork_rng
from ..utils.signals import Stopped
from . import commands
from .control import Command
from .feed import Feed, micro_batches, own_part, reseed, size_of
from .progress import merged
from .results import LATER_STAGES, Metrics
from .resumable import Resumable
from .setup import check_same_length

SINGLE_STAGES = ('valid', 'evaluate', 'generate')


class Loop(Resumable):
    """The loops that every task shares, around the stages that it defines."""

    # -- what a task defines -----------------------------------------------------------------------------------------

    def run_step(self, idx: int, batch: tp.Any, metrics: Metrics) -> Metrics | None:
        """Do one step on a batch, or on a micro-batch of it with `optim.accumulate` > 1.

        Args:
            idx (int): number of the batch in the stage.
            batch: what the loader gave, or a part of it.
            metrics (dict): empty; fill it with numbers or tensors of one element, or return another dict.
        """
        raise NotImplementedError

    def train(self) -> Metrics | None:
        """Train stage: one epoch."""
        return self.common_train_valid('train')

    def valid(self) -> Metrics | None:
        """Valid stage: a pass over held-out data, whose metrics choose the best state."""
        return self.common_train_valid('valid')

    def evaluate(self) -> Metrics | None:
        """Evaluate stage: slower metrics, of the best state."""
        raise NotImplementedError

    def generate(self) -> Metrics | None:
        """Generate stage: samples of the best state."""
        raise NotImplementedError

    def check_needs(self) -> None:
        """Called before the first update of a run, and before a single stage: the place to raise `UserError` for what
        the stages to come will need and do not find, rather than after hours of training."""

    # -- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train from the newest checkpoint, or from the start, to the end. A finished XP only reports."""
        with self._running():
            restored = self.restore(check=True)
            if self.cfg.continue_from:
                self._continue_from(restored)
            distrib.from_rank_zero(lambda: self._results.rewind(self.update))
            self._publish_history()
            self._open_reporter()
            if len(self.history) < self.epochs:
                self.check_needs()
                self._status('running')
            worked = bool(self.history) and not self._in_epoch and self._run_later_stages()
            while len(self.history) < self.epochs:
                self.run_epoch()
                worked = True
            self._report_end(worked)

    def run_epoch(self) -> None:
        """Train, validate, commit; then evaluate and generate if they are due."""
        if 'train' not in self._pending_metrics:
            self.run_stage('train', self.train)
            if self.ema is not None and len(self.history) + 1 >= self.epochs:
                self.ema.finish()
        with self.swap_ema_state():
            self.run_stage('valid', self.valid)
            self._update_best(self._pending_metrics['valid'])
        self.commit()
        self._status('running')
        self._run_later_stages()

    def run_one_stage(self, stage_name: str) -> Metrics:
        """Run `valid`, `evaluate` or `generate` on the best state, in the folder of the XP (`execute_only`).

        Results go to `<stage>/<update>.json`; no epoch is added. Raises `UserError` when there are no weights.
        """
        if stage_name not in SINGLE_STAGES:
            raise UserError(f'execute_only={stage_name}: expected one of {", ".join(SINGLE_STAGES)}. '
                            f'{suggest(stage_name, SINGLE_STAGES)}'.rstrip())
        with self._running():
            if not self.restore(check=True):
                if not self.cfg.continue_from or self.cfg.execute_inplace:
                    raise UserError(f'execute_only={stage_name}: no checkpoint in {self.folder / "checkpoints"}. Train '
                                    'this XP first, or name the weights with continue_from=//sig/SIGNATURE.')
                self._continue_from(restored=False)
            self.check_needs()
            self._committed = True
            with self.swap_best_state():
                metrics = self.run_stage(stage_name, getattr(self, stage_name))
            self._keep_results(stage_name, metrics)
            return metrics

    def run_stage(self, stage_name: str, method: tp.Callable, *args: tp.Any, **kwargs: tp.Any) -> Metrics:
        """Run one stage; all but train without gradients and with fixed seeds, apart from the draws of training."""
        training = stage_name == 'train'
        self.watchdog.beat(f'the start of {stage_name}')
        begin, self._draw_batch, self._draw_calls, self._rows = time.perf_counter(), 0, 0, None
        self._current_stage, self._current_formatter = stage_name, self.get_formatter(stage_name)
        apart = nullcontext() if training else fork_rng(self.seed, stage_name, distrib.rank())
        try:
            with torch.set_grad_enabled(training), apart:
                metrics: Metrics = dict(method(*args, **kwargs) or {})
            metrics['duration'] = time.perf_counter() - begin + (self._progress.seconds if training else 0.)
            self._pending_metrics[stage_name] = metrics
            self._report('stage', metrics)
            self._log_summary(metrics)
        finally:
            self._current_stage = self._current_formatter = None
            self.is_training = False
        self.watchdog.beat(f'the end of {stage_name}')
        return metrics

    def should_run_stage(self, stage_name: str) -> bool:
        """Whether evaluate or generate is due in this epoch: each `every` epochs and in the last one; never if 0."""
        every = self.cfg[stage_name].every
        return every != 0 and (self.epoch == self.epochs or bool(every and self.epoch % every == 0))

    def _run_later_stages(self) -> bool:
        """Run the due stages of the committed epoch whose results are not there; return whether there was one."""
        self._committed, ran = True, False
        try:
            for stage in LATER_STAGES:
                if self.should_run_stage(stage) and not self._is_done(stage):
                    self._writer.wait()  # results never belong to an epoch that is not on disk
                    with self.swap_best_state():
                        metrics = self.run_stage(stage, getattr(self, stage))
                    self._keep_results(stage, metrics)
                    ran = True
        finally:
            self._committed = False
        return ran

    def _is_done(self, stage: str) -> bool:
        # What process 0 sees counts: files come later into the view of another machine.
        return distrib.from_rank_zero(lambda: self._results.is_done(stage, self.update))

    def _keep_results(self, stage: str, metrics: Metrics) -> None:
        self._pending_metrics.pop(stage)
        if distrib.is_rank_zero():
            self._results.write(stage, self.update, epoch=self.epoch, whole_epoch=not self._in_epoch,
                                weights=self.checkpoint_name, metrics=metrics)
        self._publish_history()
        if distrib.is_rank_zero():
            self.on_results(stage)

    # -- updates -----------------------------------------------------------------------------------------------------

    def common_train_valid(self, split: str, **kwargs: tp.Any) -> Metrics:
        """Run `run_step` over an epoch of updates (`train`), or once over the loader of another stage.

        Returns the means of the metrics over the items. Outside of `train`, one non-finite value makes its mean NaN.
        """
        self.is_training = split == 'train'
        for module in self.modules.values():
            module.train(self.is_training)
        return self._train_epoch() if self.is_training else self._one_pass(split)

    def _train_epoch(self) -> Metrics:
        progress, total = self._progress, self.updates_per_epoch
        self._began = time.perf_counter()
        line = self._line(total, progress.done)
        try:
            while progress.done < total:
                batch, part = own_part(self.dataloaders['train'], line.wait(self._train_feed()))
                metrics = self._step(progress.done, batch, part, progress.mean, progress.window)
                self.update += 1
                progress.done += 1
                if self.ema is not None:
                    self.ema.step()
                self._count_skipped(metrics, batch)
                if line.step():
                    self._report_line(line)
                self._after_update()
        finally:
            line.close()
        return merged(progress.mean).compute()

    def _one_pass(self, split: str) -> Metrics:
        loader = self.dataloaders.get(split)
        if loader is None:
            raise UserError(f'There is no loader for {split}: set self.dataloaders["{split}"] in build_dataloaders.')
        check_same_length(loader, split)
        reseed(loader, self.seed, 0)
        mean = Averager()
        line = self._line(len(loader) if hasattr(loader, '__len__') else None, 0)
        try:
            for idx, batch in enumerate(loader):
                self._step(idx, *own_part(loader, batch), mean)
                self._draw_batch += 1
                if line.step():
                    line.line(self.described(merged(mean).compute(), self.current_stage))
                self.check_stop()
        finally:
            line.close()
        whole = merged(mean)
        return {name: math.nan if name in whole.nonfinite else value for name, value in whole.compute().items()}

    def _step(self, idx: int, batch: tp.Any, part: Part, *averagers: Averager) -> Metrics:
        """Run `run_step` on our part of a batch, in micro-batches when training; return the metrics of the last one."""
        pieces = micro_batches(batch, self.accumulate if self.is_training else 1)
        start = part.start
        metrics: Metrics = {}
        for number, piece in enumerate(pieces, 1):
            self._rows, self._draw_calls = (part.total, start), 0
            metrics = {}
            # Gradients travel once per update, with the last micro-batch.
            waiting = distrib.no_sync(self._trained_together) if number < len(pieces) else nullcontext()
            with waiting:
                returned = self.run_step(idx, piece, metrics)
            metrics = metrics if returned is None else returned
            items = size_of(piece)
            for averager in averagers:
                averager.update(metrics, 0 if part.padding else items)
            start += items
        return metrics

    def _count_skipped(self, metrics: Metrics, batch: tp.Any) -> None:
        """Stop when too many updates in a row were skipped for a loss or gradient that is not finite."""
        self._progress.skipped = self._progress.skipped + 1 if metrics.get('skipped') else 0
        if self._progress.skipped:
            limit = self.cfg.max_skipped
            own = [str(name) for name in getattr(batch, 'ids', None) or [f'batch {self.update - 1}']]
            names = ', '.join(dict.fromkeys(name for ids in distrib.gather(own) for name in ids))
            self.logger.warning('Update %d was skipped: its loss or gradient is not finite (%s).', self.update, names)
            if limit and self._progress.skipped >= limit:
                raise UserError(f'{self._progress.skipped} updates in a row were skipped, up to update {self.update}: '
                                f'their loss or gradients are not finite. The items of the last one: {names}. Look at '
                                'these data, or lower optim.lr (max_skipped is how many are borne).')

    def _train_feed(self) -> Feed:
        if self._feed is None:
            self._feed = Feed(self.dataloaders['train'], seed=self.seed, update=self.update,
                              position=self._feed_position)
        return self._feed

    # -- between two updates, or two batches -------------------------------------------------------------------------

    def _after_update(self) -> None:
        self.watchdog.beat(f'update {self.update}')
        self._writer.check()
        for command in self._heard():
            commands.execute(self, command)
        if self._save_asked or (self.save_every and self.update % self.save_every == 0):
            self._write_checkpoint()
        self._leave_if_asked()

    def check_stop(self) -> None:
        """Leave the stage if a stop was asked for, and hear commands; loops of a task call it between batches."""
        self.watchdog.beat(f'{self.current_stage} after update {self.update}')
        for command in self._heard():
            commands.execute_in_stage(self, command)
        self._leave_if_asked()

    def _heard(self) -> list[Command]:
        """The commands that are due; all processes learn of them, and of a signal that one of them got."""
        texts = self.control.poll()
        if distrib.agree(bool(texts) or self.stop.requested is not None):
            everyone = distrib.gather((self.stop.requested, texts))
            for signal_name, _ in everyone:
                if signal_name is not None:
                    self.ask_to_stop(signal_name)
            texts = everyone[0][1]
        return self.control.accept(texts, self.update) if texts or self.control.due(self.update) else []

    def ask_to_stop(self, reason: str) -> None:
        """End the run at the next safe point; to be called on all processes alike."""
        self.stop.request(reason)
        self._leaving = True

    def _leave_if_asked(self) -> None:
        # Not by `self.stop`: a signal that one process got since they asked each other is for the next time.
        if self._leaving:
            raise Stopped
