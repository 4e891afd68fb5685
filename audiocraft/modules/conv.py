"""Convolutions over sequences whose channels come last."""

import torch
import torch.nn.functional as F
from torch import nn

LONG = 64  # positions from which the faster of two ways pays


class ChannelLastConv1d(nn.Conv1d):
    """A 1-D convolution of `[B, T, C]`, with the parameters of `nn.Conv1d`.

    Long sequences are convolved as pictures of height 1 in the memory format "channels last", which is how `[B, T, C]`
    lies in memory: nothing is copied, and on a CPU it takes 3/4 of the time. Its sums are a little less precise (1e-6
    instead of 3e-7 of the largest output), so short sequences, where nothing is gained, take the plain way.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, T, C_in]` to `[B, T', C_out]`."""
        if x.shape[1] < LONG or self.padding_mode != 'zeros' or isinstance(self.padding, str):
            return super().forward(x.transpose(1, 2)).transpose(1, 2)
        y = F.conv2d(x.transpose(1, 2).unsqueeze(2), self.weight.unsqueeze(2), self.bias, stride=(1, *self.stride),
                     padding=(0, *self.padding), dilation=(1, *self.dilation), groups=self.groups)
        return y.squeeze(2).transpose(1, 2)


def upsample_nearest(x: torch.Tensor, length: int) -> torch.Tensor:
    """Resample `[B, T, C]` to `[B, length, C]`, each output taking the input nearest to its center."""
    return F.interpolate(x.transpose(1, 2), size=length, mode='nearest-exact').transpose(1, 2)
