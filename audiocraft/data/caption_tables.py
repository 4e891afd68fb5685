"""Tables of captions (`id`, `caption` or `label`) from the lists that public data sets come with."""
import csv
import hashlib
import json
import logging
import typing as tp
from pathlib import Path

from ..utils.errors import UserError
from .manifest import iter_table, write_table
from .media import MEDIA_SUFFIXES

logger = logging.getLogger(__name__)

VALID = 'valid'


class Caption(tp.NamedTuple):
    """A line of a table to be: the part of the data set that it is in (or the name of its file), id and text."""
    part: str
    id: str
    text: str


def vggsound(source: Path, id_format: str) -> tp.Iterator[Caption]:
    """The csv of VGGSound, without a header: `youtube_id,start_second,label,split`.

    Its clips are `{youtube_id}_{start:06d}.mp4`, https://www.robots.ox.ac.uk/~vgg/data/vggsound.
    """
    with _opened(source) as file:
        for number, fields in enumerate(csv.reader(file), start=1):
            if not fields:
                continue
            if len(fields) != 4 or not fields[1].strip().isdigit():
                raise UserError(f'{source}, line {number}: expected youtube_id,start_second,label,split (no header), '
                                f'got {",".join(fields)}')
            youtube, start, label, part = (field.strip() for field in fields)
            yield Caption(part, _named(id_format, source, youtube_id=youtube, start=int(start)), label)


def audiocaps(source: Path, id_format: str) -> tp.Iterator[Caption]:
    """A csv of AudioCaps (one per part of it): `audiocap_id,youtube_id,start_time,caption`."""
    for _, row in iter_table(source, required=['audiocap_id', 'youtube_id', 'start_time', 'caption']):
        id = _named(id_format, source, audiocap_id=row['audiocap_id'], youtube_id=row['youtube_id'],
                    start=_whole(row['start_time']))
        yield Caption(source.stem, id, row['caption'])


def wavcaps(source: Path, id_format: str) -> tp.Iterator[Caption]:
    """A json file of WavCaps: `{"data": [{"id": ..., "caption": ...}, ...]}`; ids may end with the suffix of a file."""
    try:
        with _opened(source) as file:
            content = json.load(file)
        entries = content['data'] if isinstance(content, dict) else content
        pairs = [(str(entry['id']), '' if entry['caption'] is None else str(entry['caption'])) for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{source}: expected a json file of WavCaps, {{"data": [{{"id": ..., "caption": ...}}, ...]}} '
                        f'({type(error).__name__}: {error})') from None
    for id, text in pairs:
        stem = id[:-len(Path(id).suffix)] if Path(id).suffix.lower() in MEDIA_SUFFIXES else id
        yield Caption(source.stem, _named(id_format, source, id=stem), text)


class Kind(tp.NamedTuple):
    """A data set: who reads a file of its lists, their suffix, the ids of its files, the column of texts."""
    read: tp.Callable[[Path, str], tp.Iterator[Caption]]
    suffix: str
    id_format: str
    column: str


KINDS = {'vggsound': Kind(vggsound, '.csv', '{youtube_id}_{start:06d}', 'label'),
         'audiocaps': Kind(audiocaps, '.csv', '{youtube_id}', 'caption'),
         'wavcaps': Kind(wavcaps, '.json', '{id}', 'caption')}


def _opened(path: Path) -> tp.TextIO:
    try:
        return open(path, encoding='utf-8-sig', newline='')
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror})') from None


def _whole(text: str) -> int | str:
    """Seconds as a number, so that an id may be padded with zeros; other texts as they are."""
    return int(text) if text.isdigit() else text


def _named(id_format: str, source: Path, **fields: tp.Any) -> str:
    try:
        id = id_format.format(**fields)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise UserError(f'ids cannot be made with "{id_format}" ({type(error).__name__}: {error}); '
                        f'the fields are {", ".join(fields)}') from None
    if not id:
        raise UserError(f'{source}: one of its ids is empty')
    return id


