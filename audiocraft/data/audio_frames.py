"""Decoded audio frames of a container, put together by their timestamps."""

import typing as tp
from pathlib import Path

import numpy as np

from .media import MediaError

GAP = 0.02
"""Seconds: smaller jumps of the timestamps are rounding (milliseconds in mkv), larger ones are gaps or cuts."""


class AudioCollector:
    """Collects decoded frames (`av.AudioFrame`) of one stream; times are those of the container, in seconds."""

    def __init__(self, path: tp.Union[str, Path]):
        self.path = path
        self.sample_rate = 0
        self.channels = 0
        self.start = 0.
        self.pieces: list[tuple[int, np.ndarray]] = []
        self.position = 0

    def add(self, frame: tp.Any) -> None:
        """Append a frame; it goes where its timestamp says, or right behind the one before if that is near."""
        samples = to_float(frame)
        if not self.pieces:
            self.sample_rate, self.channels = frame.sample_rate, samples.shape[0]
            self.start = frame.time or 0.
        if (frame.sample_rate, samples.shape[0]) != (self.sample_rate, self.channels):
            raise MediaError(self.path, 'unreadable', f'its audio changes from {self.sample_rate} Hz x {self.channels} '
                                                      f'to {frame.sample_rate} Hz x {samples.shape[0]} on the way')
        position = self.position
        if frame.time is not None:
            stated = round((frame.time - self.start) * self.sample_rate)
            if abs(stated - position) > GAP * self.sample_rate:
                position = max(stated, 0)
        self.pieces.append((position, samples))
        self.position = position + samples.shape[1]

    @property
    def end(self) -> float:
        """Time of the end of what has come so far, seconds."""
        return self.start + self.position / self.sample_rate if self.sample_rate else float('-inf')

    def between(self, start: float, duration: float) -> np.ndarray:
        """Return `[C, round(duration * sample_rate)]` from the time `start` on; zeros where there is nothing."""
        if not self.pieces:
            raise MediaError(self.path, 'unreadable', 'its audio track holds no samples')
        length = round(duration * self.sample_rate)
        shift = round((self.start - start) * self.sample_rate)
        wav = np.zeros((self.channels, length), dtype=np.float32)
        for position, samples in self.pieces:
            first = position + shift
            left, right = max(first, 0), min(first + samples.shape[1], length)
            if left < right:
                wav[:, left:right] = samples[:, left - first:right - first]
        return wav


def to_float(frame: tp.Any) -> np.ndarray:
    """Return the samples of an `av.AudioFrame` as `[C, T]` float32 in [-1, 1]."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, len(frame.layout.channels)).T
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if np.issubdtype(samples.dtype, np.integer):
        return samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    return samples.astype(np.float32)
