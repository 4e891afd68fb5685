"""Is this data sound? Of a store, a manifest or a folder of media; nothing is changed."""
import typing as tp
from pathlib import Path

from ..utils.errors import UserError
from .audio import audio_info, read_audio
from .audio_manifest import LINE_SUFFIXES, AudioMeta, manifest_file, manifest_lines, parse_line, read_meta, rooted
from .layout import StoreFiles
from .manifest import iter_table
from .media import MEDIA_SUFFIXES
from .store import check_store

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
        return check_lines(path, deep)
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
    """Check the stores that a folder holds, or else its manifest, or else its media files."""
    facts = {file.with_name(file.name.removesuffix('.facts.json')) for file in folder.glob('*.facts.json')}
    stores = sorted(facts | {child for child in folder.iterdir() if child.is_dir() and is_store(child)})
    if stores:
        return [problem for store in stores for problem in check_store(store, deep)]
    manifest = manifest_file(folder)
    if manifest is not None:
        return check_lines(manifest, deep)
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


def check_lines(path: str | Path, deep: bool = False) -> list[str]:
    """Check a manifest of audio (`.jsonl`, `.jsonl.gz`): every line, that its files exist and are there once.

    Args:
        path (str or Path): the manifest.
        deep (bool): decode every file; its length must be the one that the manifest gives.
    """
    path = Path(path)
    problems: list[str] = []
    parsed: dict[int, AudioMeta] = {}
    number = 0
    try:
        for number, line in enumerate(manifest_lines(path), 1):
            try:
                if line.strip():
                    parsed[number] = parse_line(line, path, number)
            except UserError as error:
                problems.append(str(error))
    except UserError as error:
        problems.append(str(error))
    if not parsed and not problems:
        return [f'{path}: has no lines.']
    first: dict[str, int] = {}
    for number, meta in zip(parsed, rooted(list(parsed.values()), path)):
        again = first.setdefault(meta.path, number)
        where = f'{path}, line {number}'
        if again != number:
            problems.append(f'{where}: {meta.path} is there already in line {again}.')
        elif not Path(meta.path).is_file():
            problems.append(f'{where}: {meta.path} does not exist.')
        elif deep:
            problems += [f'{where}: {problem}' for problem in _length_problems(meta)]
    return problems


def _length_problems(meta: AudioMeta) -> tp.Iterator[str]:
    try:
        found = read_meta(Path(meta.path), complete=True)
    except UserError as error:
        yield str(error)
        return
    if abs(found.duration - meta.duration) > 0.01 or found.sample_rate != meta.sample_rate:
        yield (f'{meta.path} has {found.duration:.3f} s at {found.sample_rate} Hz, but the manifest says '
               f'{meta.duration:.3f} s at {meta.sample_rate} Hz.')
