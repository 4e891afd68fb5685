"""Example videos: objects move and strike something at irregular times, and each strike sounds.

The kind of the objects (colour and shape in the picture, a word in the caption) decides the timbre; only the motion
tells when. They are made for checking that a model learns *when* and *what*: the true times lie beside each clip.
"""

import json
import logging
import typing as tp
from functools import partial
from pathlib import Path

import numpy as np

from ..utils.errors import UserError
from ..utils.files import write_atomic
from .captions import draw_caption
from .drawing import draw_pictures
from .folder import open_folder, write_captions
from .jobs import run_jobs
from .motion import MIN_SECONDS
from .scene import Scene, draw_scene, kind_of
from .sounds import draw_sound

logger = logging.getLogger(__name__)

ENCODER = {'preset': 'ultrafast', 'crf': '21', 'g': '25'}
"""Fast rather than small: a clip of 4 seconds takes some 100 kB."""


class Settings(tp.NamedTuple):
    """What all clips of a set share."""
    seed: int
    seconds: float
    fps: float
    size: tuple[int, int]
    sample_rate: int

    @property
    def frames(self) -> int:
        """Pictures per clip."""
        return round(self.seconds * self.fps)


class VideoExample(tp.NamedTuple):
    """A clip before it is encoded: pictures `[N, H * 3 / 2, W]` uint8 (yuv420p), sound `[1, T]` float32."""
    scene: Scene
    pictures: np.ndarray
    audio: np.ndarray
    caption: str


def clip_id(index: int) -> str:
    """Return the name of clip `index`."""
    return f'clip_{index:05d}'


def draw_video_example(settings: Settings, index: int) -> VideoExample:
    """Draw clip `index`, a function of the settings and the index alone."""
    streams = np.random.SeedSequence([settings.seed, index]).spawn(4)
    layout, picture, sound, words = (np.random.default_rng(stream) for stream in streams)
    scene = draw_scene(layout, kind_of(settings.seed, index), seconds=settings.seconds, size=settings.size,
                       sample_rate=settings.sample_rate)
    pictures = draw_pictures(picture, scene, np.arange(settings.frames) / settings.fps)
    audio = draw_sound(sound, scene.kind, [(strike.time, strike.body) for strike in scene.strikes], settings.seconds,
                       settings.sample_rate)
    caption = draw_caption(words, scene.kind, [body.surface for body in scene.bodies])
    return VideoExample(scene, pictures, audio, caption)


def make_video_examples(out: tp.Union[str, Path], *, clips: int, seed: int, seconds: float = 4., fps: float = 25.,
                        size: tuple[int, int] = (160, 120), sample_rate: int = 16_000, workers: int = 2) -> Path:
    """Write example videos `clip_00000.mp4` (h264 + aac) and so on, with what truly happens in them.

    Beside each lies `clip_00000.events.json`, and in the folder `events.json` (all of them, by id) and
    `captions.tsv` (id, caption). The same call gives the same media, whatever the number of workers; a call that was
    interrupted goes on where it stopped.

    Args:
        out (str or Path): the folder, new or made by the same settings before.
        clips (int): how many.
        seed (int): other seeds give other clips.
        seconds (float): length of a clip, at least 0.7.
        fps (float): pictures per second.
        size (tuple of int): (width, height), even, at least (96, 72).
        sample_rate (int): of the sound, one that AAC knows.
        workers (int): processes.
    Returns:
        Path: the folder.
    """
    settings = Settings(seed, float(seconds), float(fps), (int(size[0]), int(size[1])), sample_rate)
    _check(settings)
    facts = {'kind': 'video', 'version': 1, **settings._asdict(), 'size': list(settings.size)}
    folder, clips = open_folder(out, clips=clips, workers=workers, **facts)
    records = []
    for record in run_jobs(partial(_make_clip, folder, settings), range(clips), workers):
        records.append(record)
        if len(records) % 100 == 0:
            logger.info('%s: %d of %d clips', folder, len(records), clips)
    captions = {record['id']: record.pop('caption') for record in records}
    write_atomic(folder / 'events.json', json.dumps({record['id']: record for record in records}) + '\n')
    write_captions(folder, captions)
    return folder


def _check(settings: Settings) -> None:
    from ..data.muxing import AAC_RATES  # says what to install when PyAV is missing, before anything is written
    width, height = settings.size
    if settings.seconds < MIN_SECONDS:
        raise UserError(f'seconds must be at least {MIN_SECONDS}, got {settings.seconds:g}')
    if width % 2 or height % 2 or width < 96 or height < 72:
        raise UserError(f'size must be even and at least 96x72, got {width}x{height}')
    if settings.sample_rate not in AAC_RATES:
        raise UserError(f'sample_rate must be one of {AAC_RATES} for AAC, got {settings.sample_rate}')
    if not 5 <= settings.fps <= 120:
        raise UserError(f'fps must be between 5 and 120, got {settings.fps:g}')


def _make_clip(folder: Path, settings: Settings, index: int) -> dict[str, tp.Any]:
    """Write one clip unless it is there; its events are written last, so that they mark it as complete."""
    from ..data.muxing import write_pictures
    name = clip_id(index)
    media, events = folder / f'{name}.mp4', folder / f'{name}.events.json'
    if media.exists() and events.exists():
        return dict(json.loads(events.read_text(encoding='utf-8')))
    example = draw_video_example(settings, index)
    write_pictures(media, example.pictures, settings.fps, pixels='yuv420p', size=settings.size, audio=example.audio,
                   sample_rate=settings.sample_rate, options=ENCODER)
    kind = example.scene.kind
    record = {'id': name, 'seconds': settings.seconds, 'kind': kind, 'kinds': [kind] * len(example.scene.bodies),
              'events': example.scene.events(), 'caption': example.caption}
    write_atomic(events, json.dumps(record) + '\n')
    return record
