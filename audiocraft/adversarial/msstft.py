"""A discriminator of complex spectrograms at several resolutions (Défossez et al. 2022, arXiv:2210.13438, figure 2)."""

import typing as tp

import torch
from torch import nn

from ..modules.norm_conv import NormConv2d
from ..utils.errors import UserError
from .base import Discriminator, SubDiscriminator


class ComplexSpectrogram(nn.Module):
    """Short-time Fourier transform whose size does not depend on the window.

    The audio is not padded, so that a frame never contains what is not there.

    Args:
        n_fft (int): samples of a transform.
        hop_length (int): samples from one frame to the next.
        win_length (int): samples of the Hann window, at most `n_fft`.
        normalized (bool): divide by the L2 norm of the window.
    """
    window: torch.Tensor

    def __init__(self, *, n_fft: int, hop_length: int, win_length: int, normalized: bool = True):
        super().__init__()
        self.n_fft, self.hop_length, self.win_length, self.normalized = n_fft, hop_length, win_length, normalized
        self.register_buffer('window', torch.hann_window(win_length))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Audio `[B, C, T]` to real parts, then imaginary parts, of the spectrograms: `[B, 2 C, frames, bins]`."""
        batch, channels, _ = x.shape
        window = self.window / self.window.square().sum().sqrt() if self.normalized else self.window
        spec = torch.stft(x.flatten(0, 1).to(window.dtype), self.n_fft, self.hop_length, self.win_length, window,
                          center=False, return_complex=True)
        parts = torch.view_as_real(spec).unflatten(0, (batch, channels))  # [B, C, bins, frames, 2]
        return parts.permute(0, 4, 1, 3, 2).flatten(1, 2)


class STFTDiscriminator(SubDiscriminator):
    """Convolutions over time and frequency of a complex spectrogram; see `MultiScaleSTFTDiscriminator`."""

    def __init__(self, *, in_channels: int, out_channels: int, filters: int, filters_scale: int, max_filters: int,
                 n_fft: int, hop_length: int, win_length: int, kernel_size: tuple[int, int],
                 dilations: tp.Sequence[int], stride: tuple[int, int], normalized: bool, norm: str,
                 activation: str, activation_params: dict[str, tp.Any] | None):
        super().__init__(activation=activation, activation_params=activation_params, post_in_fmaps=False)
        self.spec_transform = ComplexSpectrogram(n_fft=n_fft, hop_length=hop_length, win_length=win_length,
                                                 normalized=normalized)
        time, frequency = kernel_size
        last = (time, time)  # kernel of the last two, which look as far in frequency as in time
        # The first convolution sees the spectrogram as it is, and its size tells something: it has no norm.
        self.convs = nn.ModuleList([NormConv2d(2 * in_channels, filters, kernel_size, padding=_same(kernel_size))])
        channels = filters
        for index, dilation in enumerate(dilations, 1):
            width = min(filters * filters_scale ** index, max_filters)
            self.convs.append(NormConv2d(channels, width, kernel_size, stride=stride, dilation=(dilation, 1),
                                         padding=_same(kernel_size, dilation), norm=norm))
            channels = width
        width = min(filters * filters_scale ** (len(dilations) + 1), max_filters)
        self.convs.append(NormConv2d(channels, width, last, padding=_same(last), norm=norm))
        self.conv_post = NormConv2d(width, out_channels, last, padding=_same(last), norm=norm)

    def view(self, x: torch.Tensor) -> torch.Tensor:
        """The complex spectrogram `[B, 2 C, frames, bins]`."""
        return self.spec_transform(x)


def _same(kernel_size: tuple[int, int], dilation: int = 1) -> tuple[int, int]:
    """The padding that keeps the size at stride 1, for a dilation in time."""
    return dilation * (kernel_size[0] - 1) // 2, (kernel_size[1] - 1) // 2


class MultiScaleSTFTDiscriminator(Discriminator):
    """One network for each resolution of the spectrogram.

    Each has a convolution of the spectrogram, one for each of `dilations`, and one more, with an activation and a
    feature map after each; then the convolution that gives the logits.

    Args:
        in_channels (int): C of the audio.
        out_channels (int): of the logits.
        filters (int): channels of the first convolution.
        filters_scale (int): how many times more channels each further convolution has.
        max_filters (int): most channels of a convolution.
        n_ffts, hop_lengths, win_lengths (list of int): of each spectrogram, in samples.
        kernel_size (pair of int): in frames and bins, odd.
        dilations (list of int): in time, of the convolutions with stride.
        stride (pair of int): of these, in frames and bins.
        normalized (bool): divide the spectrograms by the L2 norm of the window.
        norm (str): of all convolutions but the first; see `NormConv2d`.
        activation (str), activation_params (dict or None): see `SubDiscriminator`.
    """

    def __init__(self, *, in_channels: int = 1, out_channels: int = 1, filters: int = 32, filters_scale: int = 1,
                 max_filters: int = 1024, n_ffts: tp.Sequence[int] = (1024, 2048, 512, 256, 128),
                 hop_lengths: tp.Sequence[int] = (256, 512, 128, 64, 32),
                 win_lengths: tp.Sequence[int] = (1024, 2048, 512, 256, 128), kernel_size: tp.Sequence[int] = (3, 9),
                 dilations: tp.Sequence[int] = (1, 2, 4), stride: tp.Sequence[int] = (1, 2), normalized: bool = True,
                 norm: str = 'weight_norm', activation: str = 'LeakyReLU',
                 activation_params: dict[str, tp.Any] | None = None):
        if not n_ffts or not len(n_ffts) == len(hop_lengths) == len(win_lengths):
            raise UserError(f'n_ffts, hop_lengths and win_lengths give one number for each spectrogram, but there are '
                            f'{len(n_ffts)}, {len(hop_lengths)} and {len(win_lengths)} of them.')
        super().__init__(
            [STFTDiscriminator(
                in_channels=in_channels, out_channels=out_channels, filters=filters, filters_scale=filters_scale,
                max_filters=max_filters, n_fft=n_fft, hop_length=hop_length, win_length=win_length,
                kernel_size=(kernel_size[0], kernel_size[1]), dilations=dilations, stride=(stride[0], stride[1]),
                normalized=normalized, norm=norm, activation=activation, activation_params=activation_params)
             for n_fft, hop_length, win_length in zip(n_ffts, hop_lengths, win_lengths)],
            channels=in_channels, min_samples=max(n_ffts))
