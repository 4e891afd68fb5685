"""Compression models that need no training, and audio that says which frame it is."""
import math
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import nn

from audiocraft.models.compression import Codes, CompressionModel, Encoded, Posterior

RATE = 8000
HOP = 100


class Counter(CompressionModel):
    """Codebook k of a frame is the first sample of channel k, in steps of 16 bits; continuous: the mean of latents."""

    def __init__(self, *, channels: int = 1, discrete: bool = True, codebook_size: int = 1024, scaled: bool = False):
        super().__init__()
        self.sample_rate, self.frame_rate, self.channels, self.latent_dim = RATE, RATE / HOP, channels, channels
        self.num_codebooks, self.codebook_size = (channels, codebook_size) if discrete else (0, 0)
        self.scaled, self.sizes = scaled, list[tuple[int, ...]]()
        self.weight = nn.Parameter(torch.ones(1))

    def latent_shape(self, num_samples: int) -> tuple[int, int]:
        return self.latent_dim, math.ceil(num_samples / HOP)

    def encode(self, wav: torch.Tensor) -> Encoded:
        self.sizes.append(tuple(wav.shape))
        frames = wav[..., ::HOP] * 32768
        if self.is_discrete:
            return Codes(frames.round().long(), torch.ones(len(wav), 1) if self.scaled else None)
        return Posterior(frames, torch.full_like(frames, 0.5))


def counting(path: Path, first: int, frames: float, channels: int = 1, rate: int = RATE) -> Path:
    """Write audio whose frames are `first`, `first + 1`, ... (of channel k: 1000 k more); it may end within a frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hop = HOP * rate // RATE
    numbers = first + np.arange(math.ceil(frames)).repeat(hop)[:round(frames * hop)]
    soundfile.write(str(path), np.stack([numbers + 1000 * k for k in range(channels)], 1).astype(np.int16), rate)
    return path
