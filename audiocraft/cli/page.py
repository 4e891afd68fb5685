"""Write the page of an XP again from what is in its folder, and print where it is."""

import argparse


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('xp', metavar='SIG|PATH', help='signature of an XP, or its folder')
    parser.add_argument('--title', help='instead of the name of the solver')
    return parser


def main(args: argparse.Namespace) -> int:
    """Write it."""
    from ..pages.samples import find_folder, write_page
    print(write_page(find_folder(args.xp), title=args.title))
    return 0
