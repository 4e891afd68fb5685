"""Is this data sound? Of a store, a manifest or a folder of media; nothing is changed."""
import gzip
import json
import typing as tp
from pathlib import Path

from ..utils.errors import UserError
from .audio import audio_info, read_audio
from .layout import StoreFiles
from .manifest import iter_table
from .media import AUDIO_SUFFIXES, CONTAINER_AUDIO_SUFFIXES, VIDEO_SUFFIXES
from .store import check_store

MEDIA_SUFFIXES = (*VIDEO_SUFFIXES, *AUDIO_SUFFIXES, *CONTAINER_AUDIO_SUFFIXES)
LINE_SUFFIXES = ('.jsonl', '.jsonl.gz')
TABLE_SUFFIXES = ('.tsv', '.csv')


def check_path(path: str | Path, deep: bool = False) -> list[str]:
    """Return what is wrong with a store, a table, a `.jsonl` manifest, or a folder of stores or media; [] if sound.

    Args:
        path (str or Path): the store (its folder, name, tsv or facts), the manifest or the folder.
        deep (bool): read everything: sha256 and NaN rows of stores, all samples of media.
    """
    path = Path(path)
    if is_store(path):
        return check_store(path, deep)
    if path.is_dir():
        return _check_folder(path, deep)
    if not path.exists():
        begun = path.with_name(f'{path.name}.partial').exists()
        return [f'{path}: there is no such file or folder{", its writing has not finished" if begun else ""}.']
    if path.name.endswith(LINE_SUFFIXES):
        return check_lines(path)
    if path.suffix.lower() in TABLE_SUFFIXES:
        return check_manifest(path)
    if path.suffix.lower() in MEDIA_SUFFIXES:
        return _media_problems(path, deep)
    return [f'{path}: neither a store nor a table (.tsv, .csv), a manifest (.jsonl), nor a media file.']


def is_store(path: str | Path) -> bool:
    """Whether a path names a store, be it whole or damaged."""
    files = StoreFiles.at(path)
    inside = files.folder.is_dir() and ((files.folder / 'meta.json').exists() or any(files.folder.glob('*.memmap')))
    return inside or files.facts.is_file()


def _check_folder(folder: Path, deep: bool) -> list[str]:
    """Check the stores that a folder holds, or else its media files."""
    facts = {file.with_name(file.name.removesuffix('.facts.json')) for file in folder.glob('*.facts.json')}
    stores = sorted(facts | {child for child in folder.iterdir() if child.is_dir() and is_store(child)})
    if stores:
        return [problem for store in stores for problem in check_store(store, deep)]
    media = sorted(file for file in folder.iterdir() if file.suffix.lower() in MEDIA_SUFFIXES)
    if not media:
        return [f'{folder}: holds neither stores nor media files.']
    return [problem for file in media for problem in _media_problems(file, deep)]


def _media_problems(path: Path, deep: bool) -> list[str]:
    try:
        if deep:
            wav, _ = read_audio(path)
            return [] if bool(wav.isfinite().all()) else [f'{path}: its samples are not finite.']
        audio_info(path)
    except UserError as error:
        return [str(error)]
    return []


def check_manifest(path: str | Path) -> list[str]:
    """Check a table: that it can be read, has rows and ids, names files that exist and sections that are some."""
    path = Path(path)
    problems, count = [], 0
    try:
        for line, row in iter_table(path):
            count += 1
            problems += [f'{path}, line {line}: {problem}' for problem in _row_problems(row, path.parent)]
    except UserError as error:
        problems.append(str(error))
    if not count and not problems:
        problems.append(f'{path}: has no rows.')
    return problems


def _row_problems(row: dict[str, str], folder: Path) -> tp.Iterator[str]:
    named = [column for column in ('id', 'name', 'path') if column in row]
    if not named:
        yield f'no column "id", "name" or "path"; its columns are {", ".join(row)}.'
    yield from (f'"{column}" is empty.' for column in named if not row[column])
    if row.get('path') and not (folder / row['path']).is_file():
        yield f'{folder / row["path"]} does not exist.'
    if 'start_sample' in row and 'end_sample' in row:
        bounds = row['start_sample'], row['end_sample']
        if not (all(bound.isdecimal() for bound in bounds) and int(bounds[0]) < int(bounds[1])):
            yield f'samples {bounds[0]} to {bounds[1]} are no section.'


def check_lines(path: str | Path) -> list[str]:
    """Check a `.jsonl` (or `.jsonl.gz`) manifest: one JSON object per line, each with the `path` of a file."""
    path = Path(path)
    problems: list[str] = []
    count = 0
    opened = gzip.open(path, 'rt', encoding='utf-8') if path.suffix == '.gz' else open(path, encoding='utf-8')
    try:
        with opened as file:
            for count, line in enumerate(file, 1):
                problems += [f'{path}, line {count}: {problem}' for problem in _line_problems(line, path.parent)]
    except (UnicodeDecodeError, OSError, EOFError) as error:
        problems.append(f'{path}: not readable as text after line {count} ({error}).')
    return problems if count or problems else [f'{path}: has no lines.']


def _line_problems(line: str, folder: Path) -> tp.Iterator[str]:
    try:
        entry = json.loads(line)
    except ValueError as error:
        yield f'not JSON ({error}).'
        return
    if not isinstance(entry, dict) or not isinstance(entry.get('path'), str):
        yield 'expected an object with "path".'
    elif not (folder / entry['path']).is_file():
        yield f'{folder / entry["path"]} does not exist.'
