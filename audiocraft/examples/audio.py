"""Example audio: wav and flac files of struck objects with captions, for models of text and audio."""

import logging
import typing as tp
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from ..data.files import replaced
from ..utils.errors import UserError
from .captions import draw_caption
from .folder import open_folder, write_captions
from .jobs import run_jobs
from .motion import SURFACES
from .scene import kind_of
from .sounds import draw_sound

logger = logging.getLogger(__name__)


class AudioSettings(tp.NamedTuple):
    """What all files of a set share."""
    seed: int
    seconds: tuple[float, float]
    sample_rate: int


class AudioExample(tp.NamedTuple):
    """A file before it is written: sound `[1, T]` float32."""
    kind: str
    audio: np.ndarray
    caption: str
    suffix: str


def draw_audio_example(settings: AudioSettings, index: int) -> AudioExample:
    """Draw file `index`, a function of the settings and the index alone; every other one is a flac."""
    streams = np.random.SeedSequence([settings.seed, index, 2]).spawn(3)
    layout, sound, words = (np.random.default_rng(stream) for stream in streams)
    kind = kind_of(settings.seed, index)
    seconds = round(float(layout.uniform(*settings.seconds)), 3)
    gaps = layout.uniform(0.25, 1.6, int(seconds / 0.25) + 1)
    times = [float(time) for time in np.cumsum(gaps) if time < seconds - 0.2]
    bodies = int(layout.integers(1, 3))
    strikes = [(time, int(layout.integers(bodies))) for time in times]
    audio = draw_sound(sound, kind, strikes, seconds, settings.sample_rate)
    surfaces = [str(layout.choice(SURFACES)) for _ in range(bodies)]
    return AudioExample(kind, audio, draw_caption(words, kind, surfaces), '.flac' if index % 2 else '.wav')


def make_audio_examples(out: tp.Union[str, Path], clips: int, seed: int, *,
                        seconds: tuple[float, float] = (6., 20.), sample_rate: int = 16_000,
                        workers: int = 2) -> Path:
    """Write example audio `clip_00000.wav`, `clip_00001.flac` and so on, and `captions.tsv` (id, caption).

    The same call gives the same files, whatever the number of workers; one that was interrupted goes on.

    Args:
        out (str or Path): the folder, new or made by the same settings before.
        clips (int): how many files.
        seed (int): other seeds give other files.
        seconds (tuple of float): shortest and longest; the lengths vary between them.
        sample_rate (int): samples per second.
        workers (int): processes.
    Returns:
        Path: the folder.
    """
    settings = AudioSettings(seed, (float(seconds[0]), float(seconds[1])), sample_rate)
    if not 0.5 <= settings.seconds[0] <= settings.seconds[1]:
        raise UserError(f'seconds must be (shortest, longest), at least 0.5, got {seconds}')
    if sample_rate < 8000:
        raise UserError(f'sample_rate must be at least 8000, got {sample_rate}')
    facts = {'kind': 'audio', 'version': 1, **settings._asdict(), 'seconds': list(settings.seconds)}
    folder, clips = open_folder(out, clips=clips, workers=workers, **facts)
    captions = dict(run_jobs(partial(_make_file, folder, settings), range(clips), workers))
    write_captions(folder, captions)
    return folder


def _make_file(folder: Path, settings: AudioSettings, index: int) -> tuple[str, str]:
    """Write one file unless it is there; return its id and caption."""
    example = draw_audio_example(settings, index)
    name = f'clip_{index:05d}'
    path = folder / f'{name}{example.suffix}'
    if not path.exists():
        with replaced(path) as temporary:
            soundfile.write(str(temporary), example.audio.T, settings.sample_rate,
                            format=example.suffix[1:].upper(), subtype='PCM_16')
    return name, example.caption
