"""What extraction reads: the items of a folder or a table, and each item decoded for the extractors."""
import dataclasses
import functools
import itertools
import logging
import math
import os
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
from .base import Extractor, frame_rates, frame_size, frame_views

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
        refused (str): why it cannot be used, known before anything is read.
    """
    id: str
    path: Path | None
    caption: str = ''
    bounds: tuple[int, int] | None = None
    window: tuple[float, float] | None = None
    listed: str = ''
    refused: str = ''


def read_captions(path: str | Path, column: str = 'id') -> dict[str, str]:
    """Return `{id: caption}` of a table with a column `caption` or `label`; of repeated ids the last one counts."""
    captions = {}
    for line, row in iter_table(path, required=[column]):
        if 'caption' not in row and 'label' not in row:
            raise UserError(f'{path}, line {line}: no column "caption" or "label"; columns: {", ".join(row)}.')
        if not row[column]:
            raise UserError(f'{path}, line {line}: its "{column}" is empty.')
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
        if without == len(items) and (any(captions.values()) or not captions):
            raise UserError(f'{path}: not one of its {len(captions)} ids is the name of a media file (without suffix), '
                            f'such as "{items[0].id}"')
        logger.warning('%d of %d items have no caption in %s: theirs is empty.', without, len(items), path)
    return items


def _some(names: tp.Iterable[str], limit: int = 3) -> str:
    """The first few of some names, in words."""
    first = list(itertools.islice(names, limit + 1))
    return ', '.join(f'"{name}"' for name in first[:limit]) + (', ...' if len(first) > limit else '')


def _missing(captions: tp.Mapping[str, str], found: tp.Container[str], path: str | Path | None, where: str | Path,
             only_listed: bool) -> list[Item]:
    """Items for what a table lists and is not there; they are counted and named, and rejected if asked for."""
    ids = sorted(id for id in captions if id not in found)
    if ids and len(ids) == len(captions) and only_listed:
        raise UserError(f'{path}: not one of its {len(ids)} ids, such as "{ids[0]}", is in {where}')
    if ids:
        logger.warning('%d of %d ids of %s are not in %s: %s%s', len(ids), len(captions), path, where, _some(ids),
                       ' (left out as missing)' if only_listed else '')
    return [Item(id, None, captions[id], refused=f'missing: it is not in {where}') for id in ids] if only_listed else []


def _video_files(folder: Path) -> tuple[list[Path], set[Path]]:
    """Whatever has the name of a video, sorted by name, and which of these are folders; hidden ones do not count."""
    with os.scandir(folder) as entries:
        found = {folder / entry.name: entry.is_dir() for entry in entries
                 if Path(entry.name).suffix.lower() in VIDEO_SUFFIXES}
    hidden = [path.name for path in sorted(found) if path.name.startswith('.')]
    if hidden:
        logger.info('%d hidden files of %s are not looked at: %s', len(hidden), folder, _some(hidden))
    files = sorted(path for path in found if not path.name.startswith('.'))
    return files, {path for path in files if found[path]}


def list_videos(data_dir: str | Path, captions_tsv: str | Path | None = None, only_listed: bool = False) -> list[Item]:
    """Return the videos of a folder, sorted by name; the file stem is the id and finds the caption.

    Of files of one stem the first is taken, in the order of `VIDEO_SUFFIXES`; the others are refused under their
    whole name. Sub-folders are not searched.

    Args:
        data_dir (str or Path): the folder.
        captions_tsv (str or Path or None): table `id`, `caption` (or `label`).
        only_listed (bool): only what the table lists; what has no file is an item that is refused.
    Raises:
        UserError: no such folder, no video in it, or captions of quite other videos.
    """
    folder = _require_folder(data_dir)
    files, folders = _video_files(folder)
    if not files:
        raise UserError(f'{folder} holds no video ({", ".join(VIDEO_SUFFIXES)}); sub-folders are not searched')
    captions = read_captions(captions_tsv) if captions_tsv else {}
    kept: dict[str, Path] = {}
    for path in sorted(files, key=lambda path: (path in folders, VIDEO_SUFFIXES.index(path.suffix.lower()), path)):
        kept.setdefault(path.stem, path)
    items = [_video_item(path, kept, captions) for path in files if not only_listed or path.stem in captions]
    twins = [item.id for item in items if item.refused]
    if twins:
        logger.warning('%d files are left out: %s', len(twins), _some(twins))
    missing = _missing(captions, kept, captions_tsv, folder, only_listed)
    items = count_captions(items, captions, captions_tsv)
    return sorted([*items, *missing], key=lambda item: item.path.name if item.path else item.id)


def _video_item(path: Path, kept: tp.Mapping[str, Path], captions: tp.Mapping[str, str]) -> Item:
    """The item of a file, refused where another one has its id or nobody could write its name down."""
    name = path.name.encode('utf-8', 'backslashreplace').decode('utf-8')
    if name != path.name:
        return Item(name, None, refused='unreadable: its name is not utf-8')
    caption = captions.get(path.stem, '')
    if kept[path.stem] == path:
        return Item(path.stem, path, caption)
    id = name if name not in kept else f'{name}#1'
    return Item(id, path, caption, refused=f'duplicate: {kept[path.stem].name} has the same id "{path.stem}"')


def audio_by_stem(folder: Path) -> dict[str, Path]:
    """The audio files of a folder by stem; of several of one stem, flac comes before wav before the others."""
    order = ['.flac', '.wav', *(suffix for suffix in AUDIO_SUFFIXES if suffix not in ('.flac', '.wav'))]
    with os.scandir(folder) as entries:
        files = [folder / entry.name for entry in entries
                 if Path(entry.name).suffix.lower() in order and entry.is_file()]
    found: dict[str, Path] = {}
    for path in sorted(files, key=lambda path: (order.index(path.suffix.lower()), path)):
        found.setdefault(path.stem, path)
    return found


def _bounds(row: tp.Mapping[str, str], path: str | Path) -> tuple[int, int]:
    try:
        if not (row['id'] and row['name']):
            raise UserError(f'{path}: a clip has no id or no name: {" ".join(row.values())}')
        start, end = int(row['start_sample']), int(row['end_sample'])
    except ValueError:
        raise UserError(f'{path}: clip "{row["id"]}": start_sample and end_sample must be whole numbers, got '
                        f'"{row["start_sample"]}" and "{row["end_sample"]}"') from None
    if not 0 <= start < end:
        raise UserError(f'{path}: clip "{row["id"]}": samples {start} to {end} are not a clip')
    return start, end


def list_clips(data_dir: str | Path, clips_tsv: str | Path, captions_tsv: str | Path | None = None,
               only_listed: bool = False) -> list[Item]:
    """Return the clips of a table `id name start_sample end_sample`; captions are found by name.

    A row that is there twice counts once. Other clips of a repeated id get `id#1`, `id#2`, ..., so that each can be
    found again.

    Args:
        data_dir (str or Path): folder of the audio files.
        clips_tsv (str or Path): the table of clips.
        captions_tsv (str or Path or None): table `id`, `caption` (or `label`); its ids are names of files.
        only_listed (bool): only clips of files that the table of captions lists; a file without a clip is an item that
            is refused.

    Raises:
        UserError: no such folder or table, no clip, or bounds that make no sense.
    """
    folder = _require_folder(data_dir)
    captions = read_captions(captions_tsv) if captions_tsv else {}
    listed = functools.lru_cache(maxsize=None)(lambda part: audio_by_stem(part) if part.is_dir() else {})
    items, seen, taken, count = list[Item](), set(), set[str](), dict[str, int]()
    rows = read_table(clips_tsv, required=['id', 'name', 'start_sample', 'end_sample'])
    for row in rows:
        if only_listed and row['name'] not in captions:
            continue
        bounds = _bounds(row, clips_tsv)
        if (row['id'], row['name'], bounds) in seen:
            continue
        seen.add((row['id'], row['name'], bounds))
        repeat = count[row['id']] = count.get(row['id'], -1) + 1
        id = f'{row["id"]}#{repeat}' if repeat else row['id']
        if id in taken:
            raise UserError(f'{clips_tsv}: two of its clips would be called "{id}": rename one of them')
        taken.add(id)
        place = folder / row['name']
        items.append(Item(id, listed(place.parent).get(place.name), captions.get(row['name'], ''), bounds))
    if not rows:
        raise UserError(f'{clips_tsv} lists no clip')
    missing = _missing(captions, {row['name'] for row in rows}, captions_tsv, clips_tsv, only_listed)
    return [*count_captions(items, captions, captions_tsv), *(item for item in missing if item.id not in count)]


def _pieces(path: Path) -> tp.Iterator[np.ndarray]:
    """All the sound of a file or video, `[C, T]` at a time."""
    if path.suffix.lower() in AUDIO_SUFFIXES:
        with soundfile.SoundFile(str(path)) as file:
            yield from (piece.T for piece in file.blocks(1 << 18, dtype='float32', always_2d=True))
        return
    from ..data.audio_frames import to_float
    from ..data.video import audio_stream, decoded_packets, open_media  # needs PyAV, which audio files do not
    with open_media(path) as container:
        for frames in decoded_packets(container, [audio_stream(container, path)], path):
            yield from map(to_float, frames)


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
        span (int or None): samples that an item gets, where that is more than the duration has: codecs round up to
            whole frames. They come from the file, and are silence where it ends; nothing is refused for them.
    """
    extractors: tp.Mapping[str, Extractor]
    sample_rate: int
    duration: float
    normalize_audio: bool = True
    channels: int = 1
    min_duration: float = 0.
    span: int | None = None

    @property
    def needed(self) -> int:
        """Samples per channel of the duration."""
        return round(self.duration * self.sample_rate)

    @property
    def samples(self) -> int:
        """Samples per channel of an item, at most."""
        return self.span or self.needed

    def __call__(self, item: Item) -> dict[str, tp.Any]:
        """Return the prepared input of each extractor.

        Raises:
            MediaError: with the reason for which the item cannot be used.
        """
        if item.path is None:
            raise MediaError(item.id, 'missing', 'there is no file with this name')
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
        video = read_video(path, frame_rates(models), self.duration, size=frame_size(models),
                           reduce=frame_views(models))
        if video.audio is None or video.sample_rate is None:
            raise MediaError(path, 'no audio track')
        wav = self._level(self._with_rest(video.audio, video.sample_rate, path), path)
        return self._fit(resample_kaiser_best(wav, video.sample_rate, self.sample_rate), path, TOLERANCE), video.frames

    def _with_rest(self, wav: torch.Tensor, rate: int, path: Path) -> torch.Tensor:
        """Append to the sound of a video what follows it up to the samples of an item, a few milliseconds."""
        from ..data.container_audio import read_container_audio
        rest = self.samples / self.sample_rate - self.duration
        if rest <= 0.5 / self.sample_rate:
            return wav
        return torch.cat([wav, read_container_audio(path, self.duration, rest)[0]], dim=-1)

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
        """Cut to the samples of an item; fill up with zeros what may be missing: of the duration the tolerance."""
        if self.needed - wav.shape[-1] > math.ceil(tolerance * self.sample_rate):
            raise MediaError(path, 'too short', f'{wav.shape[-1] / self.sample_rate:.2f} s of audio, '
                                                f'needs {self.duration:g} s')
        return torch.nn.functional.pad(wav, (0, self.samples - wav.shape[-1]))
