"""Manifests of audio: which files there are, how long, how often they are wanted. One JSON object per line.

    {"path": "drums/a.wav", "duration": 12.5, "sample_rate": 44100, "amplitude": null, "weight": 2, "info_path": null}
"""
import concurrent.futures
import dataclasses
import functools
import gzip
import json
import logging
import math
import os
import typing as tp
import zipfile
from pathlib import Path

import soundfile
import torch

from ..environment import AudioCraftEnvironment
from ..utils.errors import UserError
from ..utils.files import write_atomic
from .audio import audio_info, read_audio
from .manifest import read_table
from .media import AUDIO_SUFFIXES, MEDIA_SUFFIXES, MediaError

logger = logging.getLogger(__name__)

NAMES = ('data.jsonl', 'data.jsonl.gz')
LINE_SUFFIXES = ('.jsonl', '.jsonl.gz')
SHOWN = 5
Missing = tp.Literal['error', 'skip', 'ignore']


@dataclasses.dataclass(frozen=True, order=True, slots=True)
class AudioMeta:
    """One file of a manifest.

    Args:
        path (str): where it is.
        duration (float): seconds.
        sample_rate (int): of the file, in Hz.
        amplitude (float or None): its largest absolute sample, where somebody has measured it.
        weight (float or None): how often it is wanted, in proportion to others; None is 1.
        info_path (str or None): JSON file with what is known of it (`archive.zip:inside.json` in a zip archive).
    """
    path: str
    duration: float
    sample_rate: int
    amplitude: float | None = None
    weight: float | None = None
    info_path: str | None = None


class Found(tp.NamedTuple):
    """What a folder or a table of media holds: usable files, and what is wrong with the others."""
    metas: list[AudioMeta]
    broken: list[MediaError]


