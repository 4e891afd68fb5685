"""One update of the parameters, written once: accumulate, unscale, check, clip, step, schedule, average."""

import typing as tp

import torch

from .. import distrib
from .loss_scale import LossScale


class Updater:
    """Turns losses into updates.

    Call it once per micro-batch. The first `accumulate - 1` calls only add gradients; the last one makes the update:
    average over the processes what the backward pass did not (see `distrib.parallelize`), unscale, check, clip,
    `optimizer.step()`, and then, **whether the update was skipped or not**, `scheduler.step()` and `ema.step()`: the
    rate is a function of the update number, which is also the number of the batch, so that a skipped update shifts
    nothing. An update is skipped, on all processes alike, when a loss or the gradient norm is not finite: parameters
    and optimizer state stay as they are.

    Args:
        params: the trained parameters (frozen ones are ignored).
        optimizer: steps those parameters.
        scheduler: advanced once per update; None keeps the rate.
        loss_scale (LossScale or None): for float16.
        max_norm (float or None): gradients are clipped to this norm (over all parameters); None only measures it.
        accumulate (int): micro-batches per update; each loss is divided by it.
        ema: anything with `step()`, called once per update.
    """

    def __init__(self, params: tp.Iterable[torch.nn.Parameter], optimizer: torch.optim.Optimizer, *,
                 scheduler: tp.Any = None, loss_scale: LossScale | None = None, max_norm: float | None = None,
                 accumulate: int = 1, ema: tp.Any = None):
        if accumulate < 1:
            raise ValueError(f'accumulate must be at least 1, got {accumulate}')
        self.params = [param for param in params if param.requires_grad]
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.loss_scale = loss_scale
        self.max_norm = max_norm
        self.accumulate = accumulate
        self.ema = ema
        self.updates = 0
        self.skipped = 0
        self.skipped_in_row = 0
        self.micro = 0
        self._finite: torch.Tensor | None = None

    @property
    def lr(self) -> float:
        """The rate of the first parameter group, which the next update will use."""
        return float(self.optimizer.param_groups[0]['lr'])

    def __call__(self, loss: torch.Tensor) -> dict[str, tp.Any]:
        """Use one micro-batch's scalar `loss` (its mean).

        Returns:
            `{}` while accumulating; after an update `grad_norm` (0-dim tensor, before clipping), `lr` (float, the rate
            that was used) and `skipped` (1. or 0.).
        """
        self._backward(loss)
        self.micro += 1
        if self.micro < self.accumulate:
            return {}
        return self._update()

    def _backward(self, loss: torch.Tensor) -> None:
        finite = torch.isfinite(loss.detach())
        self._finite = finite if self._finite is None else self._finite & finite
        loss = loss / self.accumulate if self.accumulate > 1 else loss
        (loss if self.loss_scale is None else loss * self.loss_scale.value).backward()

    def _update(self) -> dict[str, tp.Any]:
        trained = [param for param in self.params if param.grad is not None]
        distrib.average([tp.cast(torch.Tensor, param.grad) for param in trained if not distrib.is_reduced(param)])
        grads = [tp.cast(torch.Tensor, param.grad) for param in trained]
        parts = [distrib.local(grad) for grad in grads]
        if self.loss_scale is not None:
            self.loss_scale.unscale(parts)
        norm = distrib.total_norm(grads)
        made: dict[str, tp.Any] = {'grad_norm': norm, 'lr': self.lr}
        finite = self._all_finite(norm)
        if finite:
            _clip(parts, norm, self.max_norm)
            self.optimizer.step()
        if self.loss_scale is not None:
            made['loss_scale'] = self.loss_scale.value
            self.loss_scale.update(finite)
        self._count(finite)
        return {**made, 'skipped': float(not finite)}

    def _all_finite(self, norm: torch.Tensor) -> bool:
        """The verdict of all processes; reading it is the only synchronisation of an update."""
        assert self._finite is not None
        finite = torch.isfinite(norm) & self._finite.to(norm.device)
        return not distrib.agree(not finite.item())

    def _count(self, finite: bool) -> None:
        if self.scheduler is not None:
            self.scheduler.step()
        self.zero_grad()
        self.updates += 1
        self.skipped += not finite
        self.skipped_in_row = 0 if finite else self.skipped_in_row + 1
        if self.ema is not None:
            self.ema.step()

    def zero_grad(self) -> None:
        """Forget the gradients of an unfinished update."""
        self.optimizer.zero_grad(set_to_none=True)
        self.micro = 0
        self._finite = None

    def state_dict(self) -> dict[str, tp.Any]:
        """Counts (and the loss scale) as plain numbers. Save between updates: gradients are no part of it."""
        state: dict[str, tp.Any] = {'updates': self.updates, 'skipped': self.skipped,
                                    'skipped_in_row': self.skipped_in_row, 'micro': self.micro}
        if self.loss_scale is not None:
            state['loss_scale'] = self.loss_scale.state_dict()
        return state

    def load_state_dict(self, state: dict[str, tp.Any]) -> None:
        """Restore the counts. A half accumulated update starts again from its first micro-batch."""
        self.zero_grad()
        self.updates = int(state['updates'])
        self.skipped = int(state['skipped'])
        self.skipped_in_row = int(state['skipped_in_row'])
        if self.loss_scale is not None and 'loss_scale' in state:
            self.loss_scale.load_state_dict(state['loss_scale'])


def _clip(grads: list[torch.Tensor], norm: torch.Tensor, max_norm: float | None) -> None:
    """Scale gradients, whose norm is `norm`, to `max_norm` at most."""
    if max_norm is not None and grads:
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.)
        torch._foreach_mul_(grads, factor.to(grads[0].device))
