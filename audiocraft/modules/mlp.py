"""Gated feed-forward layers."""

import torch
import torch.nn.functional as F
from torch import nn

from .conv import ChannelLastConv1d


def gated_width(hidden: int, *, multiple_of: int = 256) -> int:
    """Width of a gated layer with about the parameters of a plain one of width `hidden`: 2/3, rounded up."""
    width = int(2 * hidden / 3)
    return multiple_of * ((width + multiple_of - 1) // multiple_of)


class MLP(nn.Module):
    """SwiGLU feed-forward layer, `w2(silu(w1 x) * w3 x)`, without biases.

    Args:
        dim (int): size of input and output.
        hidden_dim (int): width that a layer without gate would have, see `gated_width`.
    """

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        width = gated_width(hidden_dim)
        self.w1 = self._layer(dim, width)
        self.w2 = self._layer(width, dim)
        self.w3 = self._layer(dim, width)

    def _layer(self, in_dim: int, out_dim: int) -> nn.Module:
        return nn.Linear(in_dim, out_dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, T, dim]` to `[B, T, dim]`."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class ConvMLP(MLP):
    """The same with convolutions over time instead of linear layers.

    Args:
        dim (int): size of input and output.
        hidden_dim (int): width that a layer without gate would have.
        kernel_size (int): odd; the length stays.
    """

    def __init__(self, dim: int, hidden_dim: int, *, kernel_size: int = 3):
        self.kernel_size = kernel_size
        super().__init__(dim, hidden_dim)

    def _layer(self, in_dim: int, out_dim: int) -> nn.Module:
        return ChannelLastConv1d(in_dim, out_dim, self.kernel_size, padding=self.kernel_size // 2, bias=False)
