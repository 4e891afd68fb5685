"""The mel VAE of MMAudio: a 1-D U-shaped pair of networks with magnitude-preserving layers.

The architecture is that of the latent autoencoders of Rombach et al. 2022 (arXiv:2112.10752) in one dimension, as in
Make-An-Audio 2 (arXiv:2305.18474), with the layers of EDM2 (Karras et al. 2024, arXiv:2312.02696). Names and shapes of
the weights are those of the published files (`audiocraft/models/published/mel_vae.py` reads them).
"""

import typing as tp

import torch
from torch import nn
from torch.nn import functional as F

from ..modules.magnitude_preserving import MPConv1d, mp_silu, mp_sum, normalize, normalize_weights_
from ..utils.random import Draws
from .compression import Reconstruction
from .mel_vae import MelCompression

SHARE = 0.3   # of the branch in a residual sum
CLAMP = 256.  # largest activation between blocks, for half precision


class MPResBlock(nn.Module):
    """Residual block, `[B, C_in, T]` to `[B, C_out, T]`; the residual too is of the normalised input."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = MPConv1d(in_channels, out_channels, 3)
        self.conv2 = MPConv1d(out_channels, out_channels, 3)
        self.nin_shortcut = MPConv1d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = normalize(x, dim=1)
        branch = self.conv2(mp_silu(self.conv1(mp_silu(x))))
        return mp_sum(x if self.nin_shortcut is None else self.nin_shortcut(x), branch, SHARE)


class MPAttention(nn.Module):
    """Self-attention over time with one head, `[B, C, T]` to the same shape; queries, keys, values are normalised."""

    def __init__(self, width: int):
        super().__init__()
        self.qkv = MPConv1d(width, 3 * width, 1)
        self.proj_out = MPConv1d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, width, length = x.shape
        qkv = normalize(self.qkv(x).view(batch, width, 3, length), dim=1)
        q, k, v = (part.transpose(1, 2).unsqueeze(1) for part in qkv.unbind(2))  # [B, 1, T, C]
        attended = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2)
        return mp_sum(x, self.proj_out(attended), SHARE)


class Downsample(nn.Module):
    """Half as many frames: the mean of each two, between two 1x1 convolutions."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = MPConv1d(width, width, 1)
        self.conv2 = MPConv1d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(F.avg_pool1d(self.conv1(x), 2))


class Upsample(nn.Module):
    """Twice as many frames: each one repeated, then a convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = MPConv1d(width, width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(x, scale_factor=2., mode='nearest-exact'))


class Level(nn.Module):
    """The blocks of one width, `[B, C_in, T]` to `[B, C_out, T]`, then perhaps a change of rate."""

    def __init__(self, in_channels: int, out_channels: int, depth: int, *, down: bool = False, up: bool = False):
        super().__init__()
        self.block = nn.ModuleList(MPResBlock(out_channels if i else in_channels, out_channels) for i in range(depth))
        self.downsample = Downsample(out_channels) if down else None
        self.upsample = Upsample(out_channels) if up else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.block:
            x = block(x).clamp(-CLAMP, CLAMP)
        for resample in (self.downsample, self.upsample):
            x = x if resample is None else resample(x)
        return x


class Middle(nn.Module):
    """Block, attention, block, at the lowest rate and the largest width."""

    def __init__(self, width: int):
        super().__init__()
        self.block_1 = MPResBlock(width, width)
        self.attn_1 = MPAttention(width)
        self.block_2 = MPResBlock(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block_2(self.attn_1(self.block_1(x))).clamp(-CLAMP, CLAMP)


class MPEncoder(nn.Module):
    """Normalised log-mel `[B, n_mels, 2 T']` to mean and log-variance, stacked: `[B, 2 D, T']`."""

    def __init__(self, n_mels: int, widths: list[int], depth: int, latent_dim: int):
        super().__init__()
        self.conv_in = MPConv1d(n_mels, widths[0], 3)
        self.down = nn.ModuleList(Level(widths[max(i - 1, 0)], width, depth, down=i == 0)
                                  for i, width in enumerate(widths))
        self.mid = Middle(widths[-1])
        self.conv_out = MPConv1d(widths[-1], 2 * latent_dim, 3)
        self.learnable_gain = nn.Parameter(torch.zeros([]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(mp_silu(self.mid(x)), gain=self.learnable_gain + 1)


class MPDecoder(nn.Module):
    """Latents `[B, D, T']` to normalised log-mel `[B, n_mels, 2 T']`; with a block more at each level."""

    def __init__(self, n_mels: int, widths: list[int], depth: int, latent_dim: int):
        super().__init__()
        self.conv_in = MPConv1d(latent_dim, widths[-1], 3)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(Level(widths[min(i + 1, len(widths) - 1)], width, depth + 1, up=i == 1)
                                for i, width in enumerate(widths))
        self.conv_out = MPConv1d(widths[0], n_mels, 3)
        self.learnable_gain = nn.Parameter(torch.zeros([]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(mp_silu(x), gain=self.learnable_gain + 1)


class MPMelVAE(MelCompression):
    """Auto-encoder of mono log-mel spectrograms with magnitude-preserving layers; the defaults are MMAudio's at 16 kHz.

    Its state dict holds the weights as they are trained and as they are published. They are normalised whenever they
    are used, so that weights that were read, averaged or trained all count by their direction alone.

    Args:
        latent_dim (int): D.
        width (int): channels of the first level.
        multipliers (list of int): channels of each level over `width`, two levels at least. The rate is halved once,
            after the first.
        depth (int): residual blocks of a level of the encoder; the decoder has one more.
        others: as of `MelCompression`.
    """
    logvar_range = (-30., 20.)

    def __init__(self, *, sample_rate: int = 16_000, n_fft: int = 1024, hop: int = 256, n_mels: int = 80,
                 fmin: float = 0., fmax: float = 8000., log: str = 'log10', latent_dim: int = 20, width: int = 384,
                 multipliers: tp.Sequence[int] = (1, 2, 4), depth: int = 2, statistics: str | None = None,
                 vocoder: str | nn.Module | None = None, griffin_lim_iter: int = 32):
        super().__init__(sample_rate=sample_rate, n_fft=n_fft, hop=hop, n_mels=n_mels, fmin=fmin, fmax=fmax, log=log,
                         latent_dim=latent_dim, statistics=statistics, vocoder=vocoder,
                         griffin_lim_iter=griffin_lim_iter)
        if len(multipliers) < 2:
            raise ValueError(f'expected two levels or more, got multipliers={list(multipliers)}')
        widths = [width * multiplier for multiplier in multipliers]
        self.encoder = MPEncoder(n_mels, widths, depth, latent_dim)
        self.decoder = MPDecoder(n_mels, widths, depth, latent_dim)

    def forward(self, wav: torch.Tensor, draws: Draws | None = None) -> Reconstruction:
        """See `MelCompression.forward`; in training the stored weights are normalised first."""
        if self.training and torch.is_grad_enabled():
            normalize_weights_(self)
        return super().forward(wav, draws)
