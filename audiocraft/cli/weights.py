"""External weights: `list` what there is, `verify` what is on this machine, `fetch` some over the network."""

import argparse

from .. import weights
from ..utils.errors import UserError


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    actions = parser.add_subparsers(dest='action', required=True, metavar='list|verify|fetch')
    actions.add_parser('list', help='all weights, and where they are on this machine')
    for name, text in [('verify', 'compare the digests of what is on this machine'), ('fetch', 'download and verify')]:
        action = actions.add_parser(name, help=text)
        action.add_argument('names', nargs='*' if name == 'verify' else '+', metavar='NAME')
    return parser


def _location(name: str) -> str | None:
    try:
        return str(weights.find(name))
    except UserError:
        return None


def _list() -> int:
    found = {entry.name: _location(entry.name) for entry in weights.entries()}
    for entry in weights.entries():
        print(f'{entry.name:22} {entry.licence:16} {found[entry.name] or "-"}\n{"":22} for {entry.used_by}')
    print(f'\n{sum(map(bool, found.values()))} of {len(found)} are on this machine. Looked for in '
          f'{weights.weights_folder()}/NAME (AUDIOCRAFT_WEIGHTS), there as MMAudio keeps them, and in the hub cache.')
    return 0


def _verify(names: list[str]) -> int:
    chosen = names or [entry.name for entry in weights.entries() if _location(entry.name)]
    if not chosen:
        print('No external weights on this machine.')
    failed = False
    for name in chosen:
        try:
            print(f'{name}: ok, {weights.verify(name)}')
        except UserError as error:
            failed = True
            print(f'{name}: {error}')
    return int(failed)


def main(args: argparse.Namespace) -> int:
    """Run one of the three."""
    if args.action == 'list':
        return _list()
    if args.action == 'verify':
        return _verify(args.names)
    for name in args.names:
        print(weights.fetch(name))
    return 0
