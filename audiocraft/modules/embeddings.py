"""Embeddings of numbers."""

import torch
from torch import nn


class TimestepEmbedder(nn.Module):
    """Sinusoids of the flow time, and a small network on them.

    The frequencies are `10000 ** (-2i / frequency_dim) * 10000 / max_period`.

    Args:
        dim (int): size D of the output.
        frequency_dim (int): number of sinusoids, cosines first.
        max_period (float): see above; 10000 for the frequencies of a transformer's positions, 1 for time in [0, 1].
    """
    freqs: torch.Tensor

    def __init__(self, dim: int, *, frequency_dim: int = 256, max_period: float = 10000.):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(frequency_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        exponents = torch.arange(0, frequency_dim, 2, dtype=torch.float32) / frequency_dim
        self.register_buffer('freqs', (10000. / max_period) / 10000. ** exponents, persistent=False)

    def sinusoids(self, t: torch.Tensor) -> torch.Tensor:
        """Times `[B]` to `[B, frequency_dim]`, computed in fp32."""
        angles = t.float()[:, None] * self.freqs
        return torch.cat([angles.cos(), angles.sin()], dim=-1).to(t.dtype)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        """Times `[B]` to `[B, D]`."""
        return self.mlp(self.sinusoids(t))
