"""What all losses of waveforms share."""

import torch
from torch import nn


def power(spec: torch.Tensor) -> torch.Tensor:
    """Squared magnitudes of a complex tensor, with a gradient where it is zero."""
    real, imag = torch.view_as_real(spec).unbind(-1)  # a sum over pairs, and `abs`, take several times as long
    return real * real + imag * imag


class WaveformLoss(nn.Module):
    """Distance of two waveforms, always in fp32: a subclass gives `distance`.

    Args:
        min_samples (int): shortest waveforms that can be compared.
    """

    def __init__(self, *, min_samples: int = 1):
        super().__init__()
        self.min_samples = min_samples

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The distance of `[B, C, T]` from `[B, C, T]`, 0-dim and in fp32. The target gets no gradient.

        Raises:
            ValueError: when the shapes differ, or the waveforms are too short.
        """
        name = type(self).__name__
        if output.dim() != 3 or output.shape != target.shape:
            raise ValueError(f'{name} compares waveforms [B, C, T] of one shape, got {list(output.shape)} and '
                             f'{list(target.shape)}')
        if output.shape[-1] < self.min_samples:
            raise ValueError(f'{name} needs at least {self.min_samples} samples, got {output.shape[-1]}: '
                             'use longer segments or shorter windows')
        with torch.autocast(output.device.type, enabled=False):
            return self.distance(output.float(), target.detach().float())

    def distance(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The distance of `[B, C, T]` in fp32 from `[B, C, T]`, which needs no gradient."""
        raise NotImplementedError
