"""The straight path between noise and data, its velocity, and the loss (Lipman et al., arXiv 2210.02747).

Time runs from noise at 0 to data at 1. `x0` is noise, `x1` data, both `[B, ...]`; `min_sigma` is the noise left at 1.
"""

import torch


def interpolate(x0: torch.Tensor, x1: torch.Tensor, t: torch.Tensor, min_sigma: float = 0.) -> torch.Tensor:
    """Where the path is at the times `t` `[B]`: `(1 - (1 - min_sigma) t) x0 + t x1`."""
    t = t.view(-1, *[1] * (x1.dim() - 1))
    return (1 - (1 - min_sigma) * t) * x0 + t * x1


def velocity(x0: torch.Tensor, x1: torch.Tensor, min_sigma: float = 0.) -> torch.Tensor:
    """The derivative of the path by time, the same at all times: `x1 - (1 - min_sigma) x0`."""
    return x1 - (1 - min_sigma) * x0


def logit_normal(z: torch.Tensor, mean: float = 0., scale: float = 1.) -> torch.Tensor:
    """Times in (0, 1) from standard normal draws: most of them in the middle (Esser et al., arXiv 2403.03206)."""
    return torch.sigmoid(z * scale + mean)


def flow_loss(pred: torch.Tensor, x0: torch.Tensor, x1: torch.Tensor, min_sigma: float = 0.) -> torch.Tensor:
    """Mean squared error of a predicted velocity `[B, ...]` for each item, `[B]`."""
    return (pred - velocity(x0, x1, min_sigma)).square().flatten(1).mean(1)


def binned(loss: torch.Tensor, t: torch.Tensor, bins: int = 25) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of the losses `[B]` of the items whose times `[B]` fall into each of `bins` equal parts of [0, 1].

    Returns:
        sums and counts, both `[bins]`, of the dtype of `loss`.
    """
    index = (t * bins).long().clamp(0, bins - 1)
    zeros = torch.zeros(bins, dtype=loss.dtype, device=loss.device)
    return zeros.index_add(0, index, loss), zeros.index_add(0, index, torch.ones_like(loss))
