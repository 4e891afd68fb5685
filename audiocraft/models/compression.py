"""What every model that turns audio into latents or codes, and back, looks like to the rest of the package."""
import typing as tp
from dataclasses import dataclass, field

import torch
from torch import nn

from ..quantization.base import Codes, Encoded, Posterior
from ..utils.random import Draws

__all__ = ['Codes', 'CompressionModel', 'Encoded', 'Posterior', 'Reconstruction']


@dataclass
class Reconstruction:
    """What a training step needs to know of one pass through a compression model.

    Args:
        output (torch.Tensor): reconstruction, in the space of the loss (normalised log-mel, waveform, ...).
        target (torch.Tensor): what `output` should have been, same shape.
        penalty (torch.Tensor): cost of the bottleneck (KL divergence, commitment...), 0-dim.
        codes (torch.Tensor or None): `[B, K, T']` of a discrete model.
        metrics (dict): further 0-dim values worth logging.
    """
    output: torch.Tensor
    target: torch.Tensor
    penalty: torch.Tensor
    codes: torch.Tensor | None = None
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)


class CompressionModel(nn.Module):
    """Audio to latents or codes, and back.

    Attributes, set by the constructors of the sub-classes:
        sample_rate (int): of the waveforms, in Hz.
        frame_rate (float): latent frames per second.
        channels (int): of the waveforms.
        latent_dim (int): D, dimension of one latent frame, as the decoder takes it.
        num_codebooks (int): K, codebooks in use; 0 for a model of continuous latents.
        codebook_size (int): entries of each; 0 for a model of continuous latents.
    """
    sample_rate: int
    frame_rate: float
    channels: int
    latent_dim: int
    num_codebooks: int = 0
    codebook_size: int = 0

    @property
    def is_discrete(self) -> bool:
        """Whether `encode` gives `Codes`; else it gives a `Posterior`."""
        return self.num_codebooks > 0

    def latent_shape(self, num_samples: int) -> tuple[int, int]:
        """Return `(D, T')`, the shape of the latents of `num_samples` samples of audio."""
        raise NotImplementedError

    def fit_statistics(self, batches: tp.Iterable[torch.Tensor]) -> None:  # noqa: B027
        """Set what the model takes from the training data once, before the first update (nothing by default).

        Args:
            batches (iterable of torch.Tensor): waveforms `[B, C, T]`.
        """

    def encode(self, wav: torch.Tensor) -> Encoded:
        """Encode waveforms `[B, C, T]` to codes `[B, K, T']`, or to a posterior over latents `[B, D, T']`."""
        raise NotImplementedError

    def decode(self, encoded: torch.Tensor | Encoded, num_samples: int | None = None) -> torch.Tensor:
        """Decode to waveforms `[B, C, T]`.

        Args:
            encoded: what `encode` gave (of a posterior the mean is taken), or latents `[B, D, T']`, or codes
                `[B, K, T']`; fewer codebooks than the model has are a coarser version.
            num_samples (int or None): cut or pad to that many samples.
        """
        raise NotImplementedError

    def forward(self, wav: torch.Tensor, draws: Draws | None = None) -> Reconstruction:
        """Reconstruct waveforms `[B, C, T]`.

        Args:
            wav (torch.Tensor): waveforms, `[B, C, T]`.
            draws (Draws or None): random numbers of this update, for the bottleneck; None: nothing is random.
        """
        raise NotImplementedError
