"""Small media for the tests of extraction, and a compression model that needs no training."""

import typing as tp
from pathlib import Path

import torch

from audiocraft.data.audio import write_audio
from audiocraft.data.manifest import write_table
from audiocraft.data.video import write_video
from audiocraft.features.tiny import TinyImage, TinyMotion, TinyText
from audiocraft.models.mel_vae import MelVAE
from audiocraft.utils.config import build

DURATION = 1.
CODEC = {'_target_': 'audiocraft.models.mel_vae.MelVAE', 'latent_dim': 4, 'width': 8, 'depth': 1,
         'griffin_lim_iter': 2}
EXTRACTORS: dict[str, dict[str, tp.Any]] = {
    'image': {'_target_': 'audiocraft.features.tiny.TinyImage', 'fps': 4., 'grid': 2, 'bits': 1},
    'motion': {'_target_': 'audiocraft.features.tiny.TinyMotion', 'fps': 8., 'grid': 4},
    'text': {'_target_': 'audiocraft.features.tiny.TinyText', 'dim': 8, 'max_tokens': 4},
}


def codec() -> MelVAE:
    """The same random weights each time."""
    torch.manual_seed(0)
    return build(CODEC)


def extractors() -> dict[str, TinyImage | TinyMotion | TinyText]:
    """The extractors of `EXTRACTORS`, built."""
    return {name: build(node) for name, node in EXTRACTORS.items()}


def noise(seed: int, seconds: float, sample_rate: int = 16_000, channels: int = 1) -> torch.Tensor:
    """Noise `[channels, T]` that gets louder."""
    samples = round(seconds * sample_rate)
    wav = torch.randn(channels, samples, generator=torch.Generator().manual_seed(seed))
    return 0.1 * wav.clamp(-3, 3) * torch.linspace(0.2, 1., samples)


def frames(seed: int, seconds: float = 1.2, fps: float = 10.) -> torch.Tensor:
    """A bright square that moves over a dark picture, uint8 `[T, 3, 48, 64]`."""
    count = round(seconds * fps)
    pictures = torch.full((count, 3, 48, 64), 20, dtype=torch.uint8)
    for i in range(count):
        left = (4 * i + 7 * seed) % 48
        pictures[i, seed % 3, 16:32, left:left + 16] = 230
    return pictures


def make_video(path: Path, seed: int = 0, seconds: float = 1.2, sound: bool = True) -> Path:
    """Write one video."""
    return write_video(path, frames(seed, seconds), 10., noise(seed, seconds) if sound else None, 16_000)


def make_videos(folder: Path, count: int) -> Path:
    """Write `v0.mp4`, ... and `captions.tsv` beside the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        make_video(folder / f'v{i}.mp4', i)
    rows = [{'id': f'v{i}', 'caption': f'square number {i}'} for i in range(count)]
    write_table(folder.parent / 'captions.tsv', rows, ['id', 'caption'])
    return folder


def make_audio(path: Path, seed: int, seconds: float, sample_rate: int = 16_000, channels: int = 1) -> Path:
    """Write one audio file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_audio(path, noise(seed, seconds, sample_rate, channels), sample_rate)
