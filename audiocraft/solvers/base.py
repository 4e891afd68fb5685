"""The solver that every task builds on."""

import typing as tp
from contextlib import nullcontext

import omegaconf
import torch
from flashy.formatter import Formatter
from torch import nn

from .. import distrib, optim
from ..modules.activation_checkpoint import checkpoint_blocks
from ..modules.precision import cast_inputs
from ..utils.config import suggest, to_plain
from ..utils.devices import select_device
from ..utils.errors import UserError
from ..utils.random import Draws, seed_all
from .feed import size_of
from .loop import Loop
from .setup import check_batch_size, check_stages, describe_modules, set_precision

M = tp.TypeVar('M', bound=nn.Module)


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
        set_precision(tf32=cfg.tf32, cudnn_benchmark=cfg.cudnn_benchmark)
        self._ema_modules: dict[str, nn.Module] = {}
        check_stages(self, StandardSolver)
        check_batch_size(cfg)
        seed_all(self.seed)
        self.build_dataloaders()
        self._check_loaders()
        seed_all(self.seed)  # the initial weights do not depend on what the data drew
        self.build_model()
        self._parallelize_rest()
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
        """Random numbers for the `size` items of the current (micro-)batch, made for the global batch and then cut.

        In train a function of (seed, update), in the other stages of the seed, the stage and the number of the batch. A
        second call in a step gives other numbers than the first.
        """
        calls, self._draw_calls = self._draw_calls, self._draw_calls + 1
        total, start = self._rows or (size, 0)
        key: int | str = self.update if self.is_training else f'{self._current_stage}/0/{self._draw_batch}'
        key = f'{key}/{calls}' if calls else key
        return Draws(self.seed, key, total=total, start=start, size=size, device=self.device)

    def share_batches(self, batches: tp.Sequence[tp.Any]) -> tp.Iterator[tuple[int, tp.Any]]:
        """Yield `(number, batch)` of those of a list of batches that are for this process, every so-manyth.

        All processes make the same number of steps: one that has run out gets the last batch again, with number -1,
        and its results must not count. `draws` is a function of the number.
        """
        first, world_size = self._draw_batch, distrib.world_size()
        for turn in range(0, len(batches), world_size):
            number = turn + distrib.rank()
            batch = batches[min(number, len(batches) - 1)]
            self._draw_batch, self._draw_calls, self._rows = first + number, 0, (size_of(batch), 0)
            self.check_stop()
            yield (number if number < len(batches) else -1), batch
        self._draw_batch = first + len(batches)

    def once(self, function: tp.Callable[[], tp.Any]) -> tp.Any:
        """Call a function on process 0 alone and return its result, plain data, on all, which wait for it."""
        if not distrib.is_rank_zero():
            self.watchdog.pause()
        result = distrib.from_rank_zero(function)
        self.watchdog.beat(f'{self._current_stage}, after what process 0 did for all')
        return result

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
            # Not `Module.compile`: what DDP puts around `forward` stays outside of the compiled code.
            function.forward = torch.compile(function.forward)  # type: ignore[method-assign]
            return function
        return torch.compile(function)

    def prepare(self, module: M) -> M:
        """Make a module ready to be trained, in place: before its optimizer is built.

        It goes to the device, in `weight_dtype`, with `activation_checkpointing` and `compile` if asked for, and is
        trained by all processes together as the group `distrib` says. Names of weights and methods stay as they are.
        """
        module.to(self.device)
        dtype = getattr(torch, self.cfg.weight_dtype)
        if dtype != torch.float32:
            cast_inputs(module.to(dtype), dtype)
        if self.cfg.activation_checkpointing:
            checkpoint_blocks(distrib.blocks_of(module))
        self.compile(module)
        distrib.parallelize(module, **self._parallel_options())
        return module

    def _parallel_options(self) -> dict[str, tp.Any]:
        return {key: value for key, value in to_plain(self.cfg.distrib).items() if key != 'timeout'}

    def _parallelize_rest(self) -> None:
        """A solver that knows of neither `prepare` nor `Updater` is trained by all processes as well."""
        if any(isinstance(value, optim.Updater) for value in vars(self).values()):
            return
        for module in self.modules.values():
            distrib.parallelize(module, 'ddp')

    def build_updater(self, params: tp.Iterable[nn.Parameter], optimizer: torch.optim.Optimizer,
                      scheduler: tp.Any = None) -> optim.Updater:
        """An `optim.Updater` with `optim.max_norm`, `optim.accumulate` and, for float16, `loss_scale`."""
        half = (self.cfg.autocast and self.cfg.autocast_dtype == 'float16') or self.cfg.weight_dtype == 'float16'
        return optim.Updater(params, optimizer, scheduler=scheduler, max_norm=self.cfg.optim.max_norm,
                             loss_scale=optim.LossScale(**to_plain(self.cfg.loss_scale)) if half else None,
                             accumulate=self.accumulate)

    def show(self) -> None:
        """Log the modules, their parts and sizes."""
        self.logger.info('%s on %s\n%s', type(self).__name__, self.device, describe_modules(self.modules))
