"""Lengths of the sequences of a clip: latents, visual features and samples."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class SequenceLengths:
    """Lengths for one duration.

    Args:
        latent (int): latent frames; `clip` and `sync` are those of the visual features.
        samples (int): samples of audio that the latents cover, at least those of the duration.
    """
    latent: int
    clip: int
    sync: int
    samples: int


def latent_length(duration: float, sample_rate: int, *, hop: int, stride: int = 2) -> int:
    """Latent frames that cover `duration` seconds, with `stride` frames of `hop` samples each."""
    return math.ceil(duration * sample_rate / hop / stride)


def segments_length(duration: float, fps: float = 25., *, size: int = 16, step: int = 8) -> int:
    """Features of overlapping segments of `size` frames, each `step` frames after the one before and giving `step`."""
    return (math.floor((fps * duration - size) / step) + 1) * step


def sequence_lengths(duration: float, sample_rate: int, *, hop: int, stride: int = 2, clip_fps: float = 8.,
                     sync_fps: float = 25.) -> SequenceLengths:
    """The lengths for clips of `duration` seconds.

    Args:
        duration (float): seconds.
        sample_rate (int): of the audio.
        hop (int): samples per spectrogram frame.
        stride (int): spectrogram frames per latent frame.
        clip_fps (float): rate of the visual features.
        sync_fps (float): rate of the frames behind the synchronization features.
    """
    latent = latent_length(duration, sample_rate, hop=hop, stride=stride)
    return SequenceLengths(latent=latent, clip=int(clip_fps * duration), sync=segments_length(duration, sync_fps),
                           samples=latent * hop * stride)
