"""Batches of audio segments, cut from the media files of a folder or of a manifest."""
import collections
import concurrent.futures
import dataclasses
import itertools
import logging
import typing as tp
from pathlib import Path

import torch
from torch.nn import functional as F

from ..environment import AudioCraftEnvironment
from ..utils.errors import UserError
from ..utils.random import generator
from .audio import audio_info, read_audio, resample
from .manifest import read_table
from .media import AUDIO_SUFFIXES, CONTAINER_AUDIO_SUFFIXES, VIDEO_SUFFIXES, MediaError
from .sampler import BatchSampler

logger = logging.getLogger(__name__)

MEDIA_SUFFIXES = (*AUDIO_SUFFIXES, *CONTAINER_AUDIO_SUFFIXES, *VIDEO_SUFFIXES)


@dataclasses.dataclass
class AudioBatch:
    """A few segments of audio.

    Args:
        ids (list of str): file stem of each segment.
        audio (Tensor): `[B, C, T]`.
    """
    ids: list[str]
    audio: torch.Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: str | torch.device, non_blocking: bool = False) -> 'AudioBatch':
        """Return the batch on a device."""
        return AudioBatch(self.ids, self.audio.to(device, non_blocking=non_blocking))

    def slice(self, start: int, stop: int) -> 'AudioBatch':
        """Return items `start` to `stop`."""
        return AudioBatch(self.ids[start:stop], self.audio[start:stop])


