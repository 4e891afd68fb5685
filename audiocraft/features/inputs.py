"""What extraction reads: the items of a folder or a table, and each item decoded for the extractors."""
import dataclasses
import functools
import logging
import math
import typing as tp
from pathlib import Path

import numpy as np
import soundfile
import torch

from ..data.audio import SILENCE, audio_info, convert_channels, read_audio, resample_kaiser_best
from ..data.manifest import caption_of, iter_table, read_table
from ..data.media import AUDIO_SUFFIXES, VIDEO_SUFFIXES, MediaError
from ..data.resampling import resample_sinc
from ..utils.errors import UserError
from .base import Extractor, frame_rates, frame_size

logger = logging.getLogger(__name__)

PEAK = 0.95
# Seconds of sound that may be missing at the end of a video: codecs and muxers round.
TOLERANCE = 0.1


@dataclasses.dataclass(frozen=True)
class Item:
    """One row of a store to be.

    Args:
        id (str): its name in the store.
        path (Path or None): media file; None when there is none for it.
        caption (str): text, possibly empty.
        bounds (tuple of int or None): first sample and the one after the last, at the rate of the file; None for a
            video, which is taken from its beginning.
        window (tuple of float or None): start and duration in seconds, of a window that may be short.
        listed (str): path of the file as the table of the store gives it, for windows.
    """
    id: str
    path: Path | None
    caption: str = ''
    bounds: tuple[int, int] | None = None
    window: tuple[float, float] | None = None
    listed: str = ''


def read_captions(path: str | Path, column: str = 'id') -> dict[str, str]:
    """Return `{id: caption}` of a table with a column `caption` or `label`; of repeated ids the last one counts."""
    captions = {}
    for line, row in iter_table(path, required=[column]):
        if 'caption' not in row and 'label' not in row:
            raise UserError(f'{path}, line {line}: no column "caption" or "label"; columns: {", ".join(row)}.')
        captions[row[column]] = caption_of(row)
    return captions


def _require_folder(data_dir: str | Path) -> Path:
    folder = Path(data_dir)
    if not folder.is_dir():
        raise UserError(f'{folder}: there is no such folder of media')
    return folder


def count_captions(items: list[Item], captions: tp.Mapping[str, str], path: str | Path | None) -> list[Item]:
    """Say how many items have no caption: a table of other names would otherwise give a store without texts."""
    without = sum(not item.caption for item in items)
    if path is not None and without:
        if without == len(items):
            raise UserError(f'{path}: not one of its {len(captions)} ids is the name of a media file (without suffix), '
                            f'such as "{items[0].id}"')
        logger.warning('%d of %d items have no caption in %s: theirs is empty.', without, len(items), path)
    return items


def list_videos(data_dir: str | Path, captions_tsv: str | Path | None = None) -> list[Item]:
    """Return the videos of a folder, sorted by name; the file stem is the id and finds the caption.

    Raises:
        UserError: no such folder, no video in it, two files of one stem, or captions of quite other videos.
    """
    folder = _require_folder(data_dir)
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES)
    if not files:
        raise UserError(f'{folder} holds no video ({", ".join(VIDEO_SUFFIXES)})')
    by_id: dict[str, Path] = {}
    for path in files:
        if path.stem in by_id:
            raise UserError(f'{path} and {by_id[path.stem].name} have the same id "{path.stem}": rename one of them')
        by_id[path.stem] = path
    captions = read_captions(captions_tsv) if captions_tsv else {}
    items = [Item(id, path, captions.get(id, '')) for id, path in by_id.items()]
    return count_captions(items, captions, captions_tsv)


def _find_audio(folder: Path, name: str) -> Path | None:
    """Return the audio file of a name, flac before wav before the others."""
    suffixes = ['.flac', '.wav', *(suffix for suffix in AUDIO_SUFFIXES if suffix not in ('.flac', '.wav'))]
    return next((path for suffix in suffixes if (path := folder / f'{name}{suffix}').is_file()), None)


