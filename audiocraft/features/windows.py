"""Audio files cut into windows of one duration, the last of which may be shorter: what stores of codes are made of."""
import logging
import os
import typing as tp
from pathlib import Path

from ..data.audio_dataset import unique_ids
from ..data.audio_manifest import list_media, manifest_file, read_manifest, read_metas
from ..utils.errors import UserError
from .inputs import Item, count_captions, read_captions

logger = logging.getLogger(__name__)


def cut(total: float, duration: float, min_duration: float) -> list[tuple[float, float]]:
    """Return start and duration, in seconds, of the windows of a file of `total` seconds.

    They follow each other from the beginning. The last one is shorter, and left out below `min_duration`; a file that
    is shorter than that is one window, for the reader to refuse.
    """
    whole = int(total / duration)
    windows = [(number * duration, duration) for number in range(whole)]
    rest = total - whole * duration
    return [*windows, (whole * duration, rest)] if rest >= min_duration or not windows else windows


def _durations(source: Path) -> tuple[list[Path], dict[Path, float]]:
    """The files of a manifest, a folder or a table, and the seconds of those that can be read."""
    manifest = manifest_file(source)
    if manifest is not None:  # nobody opens a file for its length; what is missing is found when it is read
        metas = read_manifest(manifest, on_missing='ignore')
        durations = {Path(meta.path): meta.duration for meta in metas}
        return list(durations), durations
    files = list(dict.fromkeys(list_media(source)))
    return files, {Path(meta.path): meta.duration for meta in read_metas(files).metas}


def list_windows(source: str | Path, *, duration: float, min_duration: float = 1.,
                 captions_tsv: str | Path | None = None) -> list[Item]:
    """Return the windows of all audio files below a folder, or of a manifest (.jsonl[.gz]) or table with their paths.

    A file of one window has its stem as id (with folders where stems repeat), windows of a longer one `<stem>#0`,
    `<stem>#1`, ... Captions are found by the id of the window, else of the file.

    Args:
        source (str or Path): the folder or file.
        duration (float): seconds of a window.
        min_duration (float): seconds that the last window of a file must have.
        captions_tsv (str or Path or None): table `id`, `caption` (or `label`).
    Raises:
        UserError: no such source, nothing in it, durations that make no sense, two items of one id.
    """
    if not 0 < min_duration <= duration:
        raise UserError(f'min_duration={min_duration:g} should be above 0 and at most duration={duration:g}')
    source = Path(source)
    files, durations = _durations(source)
    folder = os.path.abspath(source if source.is_dir() else source.parent)
    captions = read_captions(captions_tsv) if captions_tsv else {}
    items: dict[str, Item] = {}
    for path, name in zip(files, unique_ids([str(path) for path in files])):
        windows = cut(durations.get(path, 0.), duration, min_duration)
        for number, window in enumerate(windows):
            id = name if len(windows) == 1 else f'{name}#{number}'
            if id in items:
                raise UserError(f'{path} and {items[id].path} both have the item "{id}": rename one of them')
            caption = captions.get(id, captions.get(name, ''))
            items[id] = Item(id, path, caption, window=window, listed=_listed(path, folder))
    _log_rest(durations.values(), duration, min_duration)
    return count_captions(list(items.values()), captions, captions_tsv)


def _listed(path: Path, folder: str) -> str:
    """A path as the table gives it: relative to the folder if it is inside."""
    absolute = os.path.abspath(path)
    inside = os.path.commonpath([absolute, folder]) == folder
    return Path(os.path.relpath(absolute, folder) if inside else absolute).as_posix()


def _log_rest(durations: tp.Iterable[float], duration: float, min_duration: float) -> None:
    rests = [rest for total in durations if total >= duration and 0 < (rest := total % duration) < min_duration]
    if rests:
        logger.info('the ends of %d files are left out, %.1f s in all: they are shorter than min_duration=%g',
                    len(rests), sum(rests), min_duration)
