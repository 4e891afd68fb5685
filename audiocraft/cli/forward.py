"""Dora's own commands, told where our package is: `python -m audiocraft run ...`, and the command `dora`."""

import argparse
import itertools
import os
import sys
import typing as tp
from pathlib import Path

from ..utils.errors import UserError
from ._xps import list_xps

PACKAGE = 'audiocraft'
HELP = {
    'run': 'Train the XP that the overrides describe here, or go on with it: run [flags] solver=NAME [KEY=VALUE ...]. '
           'Flags go before the overrides.',
    'grid': 'Schedule what is missing of the XPs in a grid file and watch them: on SLURM, or in a queue on this '
            'machine ("launcher" in the team file). Ctrl-C ends the watching, not the jobs.',
    'launch': 'Schedule one XP, as grid does, and follow its log.',
    'info': 'What there is about an XP: info -f SIG [flags]. Without arguments, all XPs.',
}


def forward(verb: str, arguments: list[str]) -> int:
    """Run `dora VERB ARGUMENTS` for our package in this process and return its exit status."""
    return run_dora([verb, *arguments])


def run_dora(arguments: list[str]) -> int:
    """Run Dora's command line for our package, with some more flags (see `extended`), and return its exit status."""
    if arguments == ['info']:
        print(list_xps())
        return 0
    # The workers that Dora starts inherit it.
    os.environ['DORA_PACKAGE'] = PACKAGE
    os.environ.pop('DORA_MAIN_MODULE', None)
    sys.argv = ['dora', *arguments]
    # Dora imports torch; the other commands do not pay for it.
    import dora.__main__
    stock = dora.__main__.get_parser
    dora.__main__.get_parser = lambda: extended(stock())
    try:
        dora.__main__.main()
    except EOFError:
        raise UserError('There is nobody to answer the question: nothing was done.') from None
    finally:
        dora.__main__.get_parser = stock
    return 0


def extended(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Dora's parser with `grid --yes`, `--no_monitor` and `--git_save`, `info -v`, and a text for each command."""
    (commands,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for name, text in HELP.items():
        commands.choices[name].description = text
    grid, info = commands.choices['grid'], commands.choices['info']
    for name in ('grid', 'launch'):
        commands.choices[name].add_argument('--git_save', action='store_const', const=True, dest='git_save',
                                            help='Run from a clone of the current commit.')
    grid.add_argument('-y', '--yes', action='store_true', help='Do not ask before --clear.')
    grid.add_argument('--no_monitor', action='store_false', dest='monitor', help='The same as --no_monitoring.')
    info.add_argument('-v', '--verbose', action='store_true', default=argparse.SUPPRESS,
                      help='Show the whole config, resolved.')
    return parser


def dora(arguments: tp.Sequence[str] | None = None) -> int:
    """The command `dora`: Dora's own, which takes our package when the current folder has none."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if package_of(given) != PACKAGE:
        from dora.__main__ import main
        main()
        return 0
    try:
        return run_dora(_without_package(given))
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parse_head(arguments: tp.Sequence[str]) -> tuple[argparse.Namespace, list[str], list[str]]:
    """The package and its module, what else stands before the command, and the command with what follows."""
    words = ('grid', 'run', 'launch', 'info', 'import', 'export')
    head = list(itertools.takewhile(lambda word: word not in words, arguments))
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('-P', '--package')
    parser.add_argument('--main_module')
    known, rest = parser.parse_known_args(head)
    return known, rest, list(arguments[len(head):])


def package_of(arguments: tp.Sequence[str]) -> str | None:
    """The package that a command line is for, found as Dora does; ours when there is none; None with several."""
    known = _parse_head(arguments)[0]
    named = known.package or os.environ.get('DORA_PACKAGE')
    if named:
        return named
    module = known.main_module or os.environ.get('DORA_MAIN_MODULE') or 'train'
    found = sorted(path.parent.name for path in Path('.').glob('*/__init__.py')
                   if (path.parent / f'{module}.py').exists())
    return {0: PACKAGE, 1: found[0] if found else None}.get(len(found))


def _without_package(arguments: tp.Sequence[str]) -> list[str]:
    _, rest, command = _parse_head(arguments)
    return [*rest, *command]
