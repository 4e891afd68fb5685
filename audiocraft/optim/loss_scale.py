"""The scale of a float16 loss: large enough that small gradients do not vanish, lowered when one overflows."""

import typing as tp

import torch

from ..utils.errors import UserError


class LossScale:
    """Dynamic loss scaling with a floor (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2).

    The scale is halved at each overflow and doubled after `window` updates without one. Unlike torch's `GradScaler` it
    never leaves `[minimum, maximum]`: below the floor gradients vanish, and a training that wants to go there has
    another fault, which `hits` counts.

    Args:
        init (float): the first scale.
        min, max (float): the bounds.
        window (int): updates without an overflow after which the scale is doubled.
    Attributes:
        value (float): the scale of the next update.
        hits (int): overflows at the floor so far.
    """

    def __init__(self, *, init: float = 32768., min: float = 8192., max: float = 32768., window: int = 1000):
        if not 0 < min <= init <= max:
            raise UserError(f'loss_scale: expected 0 < min <= init <= max, got min {min}, init {init}, max {max}')
        if window < 1:
            raise UserError(f'loss_scale.window must be at least 1, got {window}')
        self.minimum, self.maximum, self.window = float(min), float(max), window
        self.value = float(init)
        self.good = self.hits = 0

    @torch.no_grad()
    def unscale(self, grads: list[torch.Tensor]) -> None:
        """Divide gradients by the scale, in place."""
        if grads:
            torch._foreach_mul_(grads, 1 / self.value)

    def update(self, finite: bool) -> None:
        """Move the scale after an update whose gradients were finite, or not."""
        if finite:
            self.good += 1
            if self.good >= self.window:
                self.value, self.good = min(2 * self.value, self.maximum), 0
            return
        self.hits += self.value <= self.minimum
        self.value, self.good = max(self.value / 2, self.minimum), 0

    def state_dict(self) -> dict[str, tp.Any]:
        """Plain numbers."""
        return {'value': self.value, 'good': self.good, 'hits': self.hits}

    def load_state_dict(self, state: dict[str, tp.Any]) -> None:
        """Go on from what `state_dict` returned, within the bounds of now."""
        self.value = min(max(float(state['value']), self.minimum), self.maximum)
        self.good, self.hits = int(state['good']), int(state['hits'])
