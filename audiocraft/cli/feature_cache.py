"""Make the features of true clips that metrics compare with, in the files of av-benchmark; go on where it was stopped.

Example: `python -m audiocraft feature_cache --data_dir VIDEOS --captions_tsv captions.tsv --output_dir CACHE`, then
`dset.evaluate.gt_cache=CACHE metric=av_benchmark`, or `python -m audiocraft score --generated FOLDER --cache CACHE`.
Networks whose weights are not there are listed and left out. `--side generated` makes those of generated sound instead.
"""

import argparse
import json
import logging
import typing as tp
from pathlib import Path

logger = logging.getLogger(__name__)

Job = tuple[tp.Any, str]
"""A network, and what it is shown."""


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data_dir', required=True, help='folder of media; file names without suffix are the ids')
    parser.add_argument('--output_dir', required=True, help='folder of the features')
    parser.add_argument('--captions_tsv', help='table (tabs or commas) with id and caption (or label)')
    parser.add_argument('--only_listed', action='store_true', help='of the folder only what --captions_tsv lists')
    parser.add_argument('--seconds', type=float, default=8., help='of each clip that are looked at (8)')
    parser.add_argument('--device', default='auto', choices=['auto', 'cpu', 'cuda'], help='where networks run (auto)')
    parser.add_argument('--batch_size', type=int, default=16, help='clips at a time (16)')
    parser.add_argument('--save_every', type=int, default=50, help='batches between two savings (50)')
    parser.add_argument('--side', default='true', choices=['true', 'generated'], help='which features (true)')
    parser.add_argument('--metric', default='av_benchmark', help='yaml of config/metric that names the networks')
    parser.add_argument('overrides', nargs='*', metavar='KEY=VALUE', help='e.g. fd_pann.network.weights=FILE')
    return parser


def jobs_of(nodes: tp.Iterable[dict[str, tp.Any]], side: str, seconds: float) -> list[Job]:
    """What the measures of these nodes look at on one side, each once."""
    from ..metrics.network_metric import NetworkMetric
    from ..utils.config import build
    jobs: dict[tuple[int, str], Job] = {}
    for metric in map(build, nodes):
        if isinstance(metric, NetworkMetric) and (side == 'generated' or metric.needs_truth):
            source = metric.source if side == 'generated' else metric.true_source
            jobs[id(metric.network), source] = metric.network, source
    for network, _ in jobs.values():
        network.seconds = seconds
    return list(jobs.values())


def possible(jobs: list[Job]) -> list[Job]:
    """The jobs that can be done; the others are listed."""
    for network, source in jobs:
        if network.missing:
            print(f'not made: {network.name} of {source}: {network.missing}')
    return [job for job in jobs if not job[0].missing]


