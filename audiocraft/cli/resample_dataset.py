"""Copy a data set of audio at another sample rate, so that training need not resample; go on where it was stopped.

OUT gets the same tree of folders, in wav or flac of 16 bits, and a manifest data.jsonl.
"""

import argparse


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='SRC', help='folder of media, manifest, or table with a column path')
    parser.add_argument('out', metavar='OUT', help='folder of the copies')
    parser.add_argument('--sample_rate', type=int, required=True, help='of the copies, in Hz')
    parser.add_argument('--channels', type=int, required=True, help='of the copies: 1 is the mean of all')
    parser.add_argument('--suffix', default='.wav', choices=('.wav', '.flac'), help='of the copies (.wav)')
    parser.add_argument('--normalize', default='none', choices=('none', 'peak', 'clip', 'rms', 'loudness'),
                        help='bring each file to a level: peak -1 dB, rms -18 dB, loudness -14 LUFS (none)')
    parser.add_argument('--workers', type=int, default=2, help='threads (2)')
    return parser


def main(args: argparse.Namespace) -> int:
    """Copy."""
    from ..data.resample_dataset import resample_dataset
    done = resample_dataset(args.source, args.out, sample_rate=args.sample_rate, channels=args.channels,
                            suffix=args.suffix, strategy=args.normalize, workers=args.workers)
    print(f'{done.manifest}: {done.made + done.kept} files, {done.made} of them made now; '
          f'{len(done.broken)} broken files left out.')
    return 0
