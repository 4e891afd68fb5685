"""Print the signature of the XP that some overrides describe, e.g. sig solver=mmaudio/debug."""

import argparse


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('overrides', nargs='*', metavar='KEY=VALUE', help='as for `run`')
    parser.add_argument('--folder', action='store_true', help='print the folder of the XP instead')
    return parser


def main(args: argparse.Namespace) -> int:
    """Print the signature, or the folder."""
    from ..train import main as train
    xp = train.get_xp(args.overrides)
    print(xp.folder if args.folder else xp.sig)
    return 0