def _bounds(row: tp.Mapping[str, str], path: str | Path) -> tuple[int, int]:
    try:
        start, end = int(row['start_sample']), int(row['end_sample'])
    except ValueError:
        raise UserError(f'{path}: clip "{row["id"]}": start_sample and end_sample must be whole numbers, got '
                        f'"{row["start_sample"]}" and "{row["end_sample"]}"') from None
    if not 0 <= start < end:
        raise UserError(f'{path}: clip "{row["id"]}": samples {start} to {end} are not a clip')
    return start, end


def list_clips(data_dir: str | Path, clips_tsv: str | Path, captions_tsv: str | Path | None = None) -> list[Item]:
    """Return the clips of a table `id name start_sample end_sample`; captions are found by name.

    A row that is there twice counts once. Other clips of a repeated id get `id#1`, `id#2`, ..., so that each can be
    found again.

    Raises:
        UserError: no such folder or table, no clip, or bounds that make no sense.
    """
    folder = _require_folder(data_dir)
    captions = read_captions(captions_tsv) if captions_tsv else {}
    find = functools.lru_cache(maxsize=None)(functools.partial(_find_audio, folder))
    items, seen, count = [], set(), dict[str, int]()
    for row in read_table(clips_tsv, required=['id', 'name', 'start_sample', 'end_sample']):
        bounds = _bounds(row, clips_tsv)
        if (row['id'], row['name'], bounds) in seen:
            continue
        seen.add((row['id'], row['name'], bounds))
        repeat = count[row['id']] = count.get(row['id'], -1) + 1
        id = f'{row["id"]}#{repeat}' if repeat else row['id']
        items.append(Item(id, find(row['name']), captions.get(row['name'], ''), bounds))
    if not items:
        raise UserError(f'{clips_tsv} lists no clip')
    return count_captions(items, captions, captions_tsv)


def _pieces(path: Path) -> tp.Iterator[np.ndarray]:
    """All the sound of a file or video, `[C, T]` at a time."""
    if path.suffix.lower() in AUDIO_SUFFIXES:
        with soundfile.SoundFile(str(path)) as file:
            yield from (piece.T for piece in file.blocks(1 << 18, dtype='float32', always_2d=True))
        return
    from ..data.audio_frames import to_float
    from ..data.video import audio_stream, open_media  # needs PyAV, which audio files do not
    with open_media(path) as container:
        yield from (to_float(frame) for frame in container.decode(audio_stream(container, path)))


@functools.lru_cache(maxsize=64)
def peak_of(path: Path, mono: bool) -> float:
    """Return the largest absolute sample of all the sound of a file, mixed to mono or of any of its channels.

    It is read in pieces; what is cut from one file shares the result.
    """
    pieces = (piece.mean(axis=0) if mono else piece for piece in _pieces(path) if piece.size)
    return max((float(abs(piece).max()) for piece in pieces), default=0.)


