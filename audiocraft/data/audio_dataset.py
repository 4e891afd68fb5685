"""Pieces of audio files: which one, from where, is a function of a number; reading them, resampled.

`audio_loader.AudioLoader` makes batches of them.
"""
import collections
import dataclasses
import functools
import itertools
import logging
import math
import os
import threading
import typing as tp
from pathlib import Path

import torch
from torch.nn import functional as F

from ..utils.errors import UserError
from .audio import convert_audio, read_audio
from .audio_manifest import AudioMeta, Missing, load_audio
from .media import MediaError
from .resampling import sinc_resampler
from .sampler import Part

logger = logging.getLogger(__name__)

SLACK = 0.05
"""Part of a piece, and seconds, by which a file may end before its header or manifest says so: mp3 and ogg estimate."""


class Plan(tp.NamedTuple):
    """Which piece an item is.

    Args:
        file (int): number of the file in `AudioDataset.metas`.
        seek (float): seconds from its beginning.
        n_frames (int): samples that the file should have there, at the rate of the data set, by its manifest.
        total_frames (int): samples of the item.
    """
    file: int
    seek: float
    n_frames: int
    total_frames: int


@dataclasses.dataclass(frozen=True)
class SegmentInfo:
    """Where a piece of audio is from.

    Args:
        meta (AudioMeta): the file.
        seek (float): seconds from its beginning.
        n_frames (int): samples from the file; what follows is silence.
        total_frames (int): samples in all.
        sample_rate (int): of the piece.
        channels (int): of the piece.
    """
    meta: AudioMeta
    seek: float
    n_frames: int
    total_frames: int
    sample_rate: int
    channels: int

    def padded(self, frames: int) -> 'SegmentInfo':
        """The same piece with silence up to `frames` samples."""
        return self if frames == self.total_frames else dataclasses.replace(self, total_frames=frames)


class Segment(tp.NamedTuple):
    """A piece of audio `[C, T]`, and where it is from."""
    audio: torch.Tensor
    info: SegmentInfo


@dataclasses.dataclass
class AudioBatch:
    """A few pieces of audio.

    Args:
        ids (list of str): names of the files.
        audio (Tensor): `[B, C, T]`, silence after the end of shorter ones.
        lengths (Tensor): int64 `[B]`, samples that are from the file.
        infos (list of SegmentInfo): where each is from.
        part (Part or None): which part of a global batch this is.
    """
    ids: list[str]
    audio: torch.Tensor
    lengths: torch.Tensor = None  # type: ignore[assignment]
    infos: list[SegmentInfo] = dataclasses.field(default_factory=list)
    part: Part | None = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.lengths is None:
            self.lengths = torch.full((len(self.ids),), self.audio.shape[-1])

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: str | torch.device, non_blocking: bool = False) -> 'AudioBatch':
        """Return the batch on a device (the lengths stay on the CPU)."""
        return dataclasses.replace(self, audio=self.audio.to(device, non_blocking=non_blocking))

    def slice(self, start: int, stop: int) -> 'AudioBatch':
        """Return items `start` to `stop`."""
        return AudioBatch(self.ids[start:stop], self.audio[start:stop], self.lengths[start:stop],
                          self.infos[start:stop])


def unique_ids(paths: tp.Sequence[str]) -> list[str]:
    """Name files by their stems; where these repeat, with their folders (`drums-a`), and if need be a number."""
    stems = [Path(path).stem for path in paths]
    counts = collections.Counter(stems)
    repeated = [path for path, stem in zip(paths, stems) if counts[stem] > 1]
    if not repeated:
        return stems
    root = os.path.commonpath([os.path.dirname(path) or '.' for path in repeated])
    taken = {stem for stem, count in counts.items() if count == 1}
    ids = []
    for path, stem in zip(paths, stems):
        if counts[stem] > 1:
            name = '-'.join(Path(os.path.relpath(path, root)).with_suffix('').parts)
            stem = next(option for option in itertools.chain([name], (f'{name}-{i}' for i in itertools.count(2)))
                        if option not in taken)
            taken.add(stem)
        ids.append(stem)
    return ids


