"""Convolutions and LSTMs over time that pad their input, so that `T` frames become exactly `ceil(T / stride)`.

The padding is that of EnCodec (Défossez et al., "High Fidelity Neural Audio Compression", 2022, section 3.1): causal
layers pad on the left only, so that they can run on a stream.
"""

import math
import typing as tp

import torch
from torch import nn
from torch.nn import functional as F

from .norm_conv import NormConv1d, NormConvTranspose1d

PAD_MODES = ('constant', 'reflect', 'replicate')


def extra_padding(length: int, stride: int) -> int:
    """Frames to append to `length` frames so that the last stride is full and no input is dropped."""
    return -length % stride


def pad1d(x: torch.Tensor, padding: tuple[int, int], mode: str = 'constant') -> torch.Tensor:
    """Pad `[B, C, T]` on the left and on the right, also with more reflected frames than there are.

    Reflection needs an input longer than the padding: a shorter one is extended with zeros first, which are dropped
    from the result.
    """
    missing = max(padding) - x.shape[-1] + 1
    if mode != 'reflect' or missing <= 0:
        return F.pad(x, padding, mode)
    return unpad1d(F.pad(F.pad(x, (0, missing)), padding, mode), (0, missing))


def unpad1d(x: torch.Tensor, padding: tuple[int, int]) -> torch.Tensor:
    """Drop frames of `[B, C, T]` on the left and on the right."""
    left, right = padding
    return x[..., left:x.shape[-1] - right]


class StreamableConv1d(nn.Module):
    """A convolution from `[B, C_in, T]` to `[B, C_out, ceil(T / stride)]`.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups, bias: as for `nn.Conv1d`.
        causal (bool): whether all padding but what completes the last stride is on the left.
        norm (str), norm_kwargs (dict or None): see `NormConv1d`.
        pad_mode (str): `constant` (zeros), `reflect` or `replicate`. Reflection makes the first outputs
            of a causal layer depend on later input; with zeros no output does.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, dilation: int = 1,
                 groups: int = 1, bias: bool = True, causal: bool = False, norm: str = 'none',
                 norm_kwargs: dict[str, tp.Any] | None = None, pad_mode: str = 'reflect'):
        super().__init__()
        if pad_mode not in PAD_MODES:
            raise ValueError(f'pad_mode {pad_mode!r} is unknown, expected one of {", ".join(PAD_MODES)}')
        self.stride, self.causal, self.pad_mode = stride, causal, pad_mode
        self.total_padding = (kernel_size - 1) * dilation + 1 - stride
        if self.total_padding < 0:
            raise ValueError(f'a kernel over {self.total_padding + stride} frames skips input at stride {stride}: '
                             'expected a kernel at least as long as the stride')
        self.conv = NormConv1d(in_channels, out_channels, kernel_size, stride, dilation=dilation, groups=groups,
                               bias=bias, norm=norm, norm_kwargs=norm_kwargs, causal=causal)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        right = 0 if self.causal else self.total_padding // 2
        left = self.total_padding - right
        return self.conv(pad1d(x, (left, right + extra_padding(x.shape[-1], self.stride)), self.pad_mode))


class StreamableConvTranspose1d(nn.Module):
    """A transposed convolution from `[B, C_in, T]` to `[B, C_out, T * stride]`.

    Args:
        in_channels, out_channels, kernel_size, stride, groups, bias: as for `nn.ConvTranspose1d`.
        causal (bool): whether to drop the surplus frames on the right.
        norm (str), norm_kwargs (dict or None): see `NormConv1d`.
        trim_right_ratio (float): in a causal layer, the share of the surplus that is dropped on the right, the rest
            on the left. Below 1 the output comes earlier, and depends on that much of later input.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1,
                 bias: bool = True, causal: bool = False, norm: str = 'none',
                 norm_kwargs: dict[str, tp.Any] | None = None, trim_right_ratio: float = 1.):
        super().__init__()
        if not 0 <= trim_right_ratio <= 1 or trim_right_ratio < 1 and not causal:
            raise ValueError(f'trim_right_ratio is {trim_right_ratio} with causal={causal}, expected 1, '
                             'or with causal=True a number from 0 to 1')
        surplus = kernel_size - stride
        if surplus < 0:
            raise ValueError(f'a kernel of {kernel_size} leaves gaps at stride {stride}: '
                             'expected a kernel at least as long as the stride')
        right = math.ceil(surplus * trim_right_ratio) if causal else surplus // 2
        self.surplus = (surplus - right, right)
        self.convtr = NormConvTranspose1d(in_channels, out_channels, kernel_size, stride, groups=groups, bias=bias,
                                          norm=norm, norm_kwargs=norm_kwargs, causal=causal)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return unpad1d(self.convtr(x), self.surplus)


class StreamableLSTM(nn.Module):
    """An LSTM over the frames of `[B, C, T]`, to the same shape.

    Args:
        dimension (int): C.
        num_layers (int): LSTM layers.
        skip (bool): whether to add the input to the output.
    """

    def __init__(self, dimension: int, num_layers: int = 2, skip: bool = True):
        super().__init__()
        self.skip = skip
        self.lstm = nn.LSTM(dimension, dimension, num_layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.lstm(x.permute(2, 0, 1))[0].permute(1, 2, 0)
        return x + y if self.skip else y
