"""Layers that keep the magnitude of activations, weights and updates: Karras et al. 2024, arXiv:2312.02696 (EDM2).

The magnitude of a vector is the root mean square of its elements. A weight is normalised whenever it is used, so that
only its direction counts. In training the stored weight is normalised as well, before each update
(`normalize_weights_`), so that the size of an update relative to it is that of the learning rate alone.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from .. import distrib

EPS = 1e-4


def normalize(x: torch.Tensor, dim: int | tuple[int, ...] | None = None) -> torch.Tensor:
    """Divide `x` by its magnitude over some dims (all but the first by default), which then is one; equations 47, 66.

    The magnitude is computed in fp32; the result has the shape and dtype of `x`.
    """
    dim = tuple(range(1, x.dim())) if dim is None else dim
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=torch.float32)
    return x / (norm * math.sqrt(norm.numel() / x.numel()) + EPS).to(x.dtype)


def mp_silu(x: torch.Tensor) -> torch.Tensor:
    """SiLU that keeps the magnitude of normally distributed elements; equation 81."""
    return F.silu(x) / 0.596


def mp_sum(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    """`a` with a share `t` of `b`, of the magnitude of both if they are uncorrelated; equation 88."""
    scale = math.hypot(1 - t, t)
    return a * ((1 - t) / scale) + b * (t / scale)


def mp_cat(a: torch.Tensor, b: torch.Tensor, t: float = 0.5) -> torch.Tensor:
    """`[B, C1, T]` and `[B, C2, T]` to `[B, C1 + C2, T]`, where `b` contributes a share `t`; equation 103."""
    total = math.sqrt(a.shape[1] + b.shape[1]) / math.hypot(1 - t, t)
    return torch.cat([a * (total * (1 - t) / math.sqrt(a.shape[1])), b * (total * t / math.sqrt(b.shape[1]))], dim=1)


class MPConv1d(nn.Module):
    """Convolution over time without bias, `[B, C_in, T]` to `[B, C_out, T]`; the magnitude stays the same.

    Args:
        in_channels (int): C_in.
        out_channels (int): C_out.
        kernel (int): an odd number of frames.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel).normal_())

    def normalized_weight(self) -> torch.Tensor:
        """The weight that is convolved with, `[C_out, C_in, kernel]`: filters of norm one; equations 47 and 66."""
        return normalize(self.weight) / math.sqrt(self.weight[0].numel())

    def forward(self, x: torch.Tensor, gain: torch.Tensor | float = 1.) -> torch.Tensor:
        """Convolve; the output has `gain` times the magnitude."""
        weight = self.normalized_weight() * gain
        return F.conv1d(x, weight.to(x.dtype), padding=weight.shape[-1] // 2)


@torch.no_grad()
def normalize_weights_(module: nn.Module) -> None:
    """Normalise, in place, the stored weights of all `MPConv1d` that are trained (section 2.3, forced normalisation).

    What they compute stays the same. Call it at the beginning of each training step.
    """
    for part in module.modules():
        if isinstance(part, MPConv1d) and part.weight.requires_grad:
            weight = distrib.local(part.weight)  # where it is cut over processes, a process has whole filters
            weight.copy_(normalize(weight))
