"""One update of the parameters, written once: accumulate, unscale, check, clip, step, schedule, average."""

import typing as tp

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from .. import distrib


class Updater:
    """Turns losses into updates.

    Call it once per micro-batch. The first `accumulate - 1` calls only add gradients; the last one makes the update:
    average over the processes, unscale, check, clip, `optimizer.step()`, and then, **whether the update was skipped or
    not**, `scheduler.step()` and `ema.step()`: the rate is a function of the update number, which is also the number of
    the batch, so that a skipped update shifts nothing. An update is skipped when a loss or the gradient norm is not
    finite: parameters and optimizer state stay as they are.

    Args:
        params: the trained parameters (frozen ones are ignored).
        optimizer: steps those parameters.
        scheduler: advanced once per update; None keeps the rate.
        scaler: a `torch.amp.GradScaler` for fp16, or None.
        max_norm (float or None): gradients are clipped to this norm (over all parameters); None only measures it.
        accumulate (int): micro-batches per update; each loss is divided by it.
        ema: anything with `step()`, called once per update.
        agree: makes several processes decide alike: takes this process's verdict (bool tensor, True = finite) and
            returns the common one. None with one process.
    """

    def __init__(self, params: tp.Iterable[torch.nn.Parameter], optimizer: torch.optim.Optimizer, *,
                 scheduler: tp.Any = None, scaler: torch.amp.GradScaler | None = None, max_norm: float | None = None,
                 accumulate: int = 1, ema: tp.Any = None,
                 agree: tp.Callable[[torch.Tensor], torch.Tensor] | None = None):
        if accumulate < 1:
            raise ValueError(f'accumulate must be at least 1, got {accumulate}')
        self.params = [param for param in params if param.requires_grad]
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.scaler = scaler
        self.max_norm = max_norm
        self.accumulate = accumulate
        self.ema = ema
        self.agree = agree
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
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def _update(self) -> dict[str, tp.Any]:
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        grads = [param.grad for param in self.params if param.grad is not None]
        distrib.average(grads)
        norm = _grad_norm(grads)
        lr = self.lr
        if finite := self._all_finite(norm):
            if self.max_norm is not None:
                clip_grads_with_norm_(self.params, self.max_norm, norm)
            self._optimizer_step()
        elif self.scaler is not None:
            # Another rank's overflow is not known to this scaler, so that the new scale is set rather than found.
            self.scaler.update(self.scaler.get_scale() * self.scaler.get_backoff_factor())
        self._count(finite)
        return {'grad_norm': norm, 'lr': lr, 'skipped': float(not finite)}

    def _all_finite(self, norm: torch.Tensor) -> bool:
        """The verdict of all processes; reading it is the only synchronisation of an update."""
        assert self._finite is not None
        finite = torch.isfinite(norm) & self._finite.to(norm.device)
        return bool((finite if self.agree is None else self.agree(finite)).item())

    def _optimizer_step(self) -> None:
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()

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
        """Counts (and the scaler's state) as plain numbers. Save between updates: gradients are no part of it."""
        state: dict[str, tp.Any] = {'updates': self.updates, 'skipped': self.skipped,
                                    'skipped_in_row': self.skipped_in_row, 'micro': self.micro}
        if self.scaler is not None:
            state['scaler'] = self.scaler.state_dict()
        return state

    def load_state_dict(self, state: dict[str, tp.Any]) -> None:
        """Restore the counts. A half accumulated update starts again from its first micro-batch."""
        self.zero_grad()
        self.updates = int(state['updates'])
        self.skipped = int(state['skipped'])
        self.skipped_in_row = int(state['skipped_in_row'])
        if self.scaler is not None and 'scaler' in state:
            self.scaler.load_state_dict(state['scaler'])


def _grad_norm(grads: list[torch.Tensor]) -> torch.Tensor:
    """The norm over all gradients, on their device; sharded gradients give the norm of the whole."""
    norm = get_total_norm(grads)
    return norm.full_tensor() if hasattr(norm, 'full_tensor') else norm
