"""Clips to compare, as metrics and pages see them, and the files of generated ones."""

import json
import os
import typing as tp
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from ..utils.errors import UserError
from ..utils.files import write_atomic
from .audio import read_audio, resample, write_audio
from .media import AUDIO_SUFFIXES, CONTAINER_AUDIO_SUFFIXES, VIDEO_SUFFIXES, MediaError

SUFFIXES = VIDEO_SUFFIXES + AUDIO_SUFFIXES + CONTAINER_AUDIO_SUFFIXES
Event = dict[str, tp.Any]


@dataclass
class Clip:
    """A piece of sound and what is known of it.

    Args:
        id (str): its name; of a true clip, the stem of its file.
        audio (torch.Tensor): `[C, T]` float32.
        sample_rate (int): samples per second.
        caption (str): text, or ''.
        media (Path or None): the file with its sound, and pictures if it has any.
        events (list of dict or None): what happens in it, each with 'time' (seconds) and 'kind'; None if not known.
        codes (torch.Tensor or None): `[K, T']`, what a discrete compression model made of it.
        frame_rate (float or None): of the codes or latents that it was decoded from, per second.
        bins (int or None): entries of each codebook of that model.
    """
    id: str
    audio: torch.Tensor
    sample_rate: int
    caption: str = ''
    media: tp.Optional[Path] = None
    events: tp.Optional[list[Event]] = None
    codes: tp.Optional[torch.Tensor] = None
    frame_rate: tp.Optional[float] = None
    bins: tp.Optional[int] = None


def find_media(folder: tp.Union[str, Path], clip_id: str) -> tp.Optional[Path]:
    """Return the file of a folder whose stem is `clip_id`, videos before audio; None if there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f'{folder}: there is no such folder of media')
    for suffix in SUFFIXES:
        for name in (clip_id + suffix, clip_id + suffix.upper()):
            if (folder / name).is_file():
                return folder / name
    return None


def read_clip(media_folder: tp.Union[str, Path], id: str, sample_rate: int,
              duration: tp.Optional[float] = None) -> tp.Optional[Clip]:
    """Read the true clip of an id.

    Args:
        media_folder (str or Path): holds `<id>.<mp4|wav|...>`, and perhaps `<id>.events.json` or `events.json`.
        id (str): the stem of the file.
        sample_rate (int): to resample to.
        duration (float or None): seconds; longer sound is cut, shorter is filled with zeros. None for all.
    Returns:
        Clip or None: None if the folder has no such file.
    Raises:
        MediaError: the file cannot be read, or has no sound.
    """
    path = find_media(media_folder, id)
    if path is None:
        return None
    wav, rate = read_audio(path, 0., None if duration is None else duration + 0.1)
    wav = resample(wav, rate, sample_rate)
    if duration is not None:
        wav = fit_length(wav, round(duration * sample_rate))
    events = read_events(media_folder, id)
    if events is not None and duration is not None:
        events = [event for event in events if event['time'] < duration]
    return Clip(id, wav, sample_rate, media=path, events=events)


def fit_length(wav: torch.Tensor, samples: int) -> torch.Tensor:
    """Cut or zero-pad the end of `[..., T]` to `samples`."""
    return torch.nn.functional.pad(wav[..., :samples], (0, max(0, samples - wav.shape[-1])))


def read_events(folder: tp.Union[str, Path], clip_id: str) -> tp.Optional[list[Event]]:
    """Return the events of a clip from `<id>.events.json`, else from the folder's `events.json`; None if in neither."""
    folder = Path(folder)
    single, table = folder / f'{clip_id}.events.json', folder / 'events.json'
    if single.is_file():
        return _events_of(_read_json(single, single.stat().st_mtime_ns), single)
    if table.is_file():
        records = _read_json(table, table.stat().st_mtime_ns)
        if not isinstance(records, dict):
            raise UserError(f'{table} should map each id to its events, found a {type(records).__name__}')
        return _events_of(records[clip_id], table) if clip_id in records else None
    return None


@lru_cache(maxsize=8)
def _read_json(path: Path, changed: int) -> tp.Any:
    # `changed` is part of the key only: the table of a folder is asked for once per clip, and may be rewritten.
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise UserError(f'{path} is not valid JSON: {error}') from error


def _events_of(record: tp.Any, path: Path) -> list[Event]:
    events = record.get('events') if isinstance(record, dict) else record
    if not isinstance(events, list) or not all(isinstance(e, dict) and 'time' in e for e in events):
        raise UserError(f'{path} should hold {{"events": [{{"time": seconds, "kind": name}}, ...]}}')
    return [{**event, 'time': float(event['time']), 'kind': str(event.get('kind', ''))} for event in events]


class SampleWriter:
    """Writes generated clips to `<folder>/<id>.{wav,mp4,json}`, each file whole or not at all.

    Args:
        folder (str or Path): such as `<xp folder>/generate/<update>`; it is made when needed.
    """

    def __init__(self, folder: tp.Union[str, Path]):
        self.folder = Path(folder)

    def path(self, clip_id: str, suffix: str) -> Path:
        """Return where a file of a clip goes."""
        if not clip_id or clip_id in ('.', '..') or Path(clip_id).name != clip_id:
            raise UserError(f'a clip cannot be named {clip_id!r}: an id is a file name without folders')
        return self.folder / f'{clip_id}{suffix}'

    def add(self, clip: Clip, *, reference: tp.Optional[Clip] = None, prompt: tp.Optional[str] = None,
            seed: tp.Optional[int] = None, checkpoint: tp.Union[str, Path, None] = None,
            update: tp.Optional[int] = None, **extra: tp.Any) -> Path:
        """Write a generated clip, and a video of it if the true clip has pictures.

        Args:
            clip (Clip): the generated sound.
            reference (Clip or None): the true one; its file gives the pictures.
            prompt (str or None): the text that it was made from; the caption if None.
            seed (int or None): of its noise.
            checkpoint (str, Path or None): the model that made it.
            update (int or None): at which update of the training it was made.
            extra: further facts for the JSON.
        Returns:
            Path: the JSON, written last, so that a reader who finds it finds all.
        """
        write_audio(self.path(clip.id, '.wav'), clip.audio, clip.sample_rate)
        record = {'id': clip.id, 'caption': clip.caption, 'prompt': clip.caption if prompt is None else prompt,
                  'seed': seed, 'checkpoint': None if checkpoint is None else str(checkpoint), 'update': update,
                  'sample_rate': clip.sample_rate, 'duration': clip.audio.shape[-1] / clip.sample_rate,
                  'reference': None, **extra}
        if reference is not None and reference.media is not None:
            record['reference'] = Path(os.path.relpath(reference.media, self.folder)).as_posix()
            self._write_video(clip, reference.media)
        if reference is not None and reference.events is not None:
            record['events'] = reference.events
        path = self.path(clip.id, '.json')
        write_atomic(path, json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + '\n')
        return path

    def _write_video(self, clip: Clip, media: Path) -> None:
        """Write the pictures of the true video with the generated sound, if there are pictures."""
        if media.suffix.lower() not in VIDEO_SUFFIXES:
            return
        from .video import remux_audio  # needs PyAV, which sound alone does not
        try:
            remux_audio(media, clip.audio, clip.sample_rate, self.path(clip.id, '.mp4'),
                        duration=clip.audio.shape[-1] / clip.sample_rate)
        except MediaError as error:
            if error.reason != 'no video track':
                raise
