"""Long audio files cut into clips: the table that `--clips_tsv` takes."""
import logging
import typing as tp
from pathlib import Path

from ..data.audio import audio_info
from ..data.manifest import write_table
from ..data.media import AUDIO_SUFFIXES, MediaError
from ..utils.errors import UserError
from .inputs import audio_by_stem

logger = logging.getLogger(__name__)

COLUMNS = ['id', 'name', 'start_sample', 'end_sample']


def list_audio(data_dir: str | Path) -> list[Path]:
    """Return the audio files of a folder, sorted by file name."""
    folder = Path(data_dir)
    if not folder.is_dir():
        raise UserError(f'{folder} is not a folder: a folder of audio files ({", ".join(AUDIO_SUFFIXES)}) was expected')
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in AUDIO_SUFFIXES)
    if not files:
        raise UserError(f'{folder} holds no audio file ({", ".join(AUDIO_SUFFIXES)})')
    return files


def clip_bounds(num_samples: int, sample_rate: int, clip_seconds: float, max_clips: int) -> list[tuple[int, int]]:
    """Return (start, end) in samples of the clips of one file, spread evenly from its beginning to its end.

    They do not overlap; a file shorter than a clip gives none.
    """
    size = int(clip_seconds * sample_rate)
    if num_samples / sample_rate < clip_seconds or size == 0:
        return []
    count = min(max_clips, num_samples // size)
    step = (num_samples - size) // (count - 1) if count > 1 else 0
    return [(i * step, i * step + size) for i in range(count)]


def partition_clips(data_dir: str | Path, output: str | Path, start: int = 0, end: int = -1,
                    clip_seconds: float = 8.1, max_clips: int = 5) -> Path:
    """Write the table of clips (`id name start_sample end_sample`) of a folder of audio files.

    Args:
        data_dir (str or Path): folder of audio files; samples are counted at each file's own rate.
        output (str or Path): table to write, tabs, or commas when it ends in `.csv`.
        start (int): first file, in the order of the sorted names.
        end (int): file after the last one; -1 for all. The parts [0, a), [a, b), ... concatenate to the whole.
        clip_seconds (float): length of a clip.
        max_clips (int): most clips of one file.
    Returns:
        Path: `output`.
    Raises:
        UserError: no such folder, no audio in it, a range that is outside of it, or no length or number of clips.
    """
    if not clip_seconds > 0 or max_clips < 1:
        raise UserError(f'clip_seconds={clip_seconds:g} and max_clips={max_clips}: expected more than 0')
    files = list_audio(data_dir)
    stop = len(files) if end < 0 else min(end, len(files))
    if not 0 <= start <= stop:
        raise UserError(f'start {start} and end {end} are not a part of the {len(files)} files of {data_dir}')
    rows: list[dict[str, tp.Any]] = []
    skipped, taken = 0, audio_by_stem(Path(data_dir))
    for path in files[start:stop]:
        try:
            if (twin := taken.get(path.stem, path)) != path:
                raise MediaError(path, 'duplicate', f'{twin.name} has the same name')
            info = audio_info(path)
        except MediaError as error:
            logger.warning('%s (left out)', error)
            skipped += 1
            continue
        bounds = clip_bounds(info.samples, info.sample_rate, clip_seconds, max_clips)
        skipped += not bounds
        rows += [{'id': f'{path.stem}_{i}', 'name': path.stem, 'start_sample': low, 'end_sample': high}
                 for i, (low, high) in enumerate(bounds)]
    write_table(output, rows, COLUMNS)
    logger.info('%s: %d clips of %d files (%d give none)', output, len(rows), stop - start, skipped)
    return Path(output)
