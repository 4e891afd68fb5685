"""Latents of a compression model as features."""
import typing as tp

import torch

from ..models.compression import CompressionModel, Posterior
from ..models.loaders import load_compression_model
from .base import Extractor, Spec


class Codec(Extractor):
    """Posterior over the latents of audio, keys `mean` and `std`, both `[T', D]` (time first, as stores have them).

    Args:
        model (CompressionModel or str): the model, or where to load it from (XP folder, checkpoint, `//sig/SIG`).
        device (str): where it runs.
    """
    consumes = 'audio'

    def __init__(self, model: CompressionModel | str, *, device: str = 'cpu'):
        super().__init__()
        self.reference = model if isinstance(model, str) else None
        self.model = load_compression_model(model, device=device) if isinstance(model, str) else model.to(device)
        self.model.eval().requires_grad_(False)

    @property
    def sample_rate(self) -> int:
        """Sample rate of the audio, in Hz."""
        return self.model.sample_rate

    def spec(self, duration: float) -> Spec:
        """Keys `mean` and `std`: `[T', D]`."""
        dim, frames = self.model.latent_shape(round(duration * self.sample_rate))
        return {key: ((frames, dim), torch.float32) for key in ('mean', 'std')}

    @torch.no_grad()
    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode waveforms `[B, C, T]`."""
        posterior = self.model.encode(batch)
        assert isinstance(posterior, Posterior)
        return {'mean': posterior.mean.mT, 'std': posterior.std.mT}

    def identity(self) -> dict[str, tp.Any]:
        """Config and sha256 of the compression model's weights, and the reference that it was loaded from."""
        identity = super().identity()
        identity['build_cfg'] = getattr(self.model, 'build_cfg', None) or identity['build_cfg']
        return {**identity, 'reference': self.reference}
