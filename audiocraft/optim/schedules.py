"""Learning-rate schedules as closed forms: the rate is a function of the update number and of nothing else.

`factor(update)` multiplies the base rate of every parameter group; `update` counts from 0 and is the number of updates
that were done before this one. A closed form resumes exactly from one integer, and can be drawn without training.
"""

import math
import typing as tp

import torch
from torch.optim.lr_scheduler import LRScheduler

from ..utils.errors import UserError


def warmup_factor(update: int, warmup: int, start: float | None = None) -> float:
    """Linear warm-up to one at `update == warmup`.

    Args:
        start (float or None): the factor of update 0, such as 0., with which the first update does nothing. None:
            `1 / (warmup + 1)`, which is one step of the line, so that no update is wasted.
    """
    if update >= warmup:
        return 1.
    return (update + 1) / (warmup + 1) if start is None else start + (1 - start) * update / warmup


class Schedule(LRScheduler):
    """Base of the schedules: `lr(update) = base_lr * scale * factor(update)`.

    Subclasses define `factor`. `scale` is 1 until somebody changes the rate of a running job (`set_lr`).

    Args:
        optimizer: its parameter groups hold the base rates.
        total_updates (int): the planned length of the training, in updates.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, total_updates: int):
        if total_updates < 1:
            raise UserError(f'a learning-rate schedule needs total_updates >= 1, got {total_updates}')
        self.total_updates = total_updates
        self.scale = 1.
        super().__init__(optimizer)

    def factor(self, update: int) -> float:
        """What multiplies the base rates at the (0-based) `update`."""
        raise NotImplementedError

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """The rate of each parameter group at the current update."""
        factor = self.scale * self.factor(self.last_epoch)
        return [float(base_lr) * factor for base_lr in self.base_lrs]

    def step(self, epoch: tp.Any = None) -> None:
        """Go to the next update. The argument is accepted because torch's own schedulers have it; it is not used."""
        self.last_epoch += 1
        self._apply()

    def _apply(self) -> None:
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            if isinstance(group['lr'], torch.Tensor):
                group['lr'].fill_(lr)
            else:
                group['lr'] = lr
        self._last_lr = [group['lr'] for group in self.optimizer.param_groups]

    def rescale(self, scale: float) -> None:
        """Multiply the whole schedule by `scale` from now on (1 takes an earlier `rescale` back)."""
        if not (math.isfinite(scale) and scale >= 0):
            raise UserError(f'the scale of a learning rate must be finite and not negative, got {scale}')
        self.scale = float(scale)
        self._apply()

    def set_lr(self, lr: float) -> None:
        """Make `lr` the rate of the first group now; the rest of the schedule and the other groups scale alike."""
        now = float(self.base_lrs[0]) * self.factor(self.last_epoch)
        if now == 0:
            raise UserError(f'the schedule is at zero at update {self.last_epoch}: no factor makes that {lr}')
        self.rescale(lr / now)

    def state_dict(self) -> dict[str, tp.Any]:
        """Position and scale, as plain numbers. Base rates come from the config."""
        return {'update': self.last_epoch, 'scale': self.scale}

    def load_state_dict(self, state_dict: dict[str, tp.Any]) -> None:
        """Return to a position, and put its rate into the optimizer."""
        self.last_epoch = int(state_dict['update'])
        self.rescale(float(state_dict['scale']))


class WarmedUp(Schedule):
    """Base of the schedules that begin with a linear warm-up; subclasses define `after`.

    Args:
        warmup (int): length of the warm-up in updates.
        warmup_start (float or None): the factor that it starts from, see `warmup_factor`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, total_updates: int, *, warmup: int = 0,
                 warmup_start: float | None = None):
        self.warmup = warmup
        self.warmup_start = warmup_start
        super().__init__(optimizer, total_updates)

    def factor(self, update: int) -> float:
        """See `Schedule.factor`."""
        if update < self.warmup:
            return warmup_factor(update, self.warmup, self.warmup_start)
        return self.after(update)

    def after(self, update: int) -> float:
        """The factor at an `update` that is not before the end of the warm-up."""
        raise NotImplementedError

    def position(self, update: int) -> float:
        """How far `update` is between the end of the warm-up (0) and the end of the training (1)."""
        return min(1., (update - self.warmup) / max(1, self.total_updates - self.warmup))


class Constant(WarmedUp):
    """The base rate throughout, after an optional linear warm-up of `warmup` updates."""

    def after(self, update: int) -> float:
        """See `WarmedUp.after`."""
        return 1.


class WarmupSteps(WarmedUp):
    """Linear warm-up, then a drop by `gamma` at every milestone, as MMAudio trains.

    Args:
        milestones: updates at which the rate drops, **counted from the end of the warm-up**: with 1000 updates of
            warm-up, a milestone of 240000 takes effect at update 241000.
        gamma (float): factor of each drop.
        warmup, warmup_start: see `WarmedUp`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, total_updates: int, *, milestones: tp.Sequence[int],
                 gamma: float = 0.1, warmup: int = 0, warmup_start: float | None = None):
        self.milestones = sorted(milestones)
        self.gamma = gamma
        super().__init__(optimizer, total_updates, warmup=warmup, warmup_start=warmup_start)

    def after(self, update: int) -> float:
        """See `WarmedUp.after`."""
        return self.gamma ** sum(update - self.warmup >= milestone for milestone in self.milestones)