@dataclasses.dataclass
class Reader:
    """Decodes items, each into one prepared input per extractor; used by several threads.

    Args:
        extractors (dict): name -> extractor.
        sample_rate (int): of the audio that extractors get, in Hz.
        duration (float): seconds of an item; of a window, at most.
        normalize_audio (bool): scale so that the largest (mono) sample of the whole file is 0.95, as MMAudio does for
            training data.
        channels (int): of the audio that extractors get.
        min_duration (float): seconds that a window must have.
    """
    extractors: tp.Mapping[str, Extractor]
    sample_rate: int
    duration: float
    normalize_audio: bool = True
    channels: int = 1
    min_duration: float = 0.

    @property
    def samples(self) -> int:
        """Samples per channel of an item, at most."""
        return round(self.duration * self.sample_rate)

    def __call__(self, item: Item) -> dict[str, tp.Any]:
        """Return the prepared input of each extractor.

        Raises:
            MediaError: with the reason for which the item cannot be used.
        """
        if item.path is None:
            raise MediaError(item.id, 'missing', 'no audio file with this name')
        frames: dict[float, torch.Tensor] = {}
        if item.window is not None:
            wav = self._window(item.path, *item.window)
        elif item.bounds is not None:
            wav = self._audio(item.path, item.bounds)
        else:
            wav, frames = self._video(item.path)
        inputs: dict[str, tp.Any] = {}
        for name, extractor in self.extractors.items():
            source = {'audio': wav, 'text': item.caption}.get(extractor.consumes)
            if extractor.consumes == 'frames':
                source = frames[float(tp.cast(float, extractor.fps))][:extractor.frames_needed(self.duration)]
            inputs[name] = extractor.prepare(source)
        return inputs

    def _video(self, path: Path) -> tuple[torch.Tensor, dict[float, torch.Tensor]]:
        from ..data.video import read_video  # needs PyAV, which audio files do not
        models = self.extractors.values()
        video = read_video(path, frame_rates(models), self.duration, size=frame_size(models))
        if video.audio is None or video.sample_rate is None:
            raise MediaError(path, 'no audio track')
        wav = self._level(video.audio, path)
        return self._fit(resample_kaiser_best(wav, video.sample_rate, self.sample_rate), path, TOLERANCE), video.frames

    def _audio(self, path: Path, bounds: tuple[int, int]) -> torch.Tensor:
        info = audio_info(path)
        if info.samples < bounds[1]:
            raise MediaError(path, 'too short', f'{info.samples} samples, the clip ends at {bounds[1]}')
        wav, rate = read_audio(path, bounds[0] / info.sample_rate, (bounds[1] - bounds[0]) / info.sample_rate)
        return self._fit(resample_kaiser_best(self._level(wav, path), rate, self.sample_rate), path, 0.)

    def _window(self, path: Path, start: float, duration: float) -> torch.Tensor:
        """Read a window, which is as long as it is: at most `samples`, at least `min_duration`."""
        wav, rate = read_audio(path, start, duration)
        needed = round(self.min_duration * rate)
        if wav.shape[-1] < max(1, needed):
            raise MediaError(path, 'too short', f'{wav.shape[-1] / rate:.2f} s from {start:g} s on, '
                                                f'needs {self.min_duration:g} s')
        wav = resample_sinc(self._level(wav, path), rate, self.sample_rate)
        missing = self.samples - wav.shape[-1]
        # Rates seldom divide: a whole window may come out a sample or two short, and is whole nevertheless.
        rounding = 1 + math.ceil(self.sample_rate / rate)
        return torch.nn.functional.pad(wav, (0, missing)) if missing <= rounding else wav

    def _level(self, wav: torch.Tensor, path: Path) -> torch.Tensor:
        """Bring `[C, T]` to the channels that are wanted, and to the level."""
        try:
            wav = convert_channels(wav, self.channels)
        except ValueError as error:
            raise MediaError(path, 'channels', str(error)) from None
        if not bool(wav.isfinite().all()):
            raise MediaError(path, 'not finite', 'it holds NaN or infinite samples')
        if float(wav.abs().max()) <= SILENCE:
            raise MediaError(path, 'silent', f'no sample is above {SILENCE:g}')
        return wav / peak_of(path, self.channels == 1) * PEAK if self.normalize_audio else wav

    def _fit(self, wav: torch.Tensor, path: Path, tolerance: float) -> torch.Tensor:
        """Cut to the duration; fill what is missing within the tolerance with zeros."""
        missing = self.samples - wav.shape[-1]
        if missing > math.ceil(tolerance * self.sample_rate):
            raise MediaError(path, 'too short', f'{wav.shape[-1] / self.sample_rate:.2f} s of audio, '
                                                f'needs {self.duration:g} s')
        return torch.nn.functional.pad(wav, (0, missing))
