"""Learning-rate schedules as closed forms: the rate is a function of the update number and of nothing else.

`factor(update)` multiplies the base rate of every parameter group; `update` counts from 0 and is the number of updates
that were done before this one. A closed form resumes exactly from one integer, and can be drawn without training.
"""

import math
import typing as tp

import torch
from torch.optim.lr_scheduler import LRScheduler

from ..utils.errors import UserError


def warmup_factor(update: int, warmup: int) -> float:
    """Linear warm-up `(update + 1) / (warmup + 1)`: never zero at the start, and one at `update == warmup`."""
    return min(1., (update + 1) / (warmup + 1))


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


class Constant(Schedule):
    """The base rate throughout, after an optional linear warm-up of `warmup` updates."""

    def __init__(self, optimizer: torch.optim.Optimizer, total_updates: int, *, warmup: int = 0):
        self.warmup = warmup
        super().__init__(optimizer, total_updates)

    def factor(self, update: int) -> float:
        """See `Schedule.factor`."""
        return warmup_factor(update, self.warmup)


class WarmupSteps(Schedule):
    """Linear warm-up, then a drop by `gamma` at every milestone, as MMAudio trains.

    Args:
        milestones: updates at which the rate drops, **counted from the end of the warm-up**: with 1000 updates of
            warm-up, a milestone of 240000 takes effect at update 241000.
        gamma (float): factor of each drop.
        warmup (int): length of the warm-up in updates.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, total_updates: int, *, milestones: tp.Sequence[int],
                 gamma: float = 0.1, warmup: int = 0):
        self.milestones = sorted(milestones)
        self.gamma = gamma
        self.warmup = warmup
        super().__init__(optimizer, total_updates)

    def factor(self, update: int) -> float:
        """See `Schedule.factor`."""
        drops = sum(update - self.warmup >= milestone for milestone in self.milestones)
        return warmup_factor(update, self.warmup) * self.gamma ** drops


class Cosine(Schedule):
    """Linear warm-up, then half a cosine from 1 to `min_ratio` at `total_updates`; `min_ratio` afterwards."""

    def __init__(self, optimizer: torch.optim.Optimizer, total_updates: int, *, warmup: int = 0, min_ratio: float = 0.):
        self.warmup = warmup
        self.min_ratio = min_ratio
        super().__init__(optimizer, total_updates)

    def factor(self, update: int) -> float:
        """See `Schedule.factor`."""
        if update < self.warmup:
            return warmup_factor(update, self.warmup)
        position = _position(update, self.warmup, self.total_updates)
        return self.min_ratio + (1 - self.min_ratio) * 0.5 * (1 + math.cos(math.pi * position))


class Linear(Schedule):
    """Linear warm-up, then a straight line from 1 to `min_ratio` at `total_updates`; `min_ratio` afterwards."""

    def __init__(self, optimizer: torch.optim.Optimizer, total_updates: int, *, warmup: int = 0, min_ratio: float = 0.):
        self.warmup = warmup
        self.min_ratio = min_ratio
        super().__init__(optimizer, total_updates)

    def factor(self, update: int) -> float:
        """See `Schedule.factor`."""
        if update < self.warmup:
            return warmup_factor(update, self.warmup)
        return 1 + (self.min_ratio - 1) * _position(update, self.warmup, self.total_updates)


class Polynomial(Schedule):
    """Linear warm-up, then `min_ratio + (1 - min_ratio) * (1 - position) ** power`."""

    def __init__(self, optimizer: torch.optim.Optimizer, total_updates: int, *, warmup: int = 0, min_ratio: float = 0.,
                 power: float = 2.):
        self.warmup = warmup
        self.min_ratio = min_ratio
        self.power = power
        super().__init__(optimizer, total_updates)

    def factor(self, update: int) -> float:
        """See `Schedule.factor`."""
        if update < self.warmup:
            return warmup_factor(update, self.warmup)
        left = 1 - _position(update, self.warmup, self.total_updates)
        return self.min_ratio + (1 - self.min_ratio) * left ** self.power


class InverseSqrt(Schedule):
    """Linear warm-up of `warmup` updates, then `sqrt(warmup / update)`, which has no end."""

    def __init__(self, optimizer: torch.optim.Optimizer, total_updates: int, *, warmup: int):
        if warmup < 1:
            raise UserError(f'schedule.warmup: inverse_sqrt needs at least one update of warm-up, got {warmup}')
        self.warmup = warmup
        super().__init__(optimizer, total_updates)

    def factor(self, update: int) -> float:
        """See `Schedule.factor`."""
        if update < self.warmup:
            return warmup_factor(update, self.warmup)
        return math.sqrt(self.warmup / update)


class Exponential(Schedule):
    """Linear warm-up, then multiplied by `gamma` every `every` updates, smoothly (`gamma ** (updates / every)`)."""

    def __init__(self, optimizer: torch.optim.Optimizer, total_updates: int, *, gamma: float, every: int = 1,
                 warmup: int = 0):
        self.gamma = gamma
        self.every = every
        self.warmup = warmup
        super().__init__(optimizer, total_updates)

    def factor(self, update: int) -> float:
        """See `Schedule.factor`."""
        return warmup_factor(update, self.warmup) * self.gamma ** (max(0, update - self.warmup) / self.every)


def _position(update: int, warmup: int, total: int) -> float:
    """How far `update` is between the end of the warm-up (0) and the end of the training (1)."""
    return min(1., (update - warmup) / max(1, total - warmup))
