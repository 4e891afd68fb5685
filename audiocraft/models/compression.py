"""What every model that turns audio into latents or codes, and back, looks like to the rest of the package."""
import typing as tp
from dataclasses import dataclass, field

import torch
from torch import nn


@dataclass
class Posterior:
    """A diagonal Gaussian over latents: `mean` and `std`, both `[B, D, T']`."""
    mean: torch.Tensor
    std: torch.Tensor

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """Return `mean + std * noise`, `[B, D, T']`, for standard normal `noise` of the same shape."""
        return self.mean + self.std * noise


@dataclass
class Reconstruction:
    """What a training step needs to know of one pass through a compression model.

    Args:
        output (torch.Tensor): reconstruction, in the space of the loss (normalised log-mel, waveform, ...).
        target (torch.Tensor): what `output` should have been, same shape.
        penalty (torch.Tensor): cost of the bottleneck (KL divergence, commitment...), 0-dim.
        metrics (dict): further 0-dim values worth logging.
    """
    output: torch.Tensor
    target: torch.Tensor
    penalty: torch.Tensor
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)


class CompressionModel(nn.Module):
    """Audio to latents and back.

    Attributes, set by the constructors of the sub-classes:
        sample_rate (int): of the waveforms, in Hz.
        frame_rate (float): latent frames per second.
        channels (int): of the waveforms.
        latent_dim (int): D, dimension of one latent frame.
    """
    sample_rate: int
    frame_rate: float
    channels: int
    latent_dim: int

    def latent_shape(self, num_samples: int) -> tuple[int, int]:
        """Return `(D, T')`, the shape of the latents of `num_samples` samples of audio."""
        raise NotImplementedError

    def fit_statistics(self, batches: tp.Iterable[torch.Tensor]) -> None:  # noqa: B027
        """Set what the model takes from the training data once, before the first update (nothing by default).

        Args:
            batches (iterable of torch.Tensor): waveforms `[B, C, T]`.
        """

    def encode(self, wav: torch.Tensor) -> Posterior:
        """Encode waveforms `[B, C, T]` to a posterior over latents `[B, D, T']`."""
        raise NotImplementedError

    def decode(self, latents: torch.Tensor, num_samples: int | None = None) -> torch.Tensor:
        """Decode latents `[B, D, T']` to waveforms `[B, C, T]`, cut or padded to `num_samples` when given."""
        raise NotImplementedError

    def forward(self, wav: torch.Tensor, noise: torch.Tensor | None = None) -> Reconstruction:
        """Reconstruct waveforms `[B, C, T]`.

        Args:
            wav (torch.Tensor): waveforms, `[B, C, T]`.
            noise (torch.Tensor or None): standard normal `[B, D, T']` for the latents; with None they are the mean.
        """
        raise NotImplementedError
