"""A discriminator of waveforms folded by several periods (Kong et al. 2020, arXiv:2010.05646, section 2.3)."""

import typing as tp

import torch
from torch import nn
from torch.nn import functional as F

from ..modules.norm_conv import NormConv2d
from .base import Discriminator, SubDiscriminator


class PeriodDiscriminator(SubDiscriminator):
    """Convolutions along time of audio folded by one period; see `MultiPeriodDiscriminator`."""

    def __init__(self, *, period: int, in_channels: int, out_channels: int, n_layers: int,
                 kernel_sizes: tuple[int, int], stride: int, filters: int, filters_scale: int, max_filters: int,
                 norm: str, activation: str, activation_params: dict[str, tp.Any] | None):
        super().__init__(activation=activation, activation_params=activation_params, post_in_fmaps=True)
        self.period = period
        self.convs = nn.ModuleList()
        first, last = kernel_sizes
        channels = in_channels
        for index in range(n_layers):
            width = min(filters * filters_scale ** (index + 1), max_filters)
            step = stride if index < n_layers - 1 else 1
            self.convs.append(NormConv2d(channels, width, (first, 1), stride=(step, 1), padding=((first - 1) // 2, 0),
                                         norm=norm))
            channels = width
        self.conv_post = NormConv2d(channels, out_channels, (last, 1), padding=((last - 1) // 2, 0), norm=norm)

    def view(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, C, T / period, period]`: samples that are a period apart are neighbours. The end is reflected to fit."""
        missing = -x.shape[-1] % self.period
        x = F.pad(x, (0, missing), mode='reflect') if missing else x
        return x.unflatten(-1, (-1, self.period))


class MultiPeriodDiscriminator(Discriminator):
    """One network for each period, which sees the audio as an image as wide as the period.

    Args:
        in_channels (int): C of the audio.
        out_channels (int): of the logits.
        periods (list of int): in samples; primes see the most different things.
        n_layers (int): convolutions before the one that gives the logits.
        kernel_sizes (pair of int): along time, of these and of the last one; odd.
        stride (int): of these along time, but of the last of them.
        filters (int), filters_scale (int), max_filters (int): layer i has `filters * filters_scale ** i` channels,
            counted from 1, and at most `max_filters`.
        norm (str): see `NormConv2d`.
        activation (str), activation_params (dict or None): see `SubDiscriminator`.
    """

    def __init__(self, *, in_channels: int = 1, out_channels: int = 1, periods: tp.Sequence[int] = (2, 3, 5, 7, 11),
                 n_layers: int = 5, kernel_sizes: tp.Sequence[int] = (5, 3), stride: int = 3, filters: int = 8,
                 filters_scale: int = 4, max_filters: int = 1024, norm: str = 'weight_norm',
                 activation: str = 'LeakyReLU', activation_params: dict[str, tp.Any] | None = None):
        super().__init__(
            [PeriodDiscriminator(
                period=period, in_channels=in_channels, out_channels=out_channels, n_layers=n_layers,
                kernel_sizes=(kernel_sizes[0], kernel_sizes[1]), stride=stride, filters=filters,
                filters_scale=filters_scale, max_filters=max_filters, norm=norm, activation=activation,
                activation_params=activation_params) for period in periods],
            channels=in_channels, min_samples=max(periods))
