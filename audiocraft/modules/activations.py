"""Activations by name."""

import typing as tp

import torch
from torch import nn
from torch.nn.modules import activation


class Snake(nn.Module):
    """`x + sin^2(alpha x) / alpha` with one learned alpha per channel: Ziyin et al., 2020, equation 3.

    Args:
        channels (int): C of the inputs `[B, C, T]`.
        alpha (float): what all alphas start from.
    """

    def __init__(self, channels: int, alpha: float = 1.):
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1, channels, 1), float(alpha)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.sin(self.alpha * x).square() / (self.alpha + 1e-9)


def build_activation(name: str, params: dict[str, tp.Any] | None, channels: int) -> nn.Module:
    """Build `snake`, or an activation of `torch.nn` by its class name, as `ELU` or `LeakyReLU`.

    Args:
        name (str): the name; ValueError if there is no such activation.
        params (dict or None): its arguments.
        channels (int): of its inputs, for those that learn something per channel.
    """
    if name == 'snake':
        return Snake(channels, **(params or {}))
    if name not in activation.__all__:
        raise ValueError(f'activation {name!r} is unknown, expected snake or one of torch.nn, as ELU or LeakyReLU')
    return getattr(activation, name)(**(params or {}))
