"""Latents or codes of a compression model as features."""
import typing as tp

import torch

from ..models.compression import Codes, CompressionModel, Posterior
from ..models.loaders import load_compression_model
from ..utils.errors import UserError
from .base import Extractor, Spec


class Codec(Extractor):
    """What a compression model makes of audio, time first, as stores have it.

    Key `codes`, `[T', K]`, of a discrete model (int16 where all codes fit, else int32); `mean` and `std`, both
    `[T', D]`, of a continuous one.

    Args:
        model (CompressionModel or str): the model, or where to load it from (XP folder, checkpoint, `//sig/SIG`).
        device (str or torch.device): where it runs.
    Raises:
        UserError: the model divides audio by its volume, which codes or latents alone do not hold.
    """
    consumes = 'audio'

    def __init__(self, model: CompressionModel | str, *, device: str | torch.device = 'cpu'):
        super().__init__()
        self.reference = model if isinstance(model, str) else None
        self.model = load_compression_model(model, device=device) if isinstance(model, str) else model.to(device)
        self.model.eval().requires_grad_(False)
        if getattr(self.model, 'renormalize', False):
            raise self._has_volume()
        self.timed = ('codes',) if self.model.is_discrete else ('mean', 'std')

    def _has_volume(self) -> UserError:
        return UserError(f'{self.reference or type(self.model).__name__} divides audio by its volume before encoding '
                         '(renormalize), and a store has no place for the volume: give a codec that does not.')

    @property
    def sample_rate(self) -> int:
        """Sample rate of the audio, in Hz."""
        return self.model.sample_rate

    @property
    def dtype(self) -> torch.dtype:
        """Of the features."""
        if not self.model.is_discrete:
            return torch.float32
        return torch.int16 if self.model.codebook_size <= torch.iinfo(torch.int16).max else torch.int32

    def spec(self, duration: float) -> Spec:
        """Key `codes`: `[T', K]`; or `mean` and `std`: `[T', D]`."""
        dim, frames = self.model.latent_shape(round(duration * self.sample_rate))
        dim = self.model.num_codebooks if self.model.is_discrete else dim
        return {key: ((frames, dim), self.dtype) for key in self.timed}

    def span(self, duration: float) -> int:
        """Return how many samples the latents of `duration` seconds stand for, at least those of the duration.

        Frames are rounded up: 8 s at 44.1 kHz, 352800 samples, make 345 frames of 1024 samples, 353280.
        """
        samples = round(duration * self.sample_rate)
        frames = self.model.latent_shape(samples)[1]
        span = max(samples, round(frames * self.sample_rate / self.model.frame_rate))
        return span if self.model.latent_shape(span)[1] == frames else samples

    @torch.no_grad()
    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode waveforms `[B, C, T]`."""
        encoded = self.model.encode(batch)
        if isinstance(encoded, Posterior):
            return {'mean': encoded.mean.mT, 'std': encoded.std.mT}
        assert isinstance(encoded, Codes)
        if encoded.scale is not None:
            raise self._has_volume()
        return {'codes': encoded.codes.mT.to(self.dtype)}

    def identity(self) -> dict[str, tp.Any]:
        """Config and sha256 of the compression model's weights, and the reference that it was loaded from."""
        identity = super().identity()
        identity['build_cfg'] = getattr(self.model, 'build_cfg', None) or identity['build_cfg']
        return {**identity, 'reference': self.reference}
