"""The solver that every task builds on."""

import typing as tp
from contextlib import nullcontext

import omegaconf
import torch
from flashy.formatter import Formatter
from torch import nn

from .. import distrib, optim
from ..utils.config import suggest
from ..utils.errors import UserError
from ..utils.random import Draws, seed_all
from .loop import Loop
from .setup import check_stages, describe_modules, select_device


class StandardSolver(Loop):
    """Trains a model epoch by epoch; a task gives the model, the data and what one step does.

    A subclass defines `build_dataloaders` (fills `self.dataloaders`), `build_model` (makes and registers its modules)
    and `run_step`, and, if they are wanted, `evaluate` and `generate`. The constructor calls the first two, in this
    order, then makes the moving average. An epoch is `optim.updates_per_epoch` updates and `valid`; then it is
    committed (checkpoint, history), then `evaluate` and `generate` run when they are due. See docs/TRAINING.md.

    Args:
        cfg (DictConfig): the whole config of the XP that is entered.
    Attributes:
        device (torch.device): where modules and batches belong.
        update (int): updates done since the start of the training.
        epoch (int): the epoch that is going on, from 1.
        is_training (bool): whether the current step is one of `train`.
        dataloaders (dict): stage to an iterable of batches; one with `iterate(start)` is resumed by its position.
        ema: the moving average of the registered modules, or None.
        best (BestState): the weights with the best score so far.
    """

    def __init__(self, cfg: omegaconf.DictConfig) -> None:
        super().__init__(cfg)
        self.device = select_device(cfg.device)
        self._ema_modules: dict[str, nn.Module] = {}
        check_stages(self, StandardSolver)
        seed_all(self.seed)
        self.build_dataloaders()
        self._check_loaders()
        seed_all(self.seed)  # the initial weights do not depend on what the data drew
        self.build_model()
        self.initialize_ema()
        seed_all(self.seed, 'train', distrib.rank())  # dropout and the like: a stream for each process

    # -- what a task defines -----------------------------------------------------------------------------------------

    def build_dataloaders(self) -> None:
        """Fill `self.dataloaders`: stage to an iterable of batches."""
        raise NotImplementedError

    def build_model(self) -> None:
        """Make the model and what trains it, then `register_stateful`, `register_best`, `register_ema`."""
        raise NotImplementedError

    def best_metric(self) -> str | None:
        """Name of the metric of `valid` that chooses the best state (lower is better); None: the last one is best."""
        return None

    def get_formatter(self, stage_name: str) -> Formatter:
        """How the metrics of a stage are printed."""
        return Formatter(default_format='.4g')

    # -- registration ------------------------------------------------------------------------------------------------

    def register_best(self, *names: str) -> None:
        """Keep the best state of these modules, which are registered as stateful already."""
        self.best.modules |= self._registered('register_best', names)

    def register_ema(self, *names: str) -> None:
        """Average these registered modules if `optim.ema.use`; all stages but train use the average."""
        self._ema_modules |= self._registered('register_ema', names)

    # The name in AudioCraft's own code, beside that of its training document.
    register_best_state = register_best

    def _registered(self, caller: str, names: tp.Sequence[str]) -> dict[str, nn.Module]:
        modules = self.modules
        for name in names:
            if name not in modules:
                raise UserError(f'{caller}("{name}"): no module of that name is registered, call '
                                f'register_stateful("{name}") first. {suggest(name, modules)}'.rstrip())
        return {name: modules[name] for name in names}

    def initialize_ema(self) -> None:
        """Make the moving average from the weights of now."""
        if self._ema_modules and not self.cfg.optim.ema.use:
            self.logger.info('No moving average of the weights (optim.ema.use is false).')
        self.ema = optim.build_ema(self._ema_modules, self.cfg.optim.ema, folder=self.folder / 'ema')

    def _check_loaders(self) -> None:
        needed = () if self.cfg.execute_only else ('train', 'valid')
        missing = [stage for stage in needed if stage not in (self.dataloaders or {})]
        if missing:
            raise UserError(f'{type(self).__name__}.build_dataloaders made no loader for {" and ".join(missing)}: '
                            'set self.dataloaders = {"train": ..., "valid": ...}.')

    # -- tools -------------------------------------------------------------------------------------------------------

    def draws(self, size: int) -> Draws:
        """Random numbers for the `size` items of the current (micro-)batch.

        In train a function of (seed, update), made for the global batch; in the other stages of the seed, the stage and
        how many times it asked before. A second call in a step gives other numbers than the first.
        """
        calls, self._draw_calls = self._draw_calls, self._draw_calls + 1
        if self.is_training and self._rows is not None:
            total, start = self._rows
            key: int | str = f'{self.update}/{calls}' if calls else self.update
            return Draws(self.seed, key, total=total, start=start, size=size, device=self.device)
        key = f'{self._current_stage}/{distrib.rank()}/{calls}'
        return Draws(self.seed, key, total=size, size=size, device=self.device)

    def autocast(self) -> tp.ContextManager[tp.Any]:
        """Mixed precision, as `autocast` and `autocast_dtype` say."""
        if not self.cfg.autocast:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.cfg.autocast_dtype))

    def compile(self, function: tp.Any) -> tp.Any:
        """`torch.compile` when `compile=true`, else the thing itself; a module keeps its parameter names."""
        if not self.cfg.compile:
            return function
        if isinstance(function, nn.Module):
            function.compile()
            return function
        return torch.compile(function)

    def build_updater(self, params: tp.Iterable[nn.Parameter], optimizer: torch.optim.Optimizer,
                      scheduler: tp.Any = None) -> optim.Updater:
        """An `optim.Updater` with `optim.max_norm`, `optim.accumulate` and, for fp16, a loss scaler."""
        scaled = self.cfg.autocast and self.cfg.autocast_dtype == 'float16'
        agree = (lambda ok: distrib.all_reduce(ok.int(), 'min').bool()) if distrib.is_distributed() else None
        return optim.Updater(params, optimizer, scheduler=scheduler, agree=agree, max_norm=self.cfg.optim.max_norm,
                             scaler=torch.amp.GradScaler(self.device.type) if scaled else None,
                             accumulate=self.accumulate)

    def show(self) -> None:
        """Log the modules, their parts and sizes."""
        self.logger.info('%s on %s\n%s', type(self).__name__, self.device, describe_modules(self.modules))
