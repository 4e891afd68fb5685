"""Give a trained model away: a folder with its weights, config and card, which loads without the XP.

Example: `python -m audiocraft export SIG --out exports/mine`, then `load_model('exports/mine')`.
"""

import argparse


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('xp', metavar='SIG|PATH', help='signature or folder of an XP, or one of its checkpoints')
    parser.add_argument('--out', metavar='DIR', help='folder to make (`export` in the folder of the XP)')
    parser.add_argument('--format', choices=['all', 'audiocraft', 'mmaudio'], default='all',
                        help='audiocraft: only the file that AudioCraft reads, of an EnCodec (all: that one too); '
                             'mmaudio: only the file that MMAudio reads, of its network or mel VAE')
    parser.add_argument('--weights', choices=['best', 'ema', 'model'],
                        help='which ones (best); what is absent gives way to the next')
    parser.add_argument('--sigma_rel', type=float, metavar='WIDTH',
                        help='the average of this relative width instead, made from the snapshots (optim/ema=posthoc)')
    parser.add_argument('--force', action='store_true', help='replace the folder if it exists')
    return parser


def main(args: argparse.Namespace) -> int:
    """Export, and print where to."""
    from pathlib import Path

    from ._exporting import export
    reference = args.xp if '/' in args.xp or Path(args.xp).exists() else f'//sig/{args.xp}'
    print(export(reference, Path(args.out) if args.out else None, which=args.weights,
                 only=None if args.format == 'all' else args.format, sigma_rel=args.sigma_rel,
                 force=args.force))
    return 0
