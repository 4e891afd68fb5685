"""SEANet, the convolutional encoder and decoder of EnCodec.

Tagliasacchi et al., "SEANet: A Multi-modal Speech Enhancement Network", 2020, in the form of Défossez et al., "High
Fidelity Neural Audio Compression", 2022, section 3.1 and figure 1.
"""

import math
import typing as tp

import torch
from torch import nn

from .activations import build_activation
from .streamable import StreamableConv1d, StreamableConvTranspose1d, StreamableLSTM


class ResBlock(nn.Module):
    """A residual block over time, `[B, C, T]` to the same shape.

    Args:
        block (nn.Sequential): the path that is learned.
        shortcut (nn.Module): the other path, an identity or a convolution.
    """

    def __init__(self, block: nn.Sequential, shortcut: nn.Module):
        super().__init__()
        self.block, self.shortcut = block, shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shortcut(x) + self.block(x)


class _SEANet(nn.Module):
    """What encoder and decoder share: their arguments and the making of their layers."""

    def __init__(self, *, channels: int = 1, dimension: int = 128, n_filters: int = 32, n_residual_layers: int = 1,
                 ratios: tp.Sequence[int] = (8, 5, 4, 2), activation: str = 'ELU',
                 activation_params: dict[str, tp.Any] | None = None, norm: str = 'none',
                 norm_params: dict[str, tp.Any] | None = None, kernel_size: int = 7, last_kernel_size: int = 7,
                 residual_kernel_size: int = 3, dilation_base: int = 2, causal: bool = False,
                 pad_mode: str = 'reflect', true_skip: bool = True, compress: int = 2, lstm: int = 0,
                 disable_norm_outer_blocks: int = 0):
        super().__init__()
        self.channels, self.dimension, self.n_filters, self.ratios = channels, dimension, n_filters, tuple(ratios)
        self.hop_length = math.prod(self.ratios)
        self.n_residual_layers, self.residual_kernel_size = n_residual_layers, residual_kernel_size
        self.kernel_size, self.last_kernel_size, self.dilation_base = kernel_size, last_kernel_size, dilation_base
        self.activation, self.activation_params = activation, activation_params
        self.norm, self.norm_params = norm, norm_params
        self.causal, self.pad_mode, self.true_skip, self.compress = causal, pad_mode, true_skip, compress
        self.lstm, self.disable_norm_outer_blocks = lstm, disable_norm_outer_blocks
        self._check()
        self.model = nn.Sequential(*self._layers())

    @property
    def n_blocks(self) -> int:
        """First and last convolution, and a block for each ratio: the units of `disable_norm_outer_blocks`."""
        return len(self.ratios) + 2

    def _check(self) -> None:
        if not self.ratios or min(self.ratios) < 1:
            raise ValueError(f'ratios are {list(self.ratios)}, expected at least one stride, each at least 1')
        if not 0 <= self.disable_norm_outer_blocks <= self.n_blocks:
            raise ValueError(f'disable_norm_outer_blocks is {self.disable_norm_outer_blocks}, but there are '
                             f'{self.n_blocks} blocks with {len(self.ratios)} ratios')
        if not 1 <= self.compress <= self.n_filters:
            raise ValueError(f'compress is {self.compress}, expected between 1 and n_filters, {self.n_filters}')

    def _layers(self) -> tp.Iterator[nn.Module]:
        raise NotImplementedError

    def _norm(self, block: int) -> dict[str, tp.Any]:
        """Arguments of the convolutions in a block, counted from the waveform inwards, about the norm."""
        normed = block >= self.disable_norm_outer_blocks
        return {'norm': self.norm if normed else 'none', 'norm_kwargs': self.norm_params if normed else None,
                'causal': self.causal}

    def _conv(self, block: int, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1,
              dilation: int = 1) -> StreamableConv1d:
        return StreamableConv1d(in_channels, out_channels, kernel_size, stride, dilation, pad_mode=self.pad_mode,
                                **self._norm(block))

    def _act(self, channels: int) -> nn.Module:
        return build_activation(self.activation, self.activation_params, channels)

    def _res_blocks(self, block: int, channels: int) -> tp.Iterator[ResBlock]:
        hidden = channels // self.compress
        for index in range(self.n_residual_layers):
            shortcut = nn.Identity() if self.true_skip else self._conv(block, channels, channels, 1)
            yield ResBlock(nn.Sequential(
                self._act(channels),
                self._conv(block, channels, hidden, self.residual_kernel_size,
                           dilation=self.dilation_base ** index),
                self._act(hidden),
                self._conv(block, hidden, channels, 1)), shortcut)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


