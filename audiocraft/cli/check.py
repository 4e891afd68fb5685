"""Say whether stores, tables and media are sound, or what is wrong in which file; changes nothing."""

import argparse

from ..utils.errors import UserError


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('paths', nargs='+', metavar='PATH', help='a store, a table, a media file, or a folder of these')
    parser.add_argument('--deep', action='store_true', help='also read every byte: sums of the files, NaN in the rows')
    return parser


def _problems(path: str, deep: bool) -> list[str]:
    from ..data.check import check_path
    try:
        return check_path(path, deep=deep)
    except UserError as error:
        return [str(error)]


def main(args: argparse.Namespace) -> int:
    """Print one line for what is sound and one for each problem; 1 when there is any."""
    failed = False
    for path in args.paths:
        problems = _problems(path, args.deep)
        failed |= bool(problems)
        print('\n'.join(problems) if problems else f'{path}: sound.')
    return int(failed)
