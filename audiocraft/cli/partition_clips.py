"""List the clips that long audio files are cut into, as a table for `extract --clips_tsv`.

Parts made with --start and --end on several machines concatenate to the whole.
"""

import argparse


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data_dir', '--data_path', dest='data_dir', required=True, help='folder of audio files')
    parser.add_argument('--output_dir', '--output', dest='output', required=True,
                        help='the table to write, a .tsv or .csv file')
    parser.add_argument('--start', type=int, default=0, help='first file, in the order of their names')
    parser.add_argument('--end', type=int, default=-1, help='file after the last one; -1: all')
    parser.add_argument('--clip_seconds', type=float, default=8.1, help='length of a clip')
    parser.add_argument('--max_clips', type=int, default=5, help='most clips of one file')
    return parser


def main(args: argparse.Namespace) -> int:
    """Write the table."""
    from ..features.partition import partition_clips
    partition_clips(args.data_dir, args.output, start=args.start, end=args.end,
                    clip_seconds=args.clip_seconds, max_clips=args.max_clips)
    return 0
