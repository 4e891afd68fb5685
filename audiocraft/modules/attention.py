"""Self-attention."""

import typing as tp

import torch
import torch.nn.functional as F
from torch import nn

from .norm import RMSNorm
from .rope import rotate


class SelfAttention(nn.Module):
    """Queries, keys and values of multi-head attention with normalized queries and keys, and no output projection.

    Args:
        dim (int): channels D of the input.
        num_heads (int): heads H, each of `D / H` channels.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = RMSNorm(dim // num_heads)
        self.k_norm = RMSNorm(dim // num_heads)

    def pre_attention(self, x: torch.Tensor, rot: tp.Optional[torch.Tensor] = None
                      ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values `[B, H, T, D / H]` of `x` `[B, T, D]`, rotated by `rot` if given."""
        # Which of q, k, v it is varies fastest among the outputs, then the channel, then the head.
        q, k, v = self.qkv(x).unflatten(-1, (self.num_heads, -1, 3)).transpose(1, 2).unbind(-1)
        q, k = self.q_norm(q), self.k_norm(k)
        if rot is not None:
            q, k = rotate(q, rot), rotate(k, rot)
        return q, k, v

    def forward(self, x: torch.Tensor, rot: tp.Optional[torch.Tensor] = None) -> torch.Tensor:
        """`[B, T, D]` to `[B, T, D]`."""
        return attention(*self.pre_attention(x, rot))


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attend, and put the heads side by side: three times `[B, H, T, D / H]` to `[B, T, D]`."""
    # The fast kernels want neighboring channels side by side, which fresh values are not.
    return F.scaled_dot_product_attention(q, k, v.contiguous()).transpose(1, 2).flatten(2)
