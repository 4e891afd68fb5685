"""Normalization layers."""

import torch
import torch.nn.functional as F
from torch import nn


class RMSNorm(nn.Module):
    """Root mean square normalization of the last dim, with a weight per channel.

    The mean is taken in fp32, also for half precision inputs, and the output has the dtype of the input.

    Args:
        dim (int): size of the last dim.
        eps (float): added to the mean square. Default: the machine epsilon of fp32.
    """

    def __init__(self, dim: int, *, eps: float = torch.finfo(torch.float32).eps):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return (y * self.weight).to(x.dtype)


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Layer norm of `x` without affine parameters, then `(1 + scale) * x + shift` (adaptive layer norm).

    Args:
        x (torch.Tensor): `[B, T, D]`.
        shift (torch.Tensor): `[B, T, D]` or `[B, 1, D]`; so is `scale`.
    """
    return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift
