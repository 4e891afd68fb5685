"""List the audio files of a folder, with their lengths, in a manifest that training reads.

Media of all kinds below ROOT, in the order of their paths. Only headers are read; --complete decodes everything, which
finds damage that a header hides. Files that cannot be used are named, counted and left out.
"""

import argparse
import logging

from ..utils.errors import UserError

logger = logging.getLogger(__name__)


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('root', metavar='ROOT', help='folder, with all folders below it; or a table with a column path')
    parser.add_argument('out', metavar='OUT', help='the manifest: a .jsonl or .jsonl.gz file, or a folder for '
                                                   'data.jsonl')
    parser.add_argument('--complete', action='store_true', help='decode every file to verify it')
    parser.add_argument('--resolve', action='store_true', help='absolute paths (else relative to the manifest for '
                                                               'files below its folder)')
    parser.add_argument('--workers', type=int, default=4, help='threads (4)')
    return parser


def main(args: argparse.Namespace) -> int:
    """Write the manifest."""
    from ..data.audio_manifest import find_audio, write_manifest
    found = find_audio(args.root, complete=args.complete, workers=args.workers)
    for error in found.broken:
        logger.warning('%s (left out)', error)
    if not found.metas:
        raise UserError(f'{args.root}: none of its {len(found.broken)} media files can be used.')
    path = write_manifest(args.out, found.metas, resolve=args.resolve)
    hours = sum(meta.duration for meta in found.metas) / 3600
    print(f'{path}: {len(found.metas)} files, {hours:.2f} hours; {len(found.broken)} broken files left out.')
    return 0