def list_media(path: str | Path) -> list[Path]:
    """Return the media files below a folder (sorted), or those that the column `path` of a table names.

    Paths in a table are relative to it; the cluster's dataset mappers rewrite them. Hidden folders are left out.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(_walk(path))
    elif path.is_file():
        rows = read_table(path, required=['path'])
        files = [path.parent / AudioCraftEnvironment.apply_dataset_mappers(row['path']) for row in rows]
    else:
        raise UserError(f'{path}: there is no such folder or manifest of media')
    if not files:
        raise UserError(f'{path} holds no media file ({", ".join(MEDIA_SUFFIXES)})')
    return files


def _walk(root: Path) -> tp.Iterator[Path]:
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        here = os.path.realpath(folder)
        folders[:] = [] if here in seen else [name for name in folders if not name.startswith('.')]
        if here not in seen:
            yield from (Path(folder, name) for name in names
                        if name.lower().endswith(MEDIA_SUFFIXES) and not name.startswith('.'))
        seen.add(here)


def read_meta(path: Path, complete: bool = False) -> AudioMeta:
    """Return what the header of a media file says, or what decoding all of it shows.

    Raises:
        MediaError: it cannot be read, has no sound, no samples or (`complete`) samples that are not finite.
    """
    info = audio_info(path)
    samples = _decoded_samples(path) if complete else info.samples
    if not samples:
        raise MediaError(path, 'empty', 'it holds no samples')
    return AudioMeta(str(path), samples / info.sample_rate, info.sample_rate)


def _decoded_samples(path: Path) -> int:
    if path.suffix.lower() not in AUDIO_SUFFIXES:
        wav, _ = read_audio(path)
        return _finite(path, wav)
    try:
        with soundfile.SoundFile(str(path)) as file:
            blocks = file.blocks(1 << 18, dtype='float32', always_2d=True)
            return sum(_finite(path, torch.from_numpy(block).T) for block in blocks)
    except soundfile.LibsndfileError as error:
        raise MediaError(path, 'unreadable', f'damaged data ({error.error_string})') from error


def _finite(path: Path, wav: torch.Tensor) -> int:
    if not bool(wav.isfinite().all()):
        raise MediaError(path, 'not finite', 'it holds NaN or infinite samples')
    return wav.shape[-1]


def find_audio(source: str | Path, *, complete: bool = False, workers: int = 4) -> Found:
    """Read the header of every media file below a folder, or of a table with a column `path`.

    Args:
        source (str or Path): the folder or table.
        complete (bool): decode everything, to find damage that the headers hide; durations are then those decoded.
        workers (int): threads.
    Returns:
        Found: files in the order of their paths (of a table: its order), and the errors of the broken ones.
    """
    return read_metas(list_media(source), complete=complete, workers=workers)


def read_metas(files: tp.Iterable[Path], *, complete: bool = False, workers: int = 4) -> Found:
    """As `find_audio`, of files that are known."""
    def read(path: Path) -> AudioMeta | MediaError:
        try:
            return read_meta(path, complete)
        except MediaError as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(max(1, workers)) as pool:
        results = list(pool.map(read, dict.fromkeys(files)))
    return Found([item for item in results if isinstance(item, AudioMeta)],
                 [item for item in results if isinstance(item, MediaError)])


def manifest_file(path: str | Path) -> Path | None:
    """Return the file of lines that a path stands for (itself, or `data.jsonl[.gz]` in a folder), None if none."""
    path = Path(path)
    if path.is_dir():
        return next((path / name for name in NAMES if (path / name).is_file()), None)
    return path if path.name.endswith(LINE_SUFFIXES) else None


def load_audio(source: str | Path, *, on_missing: Missing = 'error', workers: int = 4) -> list[AudioMeta]:
    """Return the files of a manifest (file, or folder with `data.jsonl[.gz]`), of a folder of media, or of a table.

    Without a manifest every header is read; files without usable sound are then named in a warning.

    Raises:
        UserError: nothing there, or nothing that can be used; see `read_manifest`.
    """
    file = manifest_file(source)
    if file is not None:
        return read_manifest(file, on_missing=on_missing)
    found = find_audio(source, workers=workers)
    for error in found.broken:
        logger.warning('%s (left out)', error)
    if not found.metas:
        raise UserError(f'{source}: none of its {len(found.broken)} media files can be used')
    return found.metas


def read_manifest(path: str | Path, *, on_missing: Missing = 'error') -> list[AudioMeta]:
    """Read a manifest: lines of JSON, or such a file compressed, or a folder that holds `data.jsonl[.gz]`.

    The cluster's dataset mappers rewrite `path` and `info_path`. What is then relative is relative to the manifest or,
    if the first file is not there but in the current folder (as in manifests of AudioCraft), to that one. Unknown keys
    are ignored.

    Args:
        path (str or Path): the manifest.
        on_missing (str): what to do when files do not exist: 'error', 'skip' (a warning with their number), or
            'ignore' (nobody looks, which is quick on a slow disk).
    Raises:
        UserError: no such manifest, a broken line (with its number), no lines, or missing files.
    """
    file = manifest_file(path)
    if file is None:
        raise UserError(f'{path}: there is no manifest, a .jsonl (or .jsonl.gz) file, or a folder with data.jsonl, was '
                        f'expected. `python -m audiocraft manifest FOLDER OUT.jsonl` makes one.')
    metas = [parse_line(line, file, number) for number, line in enumerate(manifest_lines(file), 1) if line.strip()]
    if not metas:
        raise UserError(f'{file}: has no lines; one JSON object per audio file was expected.')
    metas = rooted(metas, file)
    return metas if on_missing == 'ignore' else _existing(metas, file, on_missing)


def manifest_lines(path: Path) -> tp.Iterator[str]:
    """Yield the lines of a manifest; raises `UserError` where it cannot be read."""
    try:
        with gzip.open(path, 'rt', encoding='utf-8') if path.suffix == '.gz' else open(path, encoding='utf-8') as file:
            yield from file
    except FileNotFoundError:
        raise UserError(f'{path}: there is no such manifest.') from None
    except (UnicodeDecodeError, OSError, EOFError) as error:
        raise UserError(f'{path}: not readable as {"compressed " if path.suffix == ".gz" else ""}text ({error}).') \
            from error


def parse_line(line: str, file: Path, number: int) -> AudioMeta:
    """Return what a line says, with paths mapped; raises `UserError` that names file and line number."""
    def wrong(problem: str) -> UserError:
        return UserError(f'{file}, line {number}: {problem}')

    try:
        entry = json.loads(line)
    except ValueError as error:
        raise wrong(f'not JSON ({error}).') from None
    if not isinstance(entry, dict):
        raise wrong(f'expected an object with "path", "duration" and "sample_rate", found a {type(entry).__name__}.')
    for key in ('path', 'duration', 'sample_rate'):
        if entry.get(key) is None:
            raise wrong(f'"{key}" is missing.')
    for key in ('path', 'info_path'):
        if not isinstance(entry.get(key, ''), (str, type(None))):
            raise wrong(f'"{key}" should be text, found {entry[key]!r}.')
    for key in ('duration', 'sample_rate', 'amplitude', 'weight'):
        value = entry.get(key)
        if value is not None and not _is_number(value):
            raise wrong(f'"{key}" should be a number, not negative, found {value!r}.')
    mapped = AudioCraftEnvironment.apply_dataset_mappers
    return AudioMeta(mapped(entry['path']), float(entry['duration']), int(entry['sample_rate']),
                     entry.get('amplitude'), entry.get('weight'), entry.get('info_path') and mapped(entry['info_path']))


def _is_number(value: tp.Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def rooted(metas: tp.Sequence[AudioMeta], file: Path) -> list[AudioMeta]:
    """Make relative paths of a manifest relative to the current folder (see `read_manifest`)."""
    base = _base(metas, file.absolute().parent)
    return [meta if os.path.isabs(meta.path) and meta.info_path is None else
            dataclasses.replace(meta, path=os.path.join(base, meta.path),
                                info_path=meta.info_path and os.path.join(base, meta.info_path)) for meta in metas]


def _base(metas: tp.Sequence[AudioMeta], folder: Path) -> Path:
    first = next((meta.path for meta in metas if not os.path.isabs(meta.path)), None)
    if first is None or (folder / first).exists() or not Path(first).exists():
        return folder
    return Path.cwd()


def _existing(metas: list[AudioMeta], file: Path, on_missing: Missing) -> list[AudioMeta]:
    @functools.cache
    def names(folder: str) -> set[str]:  # one listing asks a network disk much less than a look at every file
        try:
            return set(os.listdir(folder or '.'))
        except OSError:
            return set()

    there = [os.path.basename(meta.path) in names(os.path.dirname(meta.path)) for meta in metas]
    missing = [meta.path for meta, exists in zip(metas, there) if not exists]
    if not missing:
        return metas
    listed = ''.join(f'\n  {path}' for path in missing[:SHOWN]) + ('\n  ...' if len(missing) > SHOWN else '')
    message = f'{file}: {len(missing)} of {len(metas)} files do not exist:{listed}'
    if on_missing == 'skip' and len(missing) < len(metas):
        logger.warning('%s\nThey are left out.', message)
        return [meta for meta, exists in zip(metas, there) if exists]
    raise UserError(f'{message}\nRelative paths are relative to the manifest. Make it anew (python -m audiocraft '
                    'manifest), map the paths with dataset_mappers in config/teams, or leave the files out with '
                    "on_missing='skip'.")


def write_manifest(path: str | Path, metas: tp.Iterable[AudioMeta], *, resolve: bool = False) -> Path:
    """Write a manifest, atomically; the same files give the same bytes.

    Args:
        path (str or Path): a .jsonl or .jsonl.gz file, or a folder for `data.jsonl`.
        metas (list of AudioMeta): the files, in this order.
        resolve (bool): absolute paths only; else those below the folder of the manifest are written relative to it, so
            that the folder can be moved as a whole.
    """
    path = Path(path)
    path = path if path.name.endswith(LINE_SUFFIXES) else path / NAMES[0]
    folder = os.path.abspath(path.parent)

    def written(name: str) -> str:
        name = os.path.abspath(name)
        inside = not resolve and os.path.commonpath([name, folder]) == folder
        return Path(os.path.relpath(name, folder)).as_posix() if inside else name

    lines = []
    for meta in metas:
        info = meta.info_path and written(meta.info_path)
        entry = {**dataclasses.asdict(meta), 'path': written(meta.path), 'info_path': info}
        lines.append(json.dumps(entry, ensure_ascii=False) + '\n')
    content = ''.join(lines).encode('utf-8')
    write_atomic(path, gzip.compress(content, mtime=0) if path.suffix == '.gz' else content)
    return path


def read_info(meta: AudioMeta) -> dict[str, tp.Any]:
    """Return what is known of a file: the JSON at `info_path`, else beside it (`a.json` for `a.wav`), {} without any.

    Raises:
        UserError: `info_path` names a file that is not there, or what is there is no JSON object.
    """
    path = meta.info_path or str(Path(meta.path).with_suffix('.json'))
    if meta.info_path is None and not os.path.isfile(path):
        return {}
    try:
        archive, inside = path.rsplit(':', 1) if '.zip:' in path else (path, '')
        if inside:
            with zipfile.ZipFile(archive) as opened:
                content = json.loads(opened.read(inside))
        else:
            content = json.loads(Path(path).read_text(encoding='utf-8'))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f'{path}: cannot be read as the JSON file of {meta.path} ({error}).') from error
    if not isinstance(content, dict):
        raise UserError(f'{path}: expected a JSON object, found a {type(content).__name__}.')
    return content
