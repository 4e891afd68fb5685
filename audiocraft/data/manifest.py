"""Tables in text: the manifest of a store, captions, lists of clips. Every value stays text.

A number-like id (`00008004`) keeps its zeros and a caption `null` or `NA` stays these words.
"""
import csv
import io
import typing as tp
from pathlib import Path

from ..utils.errors import UserError
from ..utils.files import write_atomic

Row = dict[str, str]
CAPTION_COLUMNS = ('caption', 'label')
_LAST = '\x1elast line\x1e'


def read_table(path: str | Path, *, required: tp.Sequence[str] = ()) -> list[Row]:
    """Read a tab- or comma-separated table with a header, in utf-8 with or without a byte-order mark.

    The separator is the one that the header holds (a tab wins). Fields may be quoted as spreadsheets do it
    (`"a ""b"" c"`). Empty lines are skipped.

    Args:
        path (str or Path): the file.
        required (list of str): columns that must be there.
    Returns:
        list of dict: one per row, from column to text.
    Raises:
        UserError: missing file, no header, a required column that is missing, a row with another number of fields
            than the header, a quote that is never closed, bytes that are not utf-8.
    """
    path = Path(path)
    return [row for _, row in iter_table(path, required=required)]


def iter_table(path: str | Path, *, required: tp.Sequence[str] = ()) -> tp.Iterator[tuple[int, Row]]:
    """Yield (line number, row) of a table, one at a time; see `read_table`."""
    path = Path(path)
    try:
        with open(path, encoding='utf-8-sig', newline='') as file:
            yield from _parse(file, path, required)
    except FileNotFoundError:
        raise UserError(f'{path}: there is no such table.') from None
    except IsADirectoryError:
        raise UserError(f'{path} is a folder; a tab- or comma-separated file was expected.') from None
    except UnicodeDecodeError as error:
        raise UserError(f'{path} is not utf-8 text ({error.reason} at byte {error.start}): save it as utf-8.') from None


def _parse(file: tp.TextIO, path: Path, required: tp.Sequence[str]) -> tp.Iterator[tuple[int, Row]]:
    header = file.readline().rstrip('\r\n')
    if not header.strip():
        raise UserError(f'{path} is empty; its first line should name the columns.')
    delimiter = '\t' if '\t' in header else ','
    columns = next(csv.reader([header], delimiter=delimiter))
    _check_columns(columns, path, required)
    reader = csv.reader(_with_last_line(file), delimiter=delimiter)
    ended = False
    try:
        for fields in reader:
            ended = fields == [_LAST]
            if ended or not fields:
                continue
            if fields[-1].endswith(_LAST + '\n'):
                break  # the rest of the file was swallowed by a quote
            if len(fields) != len(columns):
                raise UserError(f'{path}, line {reader.line_num + 1}: {len(fields)} fields, but the header has '
                                f'{len(columns)} ({", ".join(columns)}). Quote fields that hold the separator.')
            yield reader.line_num + 1, dict(zip(columns, fields))
    except csv.Error as error:
        raise UserError(f'{path}, line {reader.line_num + 1}: {error}.') from None
    if not ended:
        raise UserError(f'{path}: a quote (") is opened and never closed. Double the quotes inside a quoted field.')


def _with_last_line(file: tp.TextIO) -> tp.Iterator[str]:
    """The lines, then one that only comes through as itself when no quote is open."""
    for line in file:
        yield line if line.endswith(('\n', '\r')) else line + '\n'
    yield _LAST + '\n'


def _check_columns(columns: list[str], path: Path, required: tp.Sequence[str]) -> None:
    missing = [column for column in required if column not in columns]
    if missing:
        raise UserError(f'{path}: no column "{missing[0]}"; its columns are {", ".join(columns)}.')
    twice = {column for column in columns if columns.count(column) > 1}
    if twice:
        raise UserError(f'{path}: column "{min(twice)}" is there twice.')


def format_table(rows: tp.Iterable[tp.Mapping[str, tp.Any]], columns: tp.Sequence[str], *,
                 delimiter: str = '\t') -> str:
    """Return a table as text; `None` and missing values become empty fields."""
    out = io.StringIO(newline='')
    writer = csv.writer(out, delimiter=delimiter, lineterminator='\n')
    writer.writerow(columns)
    for row in rows:
        writer.writerow(['' if row.get(column) is None else row[column] for column in columns])
    return out.getvalue()


def write_table(path: str | Path, rows: tp.Iterable[tp.Mapping[str, tp.Any]], columns: tp.Sequence[str]) -> None:
    """Write a table atomically: comma-separated when the file ends in `.csv`, else tab-separated."""
    delimiter = ',' if Path(path).suffix.lower() == '.csv' else '\t'
    write_atomic(path, format_table(rows, columns, delimiter=delimiter))


def caption_of(row: tp.Mapping[str, str]) -> str:
    """The text of a row: its `caption`, else its `label`, else nothing."""
    return next((row[column] for column in CAPTION_COLUMNS if column in row), '')
