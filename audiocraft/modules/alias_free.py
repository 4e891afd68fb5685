"""Periodic activations that do not alias: applied at twice the rate, between two low-pass filters.

Snake: Ziyin et al., "Neural Networks Fail to Learn Periodic Functions and How to Fix It", 2020, equation 3. Its use
between filters: Lee et al., "BigVGAN", 2023, section 3.2; the filters follow Karras et al., "Alias-Free Generative
Adversarial Networks", 2021, appendix C. Parameters and buffers are named as in the published weights of BigVGAN.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


class SnakeBeta(nn.Module):
    """`x + sin^2(alpha x) / beta`, alpha and beta learned for each channel, `[B, C, T]` to the same shape.

    Args:
        channels (int): C.
        log_scale (bool): the parameters are the logarithms of alpha and beta.
        tied (bool): beta is alpha and no parameter of its own: the plain snake.
    """

    def __init__(self, channels: int, *, log_scale: bool = True, tied: bool = False):
        super().__init__()
        self.log_scale = log_scale
        start = torch.zeros(channels) if log_scale else torch.ones(channels)
        self.alpha = nn.Parameter(start)
        self.beta = None if tied else nn.Parameter(start.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # In fp32 whatever comes in: the phase `alpha x` may be many turns, of which bf16 would keep no fraction.
        alpha, wide = self.alpha.float()[:, None], x.float()
        beta = alpha if self.beta is None else self.beta.float()[:, None]
        if self.log_scale:
            alpha, beta = alpha.exp(), beta.exp()
        return torch.addcmul(wide, torch.sin(wide * alpha).square(), 1 / (beta + 1e-9)).to(x.dtype)


def kaiser_sinc_filter(cutoff: float, half_width: float, taps: int) -> torch.Tensor:
    """A low-pass filter: a sinc under a Kaiser window, of sum 1, `[1, 1, taps]`.

    Args:
        cutoff (float): in cycles per sample, at most 0.5, the highest frequency that there is.
        half_width (float): half of the band between pass and stop, in the same unit.
        taps (int): its length.
    """
    # Kaiser's estimate of the attenuation in dB, and of the window's beta for it.
    attenuation = 2.285 * (taps // 2 - 1) * math.pi * 4 * half_width + 7.95
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    else:
        beta = 0.5842 * max(attenuation - 21, 0.) ** 0.4 + 0.07886 * max(attenuation - 21, 0.)
    window = torch.kaiser_window(taps, periodic=False, beta=beta)
    time = torch.arange(taps) - taps // 2 + (0.5 if taps % 2 == 0 else 0.)
    ideal = window * torch.sinc(2 * cutoff * time)
    return (ideal / ideal.sum()).view(1, 1, taps)


def _resampling_filter(ratio: int, taps: int) -> torch.Tensor:
    """What keeps the band of the lower rate, for a change of the rate by `ratio`."""
    return kaiser_sinc_filter(0.5 / ratio, 0.6 / ratio, taps)


class LowPass(nn.Module):
    """Filter each channel and keep every `ratio`-th sample: `[B, C, T]` to `[B, C, ceil(T / ratio)]`."""
    filter: torch.Tensor

    def __init__(self, *, ratio: int = 2, taps: int = 12):
        super().__init__()
        self.ratio = ratio
        self.padding = (taps - 1) // 2, taps // 2
        self.register_buffer('filter', _resampling_filter(ratio, taps))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        channels = x.shape[1]
        weight = self.filter.to(x.dtype).expand(channels, -1, -1)
        return F.conv1d(F.pad(x, self.padding, mode='replicate'), weight, stride=self.ratio, groups=channels)


class Upsample(nn.Module):
    """Raise the rate by `ratio` with the band kept: `[B, C, T]` to `[B, C, ratio * T]`."""
    filter: torch.Tensor

    def __init__(self, *, ratio: int = 2, taps: int = 12):
        super().__init__()
        self.ratio = ratio
        self.padding = taps // ratio - 1
        self.crop = self.padding * ratio + (taps - ratio) // 2
        self.register_buffer('filter', _resampling_filter(ratio, taps))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        channels, length = x.shape[1], x.shape[-1] * self.ratio
        weight = (self.filter * self.ratio).to(x.dtype).expand(channels, -1, -1)
        x = F.pad(x, (self.padding, self.padding), mode='replicate')
        x = F.conv_transpose1d(x, weight, stride=self.ratio, groups=channels)
        return x[..., self.crop:self.crop + length]


class Downsample(nn.Module):
    """Lower the rate by `ratio`, with what the lower one cannot hold filtered out; see `LowPass`."""

    def __init__(self, *, ratio: int = 2, taps: int = 12):
        super().__init__()
        self.lowpass = LowPass(ratio=ratio, taps=taps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lowpass(x)


class AliasFree(nn.Module):
    """An activation at `ratio` times the rate, so that the harmonics which it makes are filtered out, not aliased.

    Args:
        act (nn.Module): the activation, of `[B, C, T]`.
        ratio (int): how much faster it is sampled.
        taps (int): of the two filters.
    """

    def __init__(self, act: nn.Module, *, ratio: int = 2, taps: int = 12):
        super().__init__()
        self.act = act
        self.upsample = Upsample(ratio=ratio, taps=taps)
        self.downsample = Downsample(ratio=ratio, taps=taps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.downsample(self.act(self.upsample(x)))