class Cosine(WarmedUp):
    """Linear warm-up, then half a cosine from 1 to `min_ratio` at `total_updates`; `min_ratio` afterwards.

    Args:
        min_ratio (float): the lowest factor.
        cycle_length (float): the part of the training after the warm-up that half a cosine takes: with 0.5 the rate
            is lowest in the middle, and back at the end.
        warmup, warmup_start: see `WarmedUp`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, total_updates: int, *, min_ratio: float = 0.,
                 cycle_length: float = 1., warmup: int = 0, warmup_start: float | None = None):
        if cycle_length <= 0:
            raise UserError(f'schedule.cycle_length must be more than 0, got {cycle_length}')
        self.min_ratio = min_ratio
        self.cycle_length = cycle_length
        super().__init__(optimizer, total_updates, warmup=warmup, warmup_start=warmup_start)

    def after(self, update: int) -> float:
        """See `WarmedUp.after`."""
        if update > self.total_updates:
            return self.min_ratio
        phase = self.position(update) / self.cycle_length
        return self.min_ratio + (1 - self.min_ratio) * 0.5 * (1 + math.cos(math.pi * phase))


class Linear(WarmedUp):
    """Linear warm-up, then a straight line from 1 to `min_ratio` at `total_updates`; `min_ratio` afterwards."""

    def __init__(self, optimizer: torch.optim.Optimizer, total_updates: int, *, min_ratio: float = 0., warmup: int = 0,
                 warmup_start: float | None = None):
        self.min_ratio = min_ratio
        super().__init__(optimizer, total_updates, warmup=warmup, warmup_start=warmup_start)

    def after(self, update: int) -> float:
        """See `WarmedUp.after`."""
        return 1 + (self.min_ratio - 1) * self.position(update)


class Polynomial(WarmedUp):
    """Linear warm-up, then `min_ratio + (1 - min_ratio) * (1 - position) ** power`.

    Args:
        min_ratio (float): the factor at `total_updates` and afterwards.
        power (float): 1 is a straight line.
        zero_updates (int): updates of rate 0 before the warm-up, for instance while statistics are gathered.
        warmup, warmup_start: see `WarmedUp`; `warmup` counts from the end of `zero_updates`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, total_updates: int, *, min_ratio: float = 0.,
                 power: float = 2., zero_updates: int = 0, warmup: int = 0, warmup_start: float | None = None):
        self.min_ratio = min_ratio
        self.power = power
        self.zero_updates = zero_updates
        super().__init__(optimizer, total_updates, warmup=warmup, warmup_start=warmup_start)

    def factor(self, update: int) -> float:
        """See `Schedule.factor`."""
        return 0. if update < self.zero_updates else super().factor(update - self.zero_updates)

    def after(self, update: int) -> float:
        """See `WarmedUp.after`."""
        # Counted from the end of zero_updates, as `factor` does.
        length = self.total_updates - self.zero_updates - self.warmup
        left = 1 - min(1., (update - self.warmup) / max(1, length))
        return self.min_ratio + (1 - self.min_ratio) * left ** self.power


class InverseSqrt(WarmedUp):
    """Linear warm-up of `warmup` updates, then `sqrt(warmup / update)`, which has no end.

    Args:
        ahead (int): updates by which the whole curve comes early. AudioCraft's own counts from 1, which is `ahead=1`
            with `warmup_start=0`.
        warmup, warmup_start: see `WarmedUp`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, total_updates: int, *, warmup: int,
                 warmup_start: float | None = None, ahead: int = 0):
        if warmup < 1:
            raise UserError(f'schedule.warmup: inverse_sqrt needs at least one update of warm-up, got {warmup}')
        self.ahead = ahead
        super().__init__(optimizer, total_updates, warmup=warmup, warmup_start=warmup_start)

    def factor(self, update: int) -> float:
        """See `Schedule.factor`."""
        return super().factor(update + self.ahead)

    def after(self, update: int) -> float:
        """See `WarmedUp.after`."""
        return math.sqrt(self.warmup / update)


class Exponential(WarmedUp):
    """Linear warm-up, then multiplied by `gamma` every `every` updates.

    Args:
        gamma (float): factor of `every` updates.
        every (int): their number.
        smooth (bool): a little in each update, `gamma ** (updates / every)`; False: all at once, in steps.
        warmup, warmup_start: see `WarmedUp`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, total_updates: int, *, gamma: float, every: int = 1,
                 smooth: bool = True, warmup: int = 0, warmup_start: float | None = None):
        self.gamma = gamma
        self.every = every
        self.smooth = smooth
        super().__init__(optimizer, total_updates, warmup=warmup, warmup_start=warmup_start)

    def after(self, update: int) -> float:
        """See `WarmedUp.after`."""
        times = (update - self.warmup) / self.every
        return self.gamma ** (times if self.smooth else math.floor(times))
