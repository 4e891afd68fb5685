"""What every bottleneck of a compression model looks like: a quantizer with codebooks, or a Gaussian one."""

import typing as tp
from dataclasses import dataclass, field

import torch
from torch import nn

from ..utils.random import Draws


@dataclass
class Posterior:
    """A diagonal Gaussian over latents: `mean` and `std`, both `[B, D, T']`."""
    mean: torch.Tensor
    std: torch.Tensor

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """Return `mean + std * noise`, `[B, D, T']`, for standard normal `noise` of the same shape."""
        return self.mean + self.std * noise

    def kl_divergence(self) -> torch.Tensor:
        """KL divergence to the standard normal, in nats per latent element (mean over `[B, D, T']`), 0-dim."""
        return 0.5 * (self.mean.square() + self.std.square() - 1.).mean() - self.std.log().mean()


@dataclass
class Codes:
    """Discrete codes.

    Args:
        codes (torch.Tensor): `[B, K, T']`, int64.
        scale (torch.Tensor or None): `[B, 1]`, by which the decoded waveform is multiplied (models that renormalise).
    """
    codes: torch.Tensor
    scale: torch.Tensor | None = None


@dataclass
class Quantized:
    """What a bottleneck gives to the decoder, and what it cost.

    Args:
        x (torch.Tensor): input of the decoder, `[B, D, T']`; gradients reach the encoder through it.
        penalty (torch.Tensor): what training adds to the loss (commitment, KL divergence), 0-dim.
        codes (torch.Tensor or None): `[B, K, T']`, int64; None for a continuous bottleneck.
        bandwidth (torch.Tensor or None): kilobits per second, 0-dim; None for a continuous bottleneck.
        metrics (dict): further 0-dim values worth logging.
    """
    x: torch.Tensor
    penalty: torch.Tensor
    codes: torch.Tensor | None = None
    bandwidth: torch.Tensor | None = None
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)


class Quantizer(nn.Module):
    """A bottleneck between encoder and decoder.

    Attributes, set by the constructors of the sub-classes:
        dimension (int): D, channels that it gives to the decoder.
        input_dimension (int): channels that it wants from the encoder (D, or 2 D for mean and scale).
        total_codebooks (int): K, codebooks that it has; 0 for a continuous bottleneck.
        num_codebooks (int): how many of them are in use.
        bins (int): entries of each codebook; 0 for a continuous bottleneck.
    """
    dimension: int
    input_dimension: int
    total_codebooks: int = 0
    num_codebooks: int = 0
    bins: int = 0

    def forward(self, x: torch.Tensor, frame_rate: float, draws: Draws | None = None) -> Quantized:
        """Pass `[B, input_dimension, T']` through the bottleneck.

        Args:
            x (torch.Tensor): output of the encoder.
            frame_rate (float): its frames per second, from which the bandwidth follows.
            draws (Draws or None): random numbers of this update (noise of the latents, number of codebooks); None:
                nothing is random.
        """
        raise NotImplementedError

    def encode(self, x: torch.Tensor) -> Posterior | Codes:
        """Encode `[B, input_dimension, T']`."""
        raise NotImplementedError

    def decode(self, encoded: torch.Tensor) -> torch.Tensor:
        """The input of the decoder `[B, D, T']`, for codes `[B, K, T']` or latents `[B, D, T']`."""
        raise NotImplementedError

    def set_num_codebooks(self, n: int) -> None:
        """Use the first `n` codebooks only. Raises `ValueError` outside of 1 to `total_codebooks`."""
        raise ValueError(f'{type(self).__name__} has no codebooks')


Encoded: tp.TypeAlias = Posterior | Codes