class AudioDataset:
    """Pieces of the files of a manifest, at one sample rate and with one number of channels.

    At random (the default): item `index` of pass `epoch` draws its file and its place from a generator of its own,
    seeded by `index + num_samples * (epoch + shuffle_seed)`: AudioCraft's rule, number by number. So an item can be
    made again at any time. One that cannot be read (damaged, gone, not finite) is named in a warning, counted in
    `failures`, and the next draw of the same generator takes its place.

    `sequential`: each file once, from its beginning, in the order of the manifest; what cannot be read is an error.

    Files are decoded once and kept in memory if all of them fit in `cache_bytes`; else only the piece is read.

    Args:
        source (str, Path or list of AudioMeta): a manifest, a folder or a table of media (`load_audio`), or the files.
        sample_rate (int): of the pieces, in Hz; files are resampled to it.
        channels (int): of the pieces; see `convert_channels`.
        segment (float or None): seconds of a piece; None: whole files, each once.
        sequential (bool): each file once, from its beginning.
        num_samples (int or None): items of a pass at random (None: as many as there are files); else at most that many
            files.
        shuffle (bool): other pieces in each pass; else the same ones.
        shuffle_seed (int): other seeds, other pieces.
        min_segment_ratio (float): how much of a piece must lie inside of the file, where the file is long enough.
        min_audio_duration, max_audio_duration (float or None): seconds; other files are left out.
        sample_on_duration (bool): a file is drawn in proportion to its length.
        sample_on_weight (bool): a file is drawn in proportion to its `weight`.
        permutation_on_files (bool): every file once before any is drawn again (without the two options above).
        fast_draws (bool): draw files by bisection. The same chances but other draws; AudioCraft's way takes 2 ms per
            item and 100,000 files, and has no more than 2^24.
        pad (bool): fill shorter pieces with silence up to `segment`.
        max_read_retry (int): draws before an item is given up with an error.
        align (int): random places are multiples of that many samples.
        cache_bytes (int): memory for decoded files.
        on_missing (str): see `read_manifest`.
        workers (int): threads that read headers, if there is no manifest.
    """

    def __init__(self, source: str | Path | tp.Sequence[AudioMeta], *, sample_rate: int = 48_000, channels: int = 2,
                 segment: float | None = None, sequential: bool = False, num_samples: int | None = None,
                 shuffle: bool = True, shuffle_seed: int = 0, min_segment_ratio: float = 0.5,
                 min_audio_duration: float | None = None, max_audio_duration: float | None = None,
                 sample_on_duration: bool = True, sample_on_weight: bool = True, permutation_on_files: bool = False,
                 fast_draws: bool = False, pad: bool = True, max_read_retry: int = 10, align: int = 1,
                 cache_bytes: int = 0, on_missing: Missing = 'error', workers: int = 4):
        self.source = 'the list of files' if not isinstance(source, (str, Path)) else str(source)
        metas = load_audio(source, on_missing=on_missing, workers=workers) if isinstance(source, (str, Path)) \
            else list(source)
        self.sample_rate, self.channels, self.segment = sample_rate, channels, segment
        # The summand undoes rounding: 0.29 s at 100 Hz are 29 samples, and not 28.999999999999996 cut off.
        self.frames = None if segment is None else int(segment * sample_rate + 1e-6)
        self.random = segment is not None and not sequential
        self.shuffle, self.shuffle_seed, self.min_segment_ratio = shuffle, shuffle_seed, min_segment_ratio
        self.permutation_on_files, self.fast_draws, self.pad = permutation_on_files, fast_draws, pad
        self.max_read_retry, self.align = max_read_retry, align
        if permutation_on_files and (sample_on_duration or sample_on_weight):
            raise UserError('permutation_on_files takes every file once: set sample_on_duration and sample_on_weight '
                            'to false with it.')
        if not 0. <= min_segment_ratio <= 1.:
            raise UserError(f'min_segment_ratio must be between 0 and 1, got {min_segment_ratio}')
        self.metas = self._wanted(metas, min_audio_duration or 0., max_audio_duration or float('inf'))
        if not self.random:
            self.metas = self.metas[:num_samples]
        self.num_samples = (num_samples or len(self.metas)) if self.random else len(self.metas)
        self.ids = unique_ids([meta.path for meta in self.metas])
        uniform = not self.random or not (sample_on_duration or sample_on_weight)
        self.probabilities = None if uniform else self.chances(sample_on_duration, sample_on_weight)
        self._cumulative = None if self.probabilities is None else self.probabilities.double().cumsum(0)
        self.failures: dict[str, int] = {}
        # All or nothing: which files are in a part that is kept would depend on the timing of the threads.
        self.cached = sum(meta.duration for meta in self.metas) * sample_rate * channels * 4 <= cache_bytes
        self._forget()

    def _forget(self) -> None:
        """Start without what only this process has."""
        self._lock = threading.Lock()
        self._cache: dict[int, torch.Tensor] = {}
        self._permutation = functools.lru_cache(maxsize=2)(lambda number: torch.randperm(
            len(self.metas), generator=torch.Generator().manual_seed(self.shuffle_seed + number)))

    def __getstate__(self) -> dict[str, tp.Any]:
        return {key: value for key, value in vars(self).items() if key not in ('_lock', '_cache', '_permutation')}

    def __setstate__(self, state: dict[str, tp.Any]) -> None:
        vars(self).update(state)
        self._forget()

    def _wanted(self, metas: list[AudioMeta], shortest: float, longest: float) -> list[AudioMeta]:
        kept = [meta for meta in metas if meta.duration > 0 and shortest <= meta.duration <= longest]
        if not kept:
            raise UserError(f'{self.source}: none of its {len(metas)} files is {shortest:g} to {longest:g} s long; see '
                            'min_audio_duration and max_audio_duration.')
        if len(kept) < len(metas):
            logger.info('%s: %d of %d files are not %g to %g s long and are left out.', self.source,
                        len(metas) - len(kept), len(metas), shortest, longest)
        return kept

    def chances(self, sample_on_duration: bool, sample_on_weight: bool) -> torch.Tensor:
        """Return how likely each file is to be drawn, float32 `[files]`, when lengths and weights count or not."""
        scores = torch.tensor([(1. if meta.weight is None else meta.weight) if sample_on_weight else 1.
                               for meta in self.metas])
        if sample_on_duration:
            scores *= torch.tensor([meta.duration for meta in self.metas])
        if not bool(scores.sum() > 0):
            raise UserError(f'{self.source}: the weights of all its {len(self.metas)} files are 0.')
        return scores / scores.sum()

    def __len__(self) -> int:
        """Items of a pass."""
        return self.num_samples

    @functools.cached_property
    def files(self) -> list[Path]:
        """The files."""
        return [Path(meta.path) for meta in self.metas]

    @property
    def durations(self) -> list[float]:
        """Their lengths in seconds."""
        return [meta.duration for meta in self.metas]

    def plan(self, index: int, epoch: int = 0) -> Plan:
        """Return which piece item `index` of pass `epoch` is (its first draw, should that not be readable)."""
        return next(self.draws(index, epoch))

    def draws(self, index: int, epoch: int = 0) -> tp.Iterator[Plan]:
        """Yield the draws of an item: the second and later ones stand in for what cannot be read."""
        if not 0 <= index < len(self):
            raise IndexError(f'item {index} of {len(self)}')
        if not self.random:
            yield self._plan(index, 0.)
            return
        g = torch.Generator().manual_seed(index + self.num_samples * (epoch + self.shuffle_seed) * self.shuffle)
        permuted = self._permuted(index, epoch) if self.permutation_on_files else None
        assert self.segment is not None
        while True:
            file = self._draw_file(g) if permuted is None else permuted
            room = max(0., self.metas[file].duration - self.segment * self.min_segment_ratio)
            yield self._plan(file, float(torch.rand(1, generator=g)) * room)
            permuted = None  # its file would come again; a drawn one stands in

    def _plan(self, file: int, seek: float) -> Plan:
        duration = self.metas[file].duration
        if self.frames is None:
            frames = int(duration * self.sample_rate)
            return Plan(file, seek, frames, frames)
        if self.align > 1:
            seek = int(seek * self.sample_rate) // self.align * self.align / self.sample_rate
        return Plan(file, seek, min(self.frames, round((duration - seek) * self.sample_rate)), self.frames)

    def _draw_file(self, g: torch.Generator) -> int:
        if self.probabilities is None:
            return int(torch.randint(len(self.metas), (1,), generator=g))
        if not self.fast_draws:
            return int(torch.multinomial(self.probabilities, 1, generator=g))
        assert self._cumulative is not None
        place = torch.rand(1, generator=g, dtype=torch.float64) * self._cumulative[-1]
        return min(int(torch.searchsorted(self._cumulative, place, right=True)), len(self.metas) - 1)

    def _permuted(self, index: int, epoch: int) -> int:
        number, position = divmod(index + self.num_samples * epoch * self.shuffle, len(self.metas))
        return int(self._permutation(number)[position])

    def item(self, index: int, epoch: int = 0) -> tuple[int, Segment]:
        """Return (number of the file, piece) of item `index` of pass `epoch`.

        Raises:
            MediaError: a file of a sequential data set cannot be read.
            UserError: none of `max_read_retry` draws could be read.
        """
        for number, plan in enumerate(self.draws(index, epoch), 1):
            try:
                return plan.file, self.read(plan)
            except MediaError as error:
                if not self.random:
                    raise
                self._note(error)
                if number >= self.max_read_retry:
                    raise UserError(f'{self.source}: item {index} of pass {epoch} could not be read, nor what was '
                                    f'drawn in its place ({number} draws); the last: {error}. '
                                    '`python -m audiocraft check` tells more.') from error
        raise AssertionError('draws do not end')

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return `[C, T]` of an item of the first pass."""
        if index >= len(self):
            raise IndexError(index)
        return self.item(index)[1].audio

    def _note(self, error: MediaError) -> None:
        with self._lock:
            path = str(error.path)
            self.failures[path] = self.failures.get(path, 0) + 1
            if self.failures[path] == 1:
                logger.warning('%s (file number %d that cannot be read, of %d): other pieces are drawn in its place.',
                               error, len(self.failures), len(self.metas))

    def read(self, plan: Plan) -> Segment:
        """Read a piece.

        Raises:
            MediaError: that fails, there are much fewer samples than the manifest says, or they are not finite.
        """
        meta = self.metas[plan.file]
        wav = self._from_memory(plan) if self.cached else self._decode(meta, plan.seek, self.frames)
        frames = wav.shape[-1]
        if frames < plan.n_frames * (1 - SLACK) - SLACK * self.sample_rate or not frames:
            raise MediaError(meta.path, 'too short', f'{frames} samples from {plan.seek:.3f} s on, where '
                             f'{plan.n_frames} were expected: it is damaged, or its manifest is out of date')
        if self.frames is not None:
            wav, frames = wav[:, :self.frames], min(frames, self.frames)
            if self.pad and frames < self.frames:
                wav = F.pad(wav, (0, self.frames - frames))
        return Segment(wav, SegmentInfo(meta, plan.seek, frames, wav.shape[-1], self.sample_rate, self.channels))

    def segment_at(self, file: int, place: float) -> torch.Tensor:
        """Return `[C, T]` of a file, at `place`: 0 its beginning, 1 the latest that needs no silence."""
        if self.segment is None:
            return self.read(self._plan(file, 0.)).audio
        return self.read(self._plan(file, max(0., self.metas[file].duration - self.segment) * place)).audio

    def spread(self, count: int) -> tp.Iterator[torch.Tensor]:
        """Yield `[C, T]` from the middles of about `count` files, evenly spread; of a random data set those that cannot
        be read are named, counted and left out.

        Raises:
            MediaError: a file of a sequential data set cannot be read.
            UserError: none of them can.
        """
        files = range(0, len(self.metas), max(1, len(self.metas) // count))
        unread = 0
        for file in files:
            try:
                yield self.segment_at(file, 0.5)
            except MediaError as error:
                if not self.random:
                    raise
                self._note(error)
                unread += 1
                if unread == len(files):
                    raise UserError(f'{self.source}: none of the {unread} files that were tried could be read; the '
                                    f'last: {error}. `python -m audiocraft check` tells more.') from error

    def _from_memory(self, plan: Plan) -> torch.Tensor:
        if plan.file not in self._cache:
            self._cache[plan.file] = self._decode(self.metas[plan.file]).contiguous()
        start = round(plan.seek * self.sample_rate)
        return self._cache[plan.file][:, start:None if self.frames is None else start + self.frames]

    def _decode(self, meta: AudioMeta, seek: float = 0., frames: int | None = None) -> torch.Tensor:
        wav, rate = self._samples(meta, seek, frames)
        try:
            wav = convert_audio(wav, rate, self.sample_rate, self.channels)
        except ValueError as error:
            raise MediaError(meta.path, 'channels', str(error)) from error
        # A sum is much quicker than a look at each sample, and not finite if one of them is not.
        if not math.isfinite(float(wav.sum())) and not bool(wav.isfinite().all()):
            raise MediaError(meta.path, 'not finite', 'it holds NaN or infinite samples')
        return wav

    def _samples(self, meta: AudioMeta, seek: float, frames: int | None) -> tuple[torch.Tensor, int]:
        if frames is None:
            return read_audio(meta.path, seek)
        duration = frames / self.sample_rate
        if meta.sample_rate != self.sample_rate:
            # As many as the resampler needs, so that no sample is missing at the end for rounding.
            needed = sinc_resampler(meta.sample_rate, self.sample_rate).needed(frames)
            duration = needed / meta.sample_rate
        return read_audio(meta.path, seek, duration)


if __name__ == '__main__':  # the name that AudioCraft has for `python -m audiocraft manifest ROOT OUT`
    import runpy
    import sys
    sys.argv[1:1] = ['manifest']
    runpy.run_module('audiocraft', run_name='__main__')
