"""Tell a run that is going on, here or on another machine: save, quit, lr 1e-4, eval, export, time."""

import argparse
import time
from pathlib import Path

from ..solvers.control import parse, usage
from ..utils.mailbox import send


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=usage(),
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('xp', metavar='SIG', help='signature or folder of the XP')
    parser.add_argument('command', nargs='+', metavar='COMMAND', help='for instance: save, or lr 1e-4@2000')
    parser.add_argument('--wait', type=float, default=15., metavar='SECONDS', help='for an answer (15)')
    return parser


def main(args: argparse.Namespace) -> int:
    """Send the command and print the answer; 1 when it is a refusal or nobody answers."""
    from ._xps import find_xp
    folder = find_xp(args.xp)
    answer = send(folder, parse(' '.join(args.command)).text, wait=args.wait)
    if answer is None:
        answer = (f'error: nobody answered within {args.wait:g} s, and the command was withdrawn. '
                  + _what_is_known(folder))
    print(answer)
    return int(answer.startswith('error: '))


def _what_is_known(folder: Path) -> str:
    """Whether an XP seems to run."""
    from ..utils.status import read_status
    from ._xps import age
    status = read_status(folder)
    state = f'It is {status["state"]}' if status else 'Is it running? There is no status of it'
    logs = [path.stat().st_mtime for path in folder.glob('*.log.0')]
    log = f'its last log line is {age(time.time() - max(logs))} old' if logs else 'it has no log yet'
    late = ' A run answers between two updates: give it more --wait.' if status and status['state'] == 'running' else ''
    return f'{state}; {log}.{late}'
