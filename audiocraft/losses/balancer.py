"""A weight decides the share of the gradient that a loss gets, whatever the scale of the loss."""

import typing as tp

import torch

from .. import distrib


class Balanced(tp.NamedTuple):
    """What a balancer gives.

    Attributes:
        loss (torch.Tensor): 0-dim, to call `backward` on once. Its value is the sum of the losses with the factors that
            balance them; its gradient goes through the output alone.
        ratios (dict): `ratio_<name>`, the share of each loss in the sum of the gradients' norms as they would be
            without balancing, 0-dim; empty without `monitor`.
    """
    loss: torch.Tensor
    ratios: dict[str, torch.Tensor]


class _WithGradient(torch.autograd.Function):
    """A scalar of a given value, and with a given gradient."""

    @staticmethod
    def forward(ctx: tp.Any, output: torch.Tensor, gradient: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: tp.Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        gradient, = ctx.saved_tensors
        return grads[0].to(gradient.dtype) * gradient, None, None


class Balancer:
    """Makes the gradients of several losses with respect to the output of a model comparable, and adds them.

    With g_i the gradient of loss i with respect to the output, and <|g_i|> an average of its norm over past calls, the
    output gets the sum of (w_i / sum_j w_j) total_norm g_i / (epsilon + <|g_i|>), over the losses that are given
    (Défossez et al. 2022, arXiv:2210.13438, section 3.4). It takes one backward pass of each loss up to the output,
    and, by `loss.backward()`, a single one through the model.

    The averages count each call once: with accumulation, each micro-batch. What is not finite, a loss or the norm of
    its gradient, is left out of them, while what is returned is not finite either, so that the update can be skipped.

    Args:
        weights (dict or None): of each loss by name, used where a call gives none.
        ema_decay (float): what the averages keep at each call; the first calls weigh no more than others.
        total_norm (float): norm that the gradient of the output would have with only one loss.
        balance_grads (bool): False uses the weights as they are.
        per_batch_item (bool): average the norms of the items of a batch; False takes that of the whole batch.
        epsilon (float): added to the averages.
        monitor (bool): also give the ratios.
    """

    def __init__(self, *, weights: tp.Mapping[str, float] | None = None, ema_decay: float = 0.999,
                 total_norm: float = 1., balance_grads: bool = True, per_batch_item: bool = True,
                 epsilon: float = 1e-12, monitor: bool = False):
        if not 0 <= ema_decay <= 1:
            raise ValueError(f'ema_decay must be between 0 and 1, got {ema_decay}')
        self.weights = dict(weights or {})
        self.ema_decay, self.total_norm, self.epsilon = ema_decay, total_norm, epsilon
        self.balance_grads, self.per_batch_item, self.monitor = balance_grads, per_batch_item, monitor
        self._sums: dict[str, torch.Tensor] = {}  # of norms, and of their weights: [2]

    def __call__(self, losses: tp.Mapping[str, torch.Tensor], output: torch.Tensor,
                 weights: tp.Mapping[str, float] | None = None) -> Balanced:
        """Combine losses.

        Args:
            losses (dict): 0-dim each, made from `output`. Those of weight 0 are left out.
            output (torch.Tensor): what the model made, `[B, ...]`. Where it needs no gradient, the losses are added
                with their weights, and the averages stay as they are.
            weights (dict or None): of each loss by name; None takes those of the constructor.
        Raises:
            ValueError: when a loss has no weight, or does not depend on the output.
        """
        weights = self.weights if weights is None else weights
        if missing := sorted(losses.keys() - weights.keys()):
            raise ValueError(f'no weight for the loss {missing[0]!r}; there are weights for {sorted(weights)}')
        names = sorted(name for name in losses if weights[name])
        if not names:
            return Balanced(output.new_zeros(()), {})
        values = torch.stack([losses[name].reshape(()).float() for name in names])
        factors = values.new_tensor([weights[name] for name in names])
        if not (output.requires_grad and torch.is_grad_enabled()) or not (self.balance_grads or self.monitor):
            return Balanced((factors * values).sum(), {})
        return self._balanced(names, values, factors, output, losses)

    def _balanced(self, names: list[str], values: torch.Tensor, weights: torch.Tensor, output: torch.Tensor,
                  losses: tp.Mapping[str, torch.Tensor]) -> Balanced:
        gradients = [_gradient(name, losses[name], output) for name in names]
        averages = self._average(names, gradients, values)
        scales = weights
        if self.balance_grads:
            scales = weights / weights.sum() * self.total_norm / (self.epsilon + averages)
        combined = sum((scale * gradient for scale, gradient in zip(scales, gradients)), torch.zeros_like(output))
        loss = _WithGradient.apply(output, combined, (scales * values.detach()).sum())
        shares = averages / averages.sum()
        return Balanced(loss, {f'ratio_{name}': share for name, share in zip(names, shares)} if self.monitor else {})

    @torch.no_grad()
    def _average(self, names: list[str], gradients: list[torch.Tensor], values: torch.Tensor) -> torch.Tensor:
        """Update the averages of the norms, over all processes, and return them; NaN where there was none yet."""
        # Signs and clamps have finite gradients where the loss has none: 0 * value is NaN for NaN and infinities.
        norms = [_norms(gradient, self.per_batch_item) + 0 * value for gradient, value in zip(gradients, values)]
        # Summed over processes before they are averaged over time: all processes then hold the same averages.
        sums = distrib.all_reduce(torch.stack([norm.sum() for norm in norms] + [norms[0].new_tensor(len(norms[0]))]))
        means = sums[:-1] / sums[-1]
        old = torch.stack([self._sums.get(name, torch.zeros(2)).to(means) for name in names])
        new = self.ema_decay * old + torch.stack([means, torch.ones_like(means)], dim=1)
        new = torch.where(means.isfinite()[:, None], new, old)
        self._sums.update(zip(names, new.unbind()))
        return new[:, 0] / new[:, 1]

    def state_dict(self) -> dict[str, tp.Any]:
        """The averages, as plain numbers: by name, the sum of norms and the sum of their weights."""
        return {'sums': {name: pair.tolist() for name, pair in self._sums.items()}}

    def load_state_dict(self, state: tp.Mapping[str, tp.Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._sums = {name: torch.tensor(pair) for name, pair in state['sums'].items()}


def _gradient(name: str, loss: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """The gradient of a loss with respect to the output, and to nothing else; the graph stays."""
    found = None
    if loss.requires_grad:
        found, = torch.autograd.grad(loss, [output], retain_graph=True, allow_unused=True)
    if found is None:
        raise ValueError(f'the loss {name!r} does not depend on the output that it is balanced for')
    return found


def _norms(gradient: torch.Tensor, per_batch_item: bool) -> torch.Tensor:
    """Norms of the items of a batch `[B, ...]`, or, `[1]`, that of all."""
    items = gradient.flatten(1) if per_batch_item and gradient.dim() > 1 else gradient.reshape(1, -1)
    return items.float().norm(dim=1)
