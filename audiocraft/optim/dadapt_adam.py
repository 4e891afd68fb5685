"""Adam that finds its own learning rate while it trains."""

import logging
import math
import typing as tp

import torch

from ..utils.errors import UserError

logger = logging.getLogger(__name__)


def _total(values: tp.Iterable[torch.Tensor]) -> torch.Tensor:
    """Sum of 0-dim values in float64, of sharded tensors that of the whole."""
    whole = [value.full_tensor() if hasattr(value, 'full_tensor') else value for value in values]
    return torch.stack([value.double() for value in whole]).sum()


class DAdaptAdam(torch.optim.Optimizer):
    """Adam by D-Adaptation (Defazio and Mishchenko 2023, arXiv:2301.07733, algorithm 5).

    The rate is `d * lr`, where `d` is a growing lower bound of the distance to the solution, estimated from the
    gradients, so that `lr` is 1 times a schedule. `d` is read at `param_groups[0]['d']`.

    Args:
        params: parameters or groups of them.
        lr (float): factor of the found rate, the same in all groups; 0 leaves a group as it is.
        betas (pair of float): decays of the averages of gradients and of their squares.
        eps (float): added to the root of the latter.
        weight_decay (float): share of a weight that is taken away in each update, times the rate.
        decouple (bool): as in AdamW; False adds it to the gradient.
        d0 (float): the first `d`: small against any sensible rate.
        growth_rate (float or None): largest factor by which `d` grows in an update; None for any.
    """

    def __init__(self, params: tp.Any, lr: float = 1., *, betas: tp.Sequence[float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0., decouple: bool = True, d0: float = 1e-6, growth_rate: float | None = None):
        if d0 <= 0:
            raise UserError(f'optim.optimizer.d0 must be more than 0, got {d0}')
        if growth_rate is not None and growth_rate <= 1:
            raise UserError(f'optim.optimizer.growth_rate must be more than 1, or null, got {growth_rate}')
        if 0 < lr < 0.01:
            logger.warning('optim.lr=%g is a factor of the rate that DAdaptAdam finds by itself: 1 is usual', lr)
        self.growth_rate = math.inf if growth_rate is None else growth_rate
        # `d` and `numerator` are of the whole model; they are in the groups because these are saved.
        super().__init__(params, dict(lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay,
                                      decouple=decouple, d=d0, numerator=0.))

    @torch.no_grad()
    def step(self, closure: tp.Any = None) -> tp.Any:
        """One update; `closure`, if given, computes the loss again and returns it.

        Raises:
            UserError: when groups have different rates.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        rate = self._rate()
        if rate > 0 and any(_trained(group) for group in self.param_groups):
            self._adapt(rate)
            for group in self.param_groups:
                for param in _trained(group):
                    self._move(group, param, rate)
        return loss

    def _rate(self) -> float:
        """`d * lr` of the groups that are not at rest."""
        rates = {float(group['lr']) for group in self.param_groups} - {0.}
        if len(rates) > 1:
            raise UserError(f'DAdaptAdam finds one rate for all: the groups may not have different ones, got '
                            f'{sorted(rates)}')
        return self.param_groups[0]['d'] * rates.pop() if rates else 0.

    def _adapt(self, rate: float) -> None:
        """Take the gradients into the averages, and let `d` grow to its new lower bound."""
        parts = [self._gather(group, param, rate) for group in self.param_groups for param in _trained(group)]
        gain, length, size = torch.stack([_total(values) for values in zip(*parts)]).tolist()
        first = self.param_groups[0]
        d, beta2 = first['d'], first['betas'][1]
        numerator = beta2 * first['numerator'] + (1 - beta2) * rate ** 2 * gain
        if size > 0:
            estimate = (length / (1 - beta2) - numerator) / size
            d = max(d, min(estimate, d * self.growth_rate))
        for group in self.param_groups:
            group.update(d=d, numerator=numerator)

    def _gather(self, group: dict[str, tp.Any], param: torch.Tensor, rate: float) -> tuple[torch.Tensor, ...]:
        """Update the averages of one parameter.

        Returns:
            squared norms of the gradient and of the weighted sum of gradients, both in the metric of Adam (divided by
            the root of the second moment), and the latter's sum of magnitudes; 0-dim each.
        """
        state, (beta1, beta2) = self._state_of(param), group['betas']
        grad = tp.cast(torch.Tensor, param.grad)
        if group['weight_decay'] and not group['decouple']:
            grad = grad.add(param, alpha=group['weight_decay'])
        state['exp_avg'].lerp_(grad * rate, 1 - beta1)
        state['exp_avg_sq'].lerp_(grad.square(), 1 - beta2)
        state['sum'].lerp_(grad * rate, 1 - beta2)
        scale = state['exp_avg_sq'].sqrt().add_(group['eps'])
        return (grad.square() / scale).sum(), (state['sum'].square() / scale).sum(), state['sum'].abs().sum()

    def _state_of(self, param: torch.Tensor) -> dict[str, torch.Tensor]:
        state = self.state[param]
        if not state:
            state.update({name: torch.zeros_like(param) for name in ('exp_avg', 'exp_avg_sq', 'sum')})
        return state

    def _move(self, group: dict[str, tp.Any], param: torch.Tensor, rate: float) -> None:
        """The step of one parameter, with the rate of before the adaptation, as it is in `exp_avg` too."""
        state = self.state[param]
        if group['weight_decay'] and group['decouple']:
            param.mul_(1 - group['weight_decay'] * rate)
        param.addcdiv_(state['exp_avg'], state['exp_avg_sq'].sqrt().add_(group['eps']), value=-1)


def _trained(group: dict[str, tp.Any]) -> list[torch.Tensor]:
    return [param for param in group['params'] if param.grad is not None] if group['lr'] else []
