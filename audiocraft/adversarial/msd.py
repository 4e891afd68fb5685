"""A discriminator of waveforms at several rates (Kumar et al. 2019, arXiv:1910.06711, section 2.2)."""

import math
import typing as tp

import torch
from torch import nn

from ..modules.norm_conv import NormConv1d
from .base import Discriminator, SubDiscriminator


class ScaleDiscriminator(SubDiscriminator):
    """Strided and grouped convolutions of audio at one rate; see `MultiScaleDiscriminator`.

    Args:
        pools (int): how many times `pool` is applied to the audio before.
        pool (nn.Module): what lowers the rate.
    """

    def __init__(self, *, pools: int, pool: nn.Module, in_channels: int, out_channels: int,
                 kernel_sizes: tuple[int, int], filters: int, max_filters: int, downsample_scales: tp.Sequence[int],
                 groups: tp.Sequence[int] | None, norm: str, activation: str,
                 activation_params: dict[str, tp.Any] | None):
        super().__init__(activation=activation, activation_params=activation_params, post_in_fmaps=True)
        self.pools, self.pool = pools, pool
        size, last = math.prod(kernel_sizes), kernel_sizes[1]
        self.convs = nn.ModuleList([nn.Sequential(
            nn.ReflectionPad1d((size - 1) // 2), NormConv1d(in_channels, filters, size, norm=norm))])
        channels = filters
        for index, scale in enumerate(downsample_scales):
            width = min(channels * scale, max_filters)
            # Five outputs to each side of the middle overlap.
            self.convs.append(NormConv1d(channels, width, 10 * scale + 1, stride=scale, padding=5 * scale,
                                         groups=channels // 4 if groups is None else groups[index], norm=norm))
            channels = width
        width = min(channels * 2, max_filters)
        self.convs.append(NormConv1d(channels, width, kernel_sizes[0], padding=(kernel_sizes[0] - 1) // 2, norm=norm))
        self.conv_post = NormConv1d(width, out_channels, last, padding=(last - 1) // 2, norm=norm)

    def view(self, x: torch.Tensor) -> torch.Tensor:
        """The audio `[B, C, T']` at the rate of this network."""
        for _ in range(self.pools):
            x = self.pool(x)
        return x


class MultiScaleDiscriminator(Discriminator):
    """One network for each rate: the audio as it is, at half its rate, at a quarter, and so on.

    Args:
        in_channels (int): C of the audio.
        out_channels (int): of the logits.
        scale_norms (list of str): the norm of each network, one for each rate; see `NormConv1d`.
        downsample_factor (int): from one rate to the next.
        pool (bool): False: all networks see the audio at its full rate, as in AudioCraft, where the lower rates are
            computed but not used; weights that were trained so need it.
        kernel_sizes (pair of int): of the last two convolutions; that of the first is their product. Odd.
        filters (int): channels of the first convolution.
        max_filters (int): most channels of a convolution.
        downsample_scales (list of int): strides of the convolutions between; each has that many times more channels.
        groups (list of int or None): of these; None: a group for every four channels.
        activation (str), activation_params (dict or None): see `SubDiscriminator`.
    """

    def __init__(self, *, in_channels: int = 1, out_channels: int = 1,
                 scale_norms: tp.Sequence[str] = ('weight_norm', 'weight_norm', 'weight_norm'),
                 downsample_factor: int = 2, pool: bool = True, kernel_sizes: tp.Sequence[int] = (5, 3),
                 filters: int = 16, max_filters: int = 1024, downsample_scales: tp.Sequence[int] = (4, 4, 4, 4),
                 groups: tp.Sequence[int] | None = None, activation: str = 'LeakyReLU',
                 activation_params: dict[str, tp.Any] | None = None):
        factor = downsample_factor
        pooling = nn.AvgPool1d(2 * factor, factor, padding=factor, count_include_pad=False)
        super().__init__(
            [ScaleDiscriminator(
                pools=index if pool else 0, pool=pooling, in_channels=in_channels, out_channels=out_channels,
                kernel_sizes=(kernel_sizes[0], kernel_sizes[1]), filters=filters, max_filters=max_filters,
                downsample_scales=downsample_scales, groups=groups, norm=norm, activation=activation,
                activation_params=activation_params) for index, norm in enumerate(scale_norms)],
            channels=in_channels,
            # The first convolution reflects half its kernel at each end, at the lowest rate too.
            min_samples=(math.prod(kernel_sizes) + 1) // 2 * factor ** (len(scale_norms) - 1 if pool else 0))
