"""Transformer blocks over several modalities (Cheng et al., MMAudio, arXiv 2412.15322, section 3.3)."""

import typing as tp

import torch
from torch import nn

from .attention import SelfAttention, attention
from .conv import ChannelLastConv1d
from .mlp import MLP, ConvMLP
from .norm import modulate

QKV = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _modulation(dim: int, num_chunks: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(dim, num_chunks * dim))


class FusedBlock(nn.Module):
    """A transformer block on one sequence, modulated by a condition (adaptive layer norm with gates).

    Args:
        dim (int): channels D.
        num_heads (int): heads of the attention.
        mlp_ratio (float): width of the feed-forward layer over D.
        kernel_size (int): of the output projection and feed-forward layers, which are linear for 1.
        pre_only (bool): only produce queries, keys and values.
    """

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float = 4., kernel_size: int = 3,
                 pre_only: bool = False):
        super().__init__()
        self.pre_only = pre_only
        self.attn = SelfAttention(dim, num_heads)
        self.adaLN_modulation = _modulation(dim, 2 if pre_only else 6)
        if pre_only:
            return
        hidden = int(dim * mlp_ratio)
        self.linear1: nn.Module
        self.ffn: nn.Module
        if kernel_size == 1:
            self.linear1, self.ffn = nn.Linear(dim, dim), MLP(dim, hidden)
        else:
            self.linear1 = ChannelLastConv1d(dim, dim, kernel_size, padding=kernel_size // 2)
            self.ffn = ConvMLP(dim, hidden, kernel_size=kernel_size)

    def pre_attention(self, x: torch.Tensor, cond: torch.Tensor, rot: tp.Optional[torch.Tensor]
                      ) -> tuple[QKV, tuple[torch.Tensor, ...]]:
        """Queries, keys, values of `x` `[B, T, D]`, and the modulation left for `post_attention`."""
        shift, scale, *rest = self.adaLN_modulation(cond).chunk(2 if self.pre_only else 6, dim=-1)
        return self.attn.pre_attention(modulate(x, shift, scale), rot), tuple(rest)

    def post_attention(self, x: torch.Tensor, attended: torch.Tensor, modulation: tuple[torch.Tensor, ...]
                       ) -> torch.Tensor:
        """Add what was attended, and the feed-forward layer, to `x` `[B, T, D]`; for `pre_only`, return `x`."""
        if self.pre_only:
            return x
        gate1, shift2, scale2, gate2 = modulation
        x = x + self.linear1(attended) * gate1
        return x + self.ffn(modulate(x, shift2, scale2)) * gate2

    def forward(self, x: torch.Tensor, cond: torch.Tensor, rot: tp.Optional[torch.Tensor] = None) -> torch.Tensor:
        """One block.

        Args:
            x (torch.Tensor): `[B, T, D]`.
            cond (torch.Tensor): `[B, T, D]`, or `[B, 1, D]` for one condition for all positions.
            rot (torch.Tensor): rotations of the positions, if they matter.
        Returns:
            torch.Tensor: `[B, T, D]`.
        """
        qkv, modulation = self.pre_attention(x, cond, rot)
        return self.post_attention(x, attention(*qkv), modulation)


class JointBlock(nn.Module):
    """Three blocks, for latents, visual features and text, with one attention over all their positions.

    Args:
        dim (int): channels D.
        num_heads (int): heads of the attention.
        mlp_ratio (float): width of the feed-forward layers over D.
        pre_only (bool): visual features and text only supply queries, keys and values and come out unchanged.
    """

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float = 4., pre_only: bool = False):
        super().__init__()
        self.latent_block = FusedBlock(dim, num_heads, mlp_ratio=mlp_ratio, kernel_size=3)
        self.clip_block = FusedBlock(dim, num_heads, mlp_ratio=mlp_ratio, kernel_size=3, pre_only=pre_only)
        self.text_block = FusedBlock(dim, num_heads, mlp_ratio=mlp_ratio, kernel_size=1, pre_only=pre_only)

    def forward(self, latent: torch.Tensor, clip: torch.Tensor, text: torch.Tensor, global_cond: torch.Tensor,
                frame_cond: torch.Tensor, latent_rot: torch.Tensor, clip_rot: torch.Tensor
                ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One block.

        Args:
            latent (torch.Tensor): `[B, N, D]`.
            clip (torch.Tensor): `[B, N_clip, D]`.
            text (torch.Tensor): `[B, N_text, D]`; its positions are not rotated.
            global_cond (torch.Tensor): `[B, 1, D]`, for visual features and text.
            frame_cond (torch.Tensor): `[B, N, D]`, for the latents.
            latent_rot (torch.Tensor): rotations of the latent positions; `clip_rot` of the visual ones.
        Returns:
            tuple: latent, clip and text, shaped as they came.
        """
        blocks = (self.latent_block, self.clip_block, self.text_block)
        inputs, conds = (latent, clip, text), (frame_cond, global_cond, global_cond)
        pre = [block.pre_attention(x, cond, rot) for block, x, cond, rot
               in zip(blocks, inputs, conds, (latent_rot, clip_rot, None))]
        q, k, v = (torch.cat(parts, dim=2) for parts in zip(*(qkv for qkv, _ in pre)))
        attended = attention(q, k, v).split([x.shape[1] for x in inputs], dim=1)
        latent, clip, text = (block.post_attention(x, y, modulation) for block, x, y, (_, modulation)
                              in zip(blocks, inputs, attended, pre))
        return latent, clip, text


class FinalBlock(nn.Module):
    """Modulated layer norm and a convolution to the output channels.

    Args:
        dim (int): channels D of input and condition.
        out_dim (int): channels C of the output.
    """

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.adaLN_modulation = _modulation(dim, 2)
        self.conv = ChannelLastConv1d(dim, out_dim, kernel_size=7, padding=3)

    def forward(self, x: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        """`[B, T, D]`, with a condition `[B, 1, D]` or `[B, T, D]`, to `[B, T, C]`."""
        shift, scale = self.adaLN_modulation(cond).chunk(2, dim=-1)
        return self.conv(modulate(x, shift, scale))