def _sources(source: Path, suffix: str) -> list[Path]:
    """The file, or those of a folder and what is below it."""
    if not source.is_dir():
        return [source]
    files = sorted(path for path in source.rglob(f'*{suffix}') if not path.name.startswith('.'))
    if not files:
        raise UserError(f'{source} holds no {suffix} file')
    return files


def _read(kind: Kind, path: Path, id_format: str) -> tp.Iterator[Caption]:
    try:
        for caption in kind.read(path, id_format):
            if caption.part != Path(caption.part).name:  # it names a file
                raise UserError(f'{path}: "{caption.part}" cannot be the name of a part')
            yield caption
    except UnicodeDecodeError as error:
        raise UserError(f'{path} is not utf-8 text ({error.reason} at byte {error.start}): save it as utf-8.') from None
    except csv.Error as error:
        raise UserError(f'{path} is no csv file: {error}.') from None


def _hold_out(captions: list[Caption], part: str, count: int) -> list[Caption]:
    """Give `count` ids of a part to `valid`: those with the least sha256, whatever the order of the list."""
    ids = {caption.id for caption in captions if caption.part == part}
    if not 0 < count < len(ids):
        raise UserError(f'{count} ids cannot be held out of "{part}", which has {len(ids)}')
    held = set(sorted(ids, key=lambda id: hashlib.sha256(id.encode()).digest())[:count])
    return [caption._replace(part=VALID) if caption.part == part and caption.id in held else caption
            for caption in captions]


def write_caption_tables(kind: str, source: str | Path, output: str | Path, *, split: str | None = None,
                         id_format: str | None = None, valid: int = 0) -> dict[Path, int]:
    """Write the tables of captions of a data set, which `extract --captions_tsv` takes.

    Args:
        kind (str): one of `KINDS`.
        source (str or Path): the list that the data set comes with, or a folder of such files.
        output (str or Path): a `.tsv` or `.csv` file for one table, or a folder for a table of each part, `<part>.tsv`.
        split (str or None): only this part; parts of VGGSound are its splits, else the names of the files.
        id_format (str or None): how files are named (without suffix), e.g. `{youtube_id}_{start}`.
        valid (int): so many ids of the part `train` become the part `valid`.
    Returns:
        dict: the number of rows of each table.
    Raises:
        UserError: a source of another form, no such part.
    """
    if kind not in KINDS:
        raise UserError(f'"{kind}" is unknown, expected one of {", ".join(KINDS)}')
    reader, output = KINDS[kind], Path(output)
    captions = [caption for path in _sources(Path(source), reader.suffix)
                for caption in _read(reader, path, id_format or reader.id_format)]
    if valid:
        captions = _hold_out(captions, 'train', valid)
    parts = list(dict.fromkeys(caption.part for caption in captions))
    if split is not None and split not in parts:
        raise UserError(f'{source} has no part "{split}"; its parts are {", ".join(parts) or "none"}')
    wanted = [caption for caption in captions if split in (None, caption.part)]
    if not wanted:
        raise UserError(f'{source} holds no caption')
    single = output.suffix.lower() in ('.tsv', '.csv')
    tables = {output: wanted} if single else {
        output / f'{part}.tsv': [caption for caption in wanted if caption.part == part]
        for part in parts if split in (None, part)}
    return {path: _write(path, rows, reader.column) for path, rows in tables.items()}


def _write(path: Path, captions: list[Caption], column: str) -> int:
    """Write one table; a line that is there twice counts once."""
    rows = list(dict.fromkeys((caption.id, caption.text) for caption in captions))
    repeated = len(rows) - len({id for id, _ in rows})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, [{'id': id, column: text} for id, text in rows], ['id', column])
    logger.info('%s: %d ids, %d different captions%s', path, len(rows) - repeated, len({text for _, text in rows}),
                f'; {repeated} ids have another one as well, the last of which counts' if repeated else '')
    return len(rows)
