"""Make the table of captions that `extract --captions_tsv` takes from the list that a public data set comes with.

vggsound   vggsound.csv, without a header: youtube_id,start_second,label,split
audiocaps  train.csv, val.csv, test.csv: audiocap_id,youtube_id,start_time,caption
wavcaps    json files: {"data": [{"id": ..., "caption": ...}, ...]}; or a folder of them
"""

import argparse

KINDS = ('vggsound', 'audiocaps', 'wavcaps')


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kind', required=True, choices=KINDS, help='the data set')
    parser.add_argument('--source', required=True, help='its list, or a folder of them')
    parser.add_argument('--output_dir', required=True, metavar='FOLDER_OR_TSV',
                        help='a folder for a table of each part, or a .tsv or .csv file for one table')
    parser.add_argument('--split', help='only this part (vggsound: train or test; else the name of the file)')
    parser.add_argument('--id_format', help='how the files are named, without suffix; by default '
                        '{youtube_id}_{start:06d} (vggsound), {youtube_id} (audiocaps), {id} (wavcaps)')
    parser.add_argument('--valid', type=int, default=0, metavar='N',
                        help='N ids of the part "train", chosen by their sha256, become the part "valid"')
    return parser


def main(args: argparse.Namespace) -> int:
    """Write the tables."""
    from ..data.caption_tables import write_caption_tables
    write_caption_tables(args.kind, args.source, args.output_dir, split=args.split, id_format=args.id_format,
                         valid=args.valid)
    return 0