class Filling:
    """A cache while it is made.

    Args:
        folder (str or Path): of the cache.
        jobs (list): networks and what they are shown.
        seconds (float): of each clip.
    """

    def __init__(self, folder: str | Path, jobs: list[Job], *, seconds: float):
        from ..metrics.feature_cache import FeatureCache
        self.cache, self.jobs, self.seconds = FeatureCache(folder), jobs, seconds
        self.done: list[dict[str, tp.Any]] = []
        self.without: list[list[str]] = [[] for _ in jobs]
        self.changed: set[int] = set()
        self._check_origin()
        for network, source in jobs:
            there = not self.cache.missing(network.name, source)
            self.done.append(self.cache.read(network.name, source, partial=True) if there else {})

    def _check_origin(self) -> None:
        """Refuse to add to features of other weights; note those of ours."""
        from ..metrics.feature_cache import ABOUT
        from ..utils.errors import UserError
        from ..utils.files import write_atomic
        about = self.cache.about()
        for network, source in self.jobs:
            key, made = f'{network.name} {source}', {'sha256': network.sha256, 'seconds': self.seconds}
            if about.get(key, made) != made and not self.cache.missing(network.name, source):
                raise UserError(f'{self.cache.folder}: its {source} features of {network.name} were made with '
                                f'{about[key]}, not with {made}: give another --output_dir, or delete its files.')
            about[key] = made
        write_atomic(self.cache.folder / ABOUT, json.dumps(about, indent=2) + '\n')

    def lacking(self, ids: tp.Iterable[str]) -> list[str]:
        """The ids that some network has not seen."""
        return [id for id in ids if any(id not in done for done in self.done)]

    def add(self, clips: tp.Sequence[tp.Any]) -> None:
        """Make the features of some clips."""
        for number, (network, source) in enumerate(self.jobs):
            todo = [clip for clip in clips if clip.id not in self.done[number]]
            for clip, features in zip(todo, network(todo, source) if todo else []):
                if features is None:
                    self.without[number].append(clip.id)
                else:
                    self.done[number][clip.id] = features
                    self.changed.add(number)

    def save(self) -> None:
        """Write what is new, ids in their order."""
        for number in sorted(self.changed):
            network, source = self.jobs[number]
            self.cache.write(network.name, source, dict(sorted(self.done[number].items())))
        self.changed.clear()

    def report(self) -> tp.Iterator[str]:
        """A line for each network, and one for each that has clips without features."""
        for (network, source), done, without in zip(self.jobs, self.done, self.without):
            yield f'{network.name} of {source}: {len(done)} clips'
            if without:
                yield (f'  {len(without)} clips have no {source} that it could look at: '
                       f'{", ".join(without[:5])}{", ..." if len(without) > 5 else ""}')


def main(args: argparse.Namespace) -> int:
    """Make the cache."""
    from ..data.media import MediaError
    from ..features.inputs import read_captions
    from ..utils.errors import UserError
    from ._measures import Rejected, check_numbers, in_batches, media_by_id, read_nodes, read_whole, settle
    check_numbers(seconds=args.seconds, batch_size=args.batch_size, save_every=args.save_every)
    nodes = read_nodes(args.metric, args.overrides)
    settled = [settle(node, device=args.device, batch_size=args.batch_size) for node in nodes.values()]
    jobs = possible(jobs_of(settled, args.side, args.seconds))
    if not jobs:
        raise UserError('None of the networks can be run: see above what each needs.')
    media = media_by_id(args.data_dir, videos_first=args.side == 'true')
    captions = read_captions(args.captions_tsv) if args.captions_tsv else {}
    if args.only_listed:
        if not captions:
            raise UserError('--only_listed takes what --captions_tsv lists: give both.')
        if absent := [id for id in captions if id not in media]:
            print(f'{len(absent)} listed clips are not in {args.data_dir}: {", ".join(absent[:5])}')
        media = {id: path for id, path in media.items() if id in captions}
    filling, rejected = Filling(args.output_dir, jobs, seconds=args.seconds), Rejected()
    lacking = filling.lacking(media)
    try:
        for number, ids in enumerate(in_batches(lacking, args.batch_size), 1):
            clips = []
            for id in ids:
                try:
                    clips.append(read_whole(media[id], caption=captions.get(id, '')))
                except MediaError as error:
                    rejected.add(media[id], error)
            filling.add(clips)
            if number % args.save_every == 0:
                filling.save()
                logger.info('%d of %d clips', number * args.batch_size, len(lacking))
    finally:
        filling.save()
        for network, _ in jobs:
            network.rest()
    print('\n'.join(filling.report()))
    if gone := sorted({id for done in filling.done for id in done} - media.keys()):
        print(f'{len(gone)} clips of {args.output_dir} are not in {args.data_dir} and count all the same: '
              f'{", ".join(gone[:5])}')
    if len(rejected) == len(media):
        raise UserError(f'{args.data_dir}: none of its {len(rejected)} files could be read.')
    if rejected:
        print(f'{len(rejected)} files could not be read: {", ".join(list(rejected)[:5])}')
    return 0