class SEANetEncoder(_SEANet):
    """Waveforms `[B, C, T]` to latents `[B, D, ceil(T / hop_length)]`.

    Args:
        channels (int): C.
        dimension (int): D.
        n_filters (int): channels of the first convolution; they double at each ratio.
        n_residual_layers (int): residual blocks before each change of rate.
        ratios (sequence of int): strides in the order of the decoder, so that the encoder's come in reverse.
        activation (str), activation_params (dict or None): see `build_activation`.
        norm (str), norm_params (dict or None): see `NormConv1d`.
        kernel_size (int): of the first convolution.
        last_kernel_size (int): of the last convolution.
        residual_kernel_size (int): of the first convolution of the residual blocks.
        dilation_base (int): its dilation is this to the power of the block's index in its row.
        causal (bool): whether no output depends on later input; strictly so with `pad_mode='constant'`.
        pad_mode (str): see `StreamableConv1d`.
        true_skip (bool): whether the residual blocks add their input as it is, not through a 1x1 convolution.
        compress (int): channels of a residual block over those in the middle of it.
        lstm (int): layers of the LSTM at the lowest rate; 0 is none.
        disable_norm_outer_blocks (int): so many blocks at the side of the waveform have no norm.
    Attributes:
        hop_length (int): samples per latent frame, the product of the ratios.
    """

    def _layers(self) -> tp.Iterator[nn.Module]:
        width = self.n_filters
        yield self._conv(0, self.channels, width, self.kernel_size)
        for block, ratio in enumerate(reversed(self.ratios), start=1):
            yield from self._res_blocks(block, width)
            yield self._act(width)
            yield self._conv(block, width, 2 * width, 2 * ratio, ratio)
            width *= 2
        if self.lstm:
            yield StreamableLSTM(width, self.lstm)
        yield self._act(width)
        yield self._conv(self.n_blocks - 1, width, self.dimension, self.last_kernel_size)


class SEANetDecoder(_SEANet):
    """Latents `[B, D, T']` to waveforms `[B, C, T' * hop_length]`, the mirror image of `SEANetEncoder`.

    Args:
        final_activation (str or None), final_activation_params (dict or None): after the last convolution.
        trim_right_ratio (float): see `StreamableConvTranspose1d`.
        **kwargs: the arguments of `SEANetEncoder`.
    """

    def __init__(self, *, final_activation: str | None = None,
                 final_activation_params: dict[str, tp.Any] | None = None, trim_right_ratio: float = 1.,
                 **kwargs: tp.Any):
        # Before the common part, which makes the layers.
        self.final_activation, self.final_activation_params = final_activation, final_activation_params
        self.trim_right_ratio = trim_right_ratio
        super().__init__(**kwargs)

    def _layers(self) -> tp.Iterator[nn.Module]:
        width = self.n_filters * 2 ** len(self.ratios)
        yield self._conv(self.n_blocks - 1, self.dimension, width, self.kernel_size)
        if self.lstm:
            yield StreamableLSTM(width, self.lstm)
        for index, ratio in enumerate(self.ratios):
            block = len(self.ratios) - index
            yield self._act(width)
            yield StreamableConvTranspose1d(width, width // 2, 2 * ratio, ratio, **self._norm(block),
                                            trim_right_ratio=self.trim_right_ratio)
            width //= 2
            yield from self._res_blocks(block, width)
        yield self._act(width)
        yield self._conv(0, width, self.channels, self.last_kernel_size)
        if self.final_activation is not None:
            yield build_activation(self.final_activation, self.final_activation_params, self.channels)
