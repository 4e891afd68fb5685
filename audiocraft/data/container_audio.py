"""The sound of containers (mp4, mkv, m4a, ...): what the header says, and parts of it without decoding the rest."""

import typing as tp
from pathlib import Path

import torch

from .audio_frames import AudioCollector
from .media import MediaError, require_file
from .video import audio_stream, decoded_packets, is_cover, open_media, read_media_audio

PREROLL = 0.3
"""Seconds that are decoded before the part that is wanted: decoders need some packets to be exact again after a jump
(Opus 80 ms, AAC one or two blocks)."""
INDEXED = 'mov'
"""FFmpeg's name of mp4, m4a and mov: their packets have exact times, so that it is known where a jump has landed.
Matroska rounds to milliseconds and aac files have no times at all: they are decoded from the beginning."""


def container_audio_info(path: str | Path) -> tuple[int, int, int]:
    """Return rate, channels and samples per channel of the sound; decodes it if the header does not tell.

    Raises:
        MediaError: it cannot be read, or has no sound.
    """
    path = require_file(path)
    with open_media(path) as container:
        stream = audio_stream(container, path)
        rate, channels = stream.codec_context.sample_rate, stream.codec_context.channels
        if stream.duration is not None and rate and channels and _indexed(container):
            end = (stream.start_time or 0) + stream.duration
            start = _first_picture(container)
            start = float((stream.start_time or 0) * stream.time_base) if start is None else start
            return rate, channels, max(0, round((float(end * stream.time_base) - start) * rate))
    wav, rate = read_media_audio(path)
    return rate, wav.shape[0], wav.shape[1]


def _indexed(container: tp.Any) -> bool:
    return INDEXED in container.format.name.split(',')


def _first_picture(container: tp.Any) -> float | None:
    video = next((stream for stream in container.streams.video if not is_cover(stream)), None)
    return None if video is None or video.start_time is None else float(video.start_time * video.time_base)


def read_container_audio(path: str | Path, start: float = 0.,
                         duration: float | None = None) -> tuple[torch.Tensor, int]:
    """Return a part of what `read_media_audio` returns, and the sample rate.

    Args:
        path (str or Path): any container.
        start (float): seconds.
        duration (float or None): seconds; None for all that follows. Where the sound ends earlier, less comes back.
    Returns:
        tuple: `[C, T]` float32 (T may be 0), and the sample rate.
    """
    path = require_file(path)
    part = None if start <= 0. and duration is None else _read_part(path, start, duration)
    if part is not None:
        return part
    wav, rate = read_media_audio(path)
    first = round(start * rate)
    return wav[:, first:None if duration is None else first + round(duration * rate)], rate


def _read_part(path: Path, start: float, duration: float | None) -> tuple[torch.Tensor, int] | None:
    """Jump and decode; None if this container does not allow it."""
    with open_media(path) as container:
        stream = audio_stream(container, path)
        if not _indexed(container) or stream.duration is None:
            return None
        origin, frames = _first_picture(container), _frames(container, stream, path)
        first = next(frames)
        origin = (first.time or 0.) if origin is None else origin
        length = float(((stream.start_time or 0) + stream.duration) * stream.time_base) - origin
        wanted = max(0., length - start if duration is None else min(duration, length - start))
        sound = AudioCollector(path)
        if start > 2 * PREROLL:
            container.seek(max(0, int((origin + start - PREROLL) / stream.time_base)), stream=stream)
            frames = _frames(container, stream, path)
        else:  # what lies before the first packet's time is decoded, too, which a jump would leave out
            sound.add(first)
        for frame in frames:
            sound.add(frame)
            if sound.end >= origin + start + wanted:
                break
    if not sound.pieces or (start > 2 * PREROLL and sound.start > origin + start):
        return None
    wav = sound.between(origin + start, min(wanted, max(0., sound.end - origin - start)))
    return torch.from_numpy(wav), sound.sample_rate


def _frames(container: tp.Any, stream: tp.Any, path: Path) -> tp.Iterator[tp.Any]:
    frames = 0
    for decoded in decoded_packets(container, [stream], path):
        frames += len(decoded)
        yield from decoded
    if not frames:
        raise MediaError(path, 'unreadable', 'its audio track holds no samples')
