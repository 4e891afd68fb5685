"""Two channels through a codec of one, and the codes of both in one stream: the stereo of MusicGen."""

import torch

from ..quantization.base import Codes, Encoded
from ..utils.random import Draws
from .compression import CompressionModel, Reconstruction


class InterleaveStereo(CompressionModel):
    """A discrete compression model of one channel, applied to the left and the right one.

    Args:
        model (CompressionModel): of one channel, with codes.
        per_timestep (bool): False: the codebooks of the channels alternate (left 1, right 1, left 2, ...), so that
            there are twice as many. True: the frames alternate (left, right), so that there are twice as many.
    """

    def __init__(self, *, model: CompressionModel, per_timestep: bool = False):
        super().__init__()
        if model.channels != 1 or not model.is_discrete:
            raise ValueError('InterleaveStereo wants a model with codes and of one channel, got '
                             f'{"codes" if model.is_discrete else "continuous latents"} of {model.channels} channel(s)')
        self.model, self.per_timestep = model, per_timestep
        self.renormalize = bool(getattr(model, 'renormalize', False))
        self.sample_rate, self.channels, self.latent_dim = model.sample_rate, 2, model.latent_dim
        self.frame_rate = model.frame_rate * (2 if per_timestep else 1)

    @property
    def num_codebooks(self) -> int:  # type: ignore[override]
        """K of the interleaved codes."""
        return self.model.num_codebooks * (1 if self.per_timestep else 2)

    @property
    def codebook_size(self) -> int:  # type: ignore[override]
        """Entries of each codebook."""
        return self.model.codebook_size

    def set_num_codebooks(self, n: int) -> None:
        """Use the first `n` codebooks of each channel only."""
        self.model.set_num_codebooks(n)  # type: ignore[operator]

    def latent_shape(self, num_samples: int) -> tuple[int, int]:
        """Return `(D, T')`, with the frames of the interleaved codes."""
        dim, frames = self.model.latent_shape(num_samples)
        return dim, frames * (2 if self.per_timestep else 1)

    def interleave(self, codes: torch.Tensor) -> torch.Tensor:
        """From the codes of left and right `[B, 2, K, T']` to one stream, `[B, 2 K, T']` or `[B, K, 2 T']`."""
        if self.per_timestep:
            return codes.permute(0, 2, 3, 1).flatten(2)
        return codes.transpose(1, 2).flatten(1, 2)

    def separate(self, codes: torch.Tensor) -> torch.Tensor:
        """From one stream to the codes of left and right `[B, 2, K, T']`."""
        axis = 2 if self.per_timestep else 1
        if codes.shape[axis] % 2:
            what = 'frames' if self.per_timestep else 'codebooks'
            raise ValueError(f'expected codes of two channels, got an odd number of {what}: {list(codes.shape)}')
        if self.per_timestep:
            return codes.unflatten(2, (-1, 2)).permute(0, 3, 1, 2)
        return codes.unflatten(1, (-1, 2)).transpose(1, 2)

    def _mono(self, wav: torch.Tensor) -> torch.Tensor:
        """The channels of `[B, 2, T]` as items `[2 B, 1, T]`."""
        if wav.dim() != 3 or wav.shape[1] != 2:
            raise ValueError(f'expected waveforms [B, 2, T], got {list(wav.shape)}')
        return wav.reshape(-1, 1, wav.shape[-1])

    def encode(self, wav: torch.Tensor) -> Codes:
        """Encode waveforms `[B, 2, T]`; the volumes of a model that renormalises are `[B, 2]`."""
        encoded = self.model.encode(self._mono(wav))
        assert isinstance(encoded, Codes)
        scale = None if encoded.scale is None else encoded.scale.view(-1, 2)
        return Codes(self.interleave(encoded.codes.unflatten(0, (-1, 2))), scale)

    def decode(self, encoded: torch.Tensor | Encoded, num_samples: int | None = None) -> torch.Tensor:
        """Decode codes to waveforms `[B, 2, T]`; see `CompressionModel.decode`."""
        scale = encoded.scale if isinstance(encoded, Codes) else None
        codes = encoded.codes if isinstance(encoded, Codes) else encoded
        if not isinstance(codes, torch.Tensor) or codes.is_floating_point():
            raise ValueError('expected codes: latents of two channels cannot be decoded')
        mono = Codes(self.separate(codes).flatten(0, 1), None if scale is None else scale.reshape(-1, 1))
        return self.model.decode(mono, num_samples).unflatten(0, (-1, 2)).squeeze(2)

    def forward(self, wav: torch.Tensor, draws: Draws | None = None) -> Reconstruction:
        """Reconstruct waveforms `[B, 2, T]`; the random numbers are drawn for one channel's batch of twice the size."""
        made = self.model(self._mono(wav), draws)
        codes = None if made.codes is None else self.interleave(made.codes.unflatten(0, (-1, 2)))
        return Reconstruction(made.output.reshape(wav.shape), wav, made.penalty, codes, made.metrics)


