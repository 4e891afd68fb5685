"""Plain text tables for terminals and logs."""

import typing as tp


def format_value(value: tp.Any, digits: int = 4) -> str:
    """Text of one cell: `-` for nothing, `digits` significant digits for floats, as is otherwise."""
    if value is None:
        return '-'
    if isinstance(value, float):
        return f'{value:.{digits}g}'
    return str(value)


def format_table(rows: tp.Sequence[tp.Sequence[tp.Any]], headers: tp.Sequence[str]) -> str:
    """A table with one line per row; columns of numbers are aligned to the right.

    Args:
        rows: cells, each row as long as `headers`.
        headers: names of the columns.
    Raises:
        ValueError: when a row is not as long as `headers`.
    """
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f'a row has {len(row)} cells but there are {len(headers)} headers: {list(row)}')
    cells = [[format_value(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *cells)]
    numeric = [_is_numeric([row[i] for row in rows]) for i in range(len(headers))]
    lines = [list(headers), ['-' * width for width in widths], *cells]
    return '\n'.join(_line(line, widths, numeric) for line in lines)


def _is_numeric(column: list[tp.Any]) -> bool:
    values = [value for value in column if value is not None]
    return bool(values) and all(isinstance(value, (int, float)) for value in values)


def _line(cells: tp.Sequence[str], widths: list[int], numeric: list[bool]) -> str:
    padded = (cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(cells, widths, numeric))
    return '  '.join(padded).rstrip()