def list_media(path: str | Path) -> list[Path]:
    """Return the media files of a folder (sorted by name), or those that a manifest's column `path` names.

    Paths in a manifest are relative to the manifest; the cluster's dataset mappers rewrite them.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in MEDIA_SUFFIXES)
    elif path.is_file():
        rows = read_table(path, required=['path'])
        files = [path.parent / AudioCraftEnvironment.apply_dataset_mappers(row['path']) for row in rows]
    else:
        raise UserError(f'{path}: there is no such folder or manifest of media')
    if not files:
        raise UserError(f'{path} holds no media file ({", ".join(MEDIA_SUFFIXES)})')
    return files


def media_duration(path: Path) -> float:
    """Return the seconds of a media file, from its header where that tells.

    Raises:
        MediaError: it cannot be read, or has no sound.
    """
    if path.suffix.lower() in AUDIO_SUFFIXES:
        return audio_info(path).duration
    if path.suffix.lower() in VIDEO_SUFFIXES:
        from .video import video_info  # needs PyAV, which audio files do not
        info = video_info(path)
        if not info.has_audio:
            raise MediaError(path, 'no audio track')
        if info.duration is not None:
            return info.duration
    wav, sample_rate = read_audio(path)
    return wav.shape[-1] / sample_rate


def usable(files: tp.Sequence[Path], source: str | Path) -> tuple[list[Path], list[float]]:
    """Return the files that have sound, with their durations; the others are named in a warning."""
    kept: dict[Path, float] = {}
    for file in files:
        try:
            kept[file] = media_duration(file)
        except MediaError as error:
            logger.warning('%s (left out)', error)
    if not kept:
        raise UserError(f'{source}: none of its {len(files)} media files can be used')
    return list(kept), list(kept.values())


def to_channels(wav: torch.Tensor, channels: int) -> torch.Tensor:
    """Mix `[C, T]` down to mono, or repeat mono to `channels`."""
    if wav.shape[0] == channels:
        return wav
    return wav.mean(dim=0, keepdim=True).expand(channels, -1)


class AudioSegments:
    """Batches of segments; batch number b is a function of (seed, b), whatever the number of processes.

    Files are decoded once and kept in memory if all of them fit in `cache_bytes`; else only the segment is read each
    time. Worker threads make a few batches ahead.

    Args:
        path (str or Path): folder of media files, or a manifest (column `path`).
        sample_rate (int): of the batches, in Hz; files are resampled to it.
        segment (float): seconds of a segment; shorter files are padded with silence.
        batch_size (int): segments of a global batch.
        channels (int): channels of the batches.
        seed (int): seed of the order and of the positions.
        random (bool): random order and positions without an end (training); else each file once, from its beginning.
        limit (int or None): at most that many files.
        align (int): random positions are multiples of that many samples.
        threads (int): worker threads; 0 reads when a batch is asked for.
        cache_bytes (int): memory for decoded files.
        rank, world_size (int): which part of each global batch is made.
    """

    def __init__(self, path: str | Path, *, sample_rate: int, segment: float, batch_size: int, channels: int = 1,
                 seed: int = 0, random: bool = False, limit: int | None = None, align: int = 1, threads: int = 1,
                 cache_bytes: int = 1 << 30, rank: int = 0, world_size: int = 1):
        self.files, self.durations = usable(list_media(path)[:limit], path)
        self.sample_rate, self.channels, self.seed, self.random = sample_rate, channels, seed, random
        self.samples, self.align, self.threads = round(segment * sample_rate), align, threads
        self.sampler = BatchSampler(len(self.files), batch_size, seed, shuffle=random, infinite=random,
                                    rank=rank, world_size=world_size)
        # All or nothing: which files are in a part that is kept would depend on the timing of the threads.
        self.cached = sum(self.durations) * sample_rate * channels * 4 <= cache_bytes
        self._cache: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        """Batches in one pass over the files."""
        return len(self.sampler)

    def __iter__(self) -> tp.Iterator[AudioBatch]:
        return self.iterate(0)

    def iterate(self, start: int = 0) -> tp.Iterator[AudioBatch]:
        """Yield the batches from number `start` on, without an end when random."""
        numbers = iter(range(start, 2 ** 62 if self.random else len(self)))
        if self.threads < 1:
            yield from map(self.batch, numbers)
            return
        pool = concurrent.futures.ThreadPoolExecutor(self.threads, 'audio', initializer=torch.set_num_threads,
                                                     initargs=(1,))
        try:
            ahead = collections.deque(pool.submit(self.batch, n) for n in itertools.islice(numbers, 2 * self.threads))
            while ahead:
                batch = ahead.popleft().result()
                ahead.extend(pool.submit(self.batch, n) for n in itertools.islice(numbers, 1))
                yield batch
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def batch(self, number: int) -> AudioBatch:
        """Make batch `number` of this rank."""
        indices = self.sampler.batch(number)
        size = self.sampler.batch_size
        places = torch.rand(size, generator=generator(self.seed, 'segments', number)) if self.random \
            else torch.zeros(size)
        low = size * self.sampler.rank // self.sampler.world_size if self.random else 0
        wavs = [self.segment(index, float(places[low + i])) for i, index in enumerate(indices)]
        audio = torch.stack(wavs) if wavs else torch.zeros(0, self.channels, self.samples)
        return AudioBatch([self.files[index].stem for index in indices], audio)

    def segment(self, index: int, place: float) -> torch.Tensor:
        """Return `[C, T]` of a file, at `place` (0 the earliest possible, 1 the latest)."""
        if self.cached:
            if index not in self._cache:
                self._cache[index] = self._decode(index)
            return self._cut(self._cache[index], place)
        start = max(0., self.durations[index] - self.samples / self.sample_rate) * place
        # A little more than needed: rates seldom divide, and the cut makes the length exact.
        return self._cut(self._decode(index, start, self.samples / self.sample_rate + 0.05), 0.)

    def _cut(self, wav: torch.Tensor, place: float) -> torch.Tensor:
        start = int(max(0, wav.shape[-1] - self.samples) * place) // self.align * self.align
        wav = wav[:, start:start + self.samples]
        return F.pad(wav, (0, self.samples - wav.shape[-1]))

    def _decode(self, index: int, start: float = 0., duration: float | None = None) -> torch.Tensor:
        wav, rate = read_audio(self.files[index], start, duration)
        return resample(to_channels(wav, self.channels), rate, self.sample_rate)
