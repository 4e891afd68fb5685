"""The XPs there are, newest first: state, best score, epochs, overrides, e.g. xps --state running mmaudio."""

import argparse

from ..utils.status import DEAD, STATES


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('words', nargs='*', metavar='WORD', help='what must be in the overrides or the signature')
    parser.add_argument('--state', choices=[*STATES, DEAD], help='only those (dead: killed on this machine)')
    parser.add_argument('--all', action='store_true', help='not only the newest 50')
    parser.add_argument('--json', action='store_true', help='for tools: a list of objects, always all of them')
    return parser


def main(args: argparse.Namespace) -> int:
    """Print the list."""
    from . import _xps
    if args.json:
        import json
        print(json.dumps(_xps.as_plain(_xps.find_rows(args.words, args.state)), indent=2))
    else:
        print(_xps.list_xps(args.words, args.state, None if args.all else _xps.LIMIT))
    return 0
