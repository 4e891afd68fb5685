"""Score a folder of generated sounds against true ones, with the measures and names of av-benchmark.

Example: `python -m audiocraft score --generated FOLDER --cache CACHE --captions_tsv captions.tsv`, or
`--data_dir VIDEOS` in the place of a cache that `feature_cache` made. Ids are file names without suffix. A measure
whose weights are not there is null, with the reason.
"""

import argparse
import dataclasses
import json
import typing as tp
from pathlib import Path

if tp.TYPE_CHECKING:
    from ..data.samples import Clip
    from ._measures import Rejected

OUTPUT = 'output_metrics.json'
UNPAIRED = 'skipped_unpaired: it compares pairs, and --unpaired says that there are none'


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    generated = parser.add_mutually_exclusive_group(required=True)
    generated.add_argument('--generated', help='folder of sounds or videos (wav, flac, mp4, ...)')
    generated.add_argument('--generated_cache', help='folder of their features instead, as av-benchmark writes it')
    parser.add_argument('--cache', help='folder of features of the true clips, by feature_cache or av-benchmark')
    parser.add_argument('--data_dir', help='folder of the true clips; beside --cache, for what the cache has not')
    parser.add_argument('--captions_tsv', help='table with id and caption (else the JSON beside a generated clip)')
    parser.add_argument('--unpaired', action='store_true', help='generated and true clips are no pairs')
    parser.add_argument('--names', default='exact', choices=['exact', 'av_benchmark'],
                        help='how names of generated files become ids: as they are, or less what av-benchmark strips')
    parser.add_argument('--seconds', type=float, default=8., help='of each clip that count (8)')
    parser.add_argument('--out', help=f'JSON to write ({OUTPUT} in the folder of the generated clips)')
    parser.add_argument('--device', default='auto', choices=['auto', 'cpu', 'cuda'], help='where networks run (auto)')
    parser.add_argument('--batch_size', type=int, default=16, help='clips at a time (16)')
    parser.add_argument('--metric', default='av_benchmark', help='yaml of config/metric (av_benchmark)')
    parser.add_argument('overrides', nargs='*', metavar='KEY=VALUE', help='e.g. fd_pann.network.weights=FILE')
    return parser


@dataclasses.dataclass
class Truth:
    """Where partners of generated clips come from.

    Args:
        media (dict): files by id.
        names (str): how names of generated files become ids.
        rejected (Rejected): takes the files that cannot be read.
        seen (set): ids of the true clips that were read.
    """
    media: dict[str, Path]
    names: str
    rejected: 'Rejected'
    seen: set[str] = dataclasses.field(default_factory=set)

    def id_of(self, name: str) -> str:
        """The id of the true clip of a generated one."""
        from ..metrics.feature_cache import NAMES
        return NAMES[self.names](name)

    def clips(self, generated: 'tp.Sequence[Clip]') -> 'list[Clip | None]':
        """The true clips, None where there is none or it cannot be read."""
        from ..data.media import MediaError
        from ._measures import read_whole
        found: list[Clip | None] = []
        for clip in generated:
            path = self.media.get(self.id_of(clip.id))
            try:
                found.append(read_whole(path) if path else None)
            except MediaError as error:
                self.rejected.add(error.path, error)
                found.append(None)
        return found

    def once(self, clips: 'tp.Sequence[Clip | None]') -> 'list[Clip | None]':
        """The clips that come for the first time, None for the others: several generated ones may have one partner."""
        found: list[Clip | None] = []
        for clip in clips:
            found.append(None if clip is None or clip.id in self.seen else clip)
            self.seen |= {clip.id} if clip is not None else set()
        return found

    def others(self, batch_size: int) -> 'tp.Iterator[list[Clip]]':
        """The true clips that no generated one belonged to, a batch at a time."""
        from ..data.media import MediaError
        from ._measures import in_batches, read_whole
        for ids in in_batches([id for id in self.media if id not in self.seen], batch_size):
            clips = []
            for id in ids:
                try:
                    clips.append(read_whole(self.media[id]))
                except MediaError as error:
                    self.rejected.add(error.path, error)
            yield clips

    def stand_ins(self, generated: 'tp.Sequence[Clip]') -> 'list[Clip]':
        """The true clips without their sound, where a cache has it."""
        import torch

        from ..data.samples import Clip
        ids = [self.id_of(clip.id) for clip in generated]
        return [Clip(id, torch.zeros(1, 0), 16_000, media=self.media.get(id)) for id in ids]


def check_cache(folder: str | None, seconds: float) -> None:
    """Refuse a cache that is not there, or whose features are of another part of the clips."""
    from ..metrics.feature_cache import FeatureCache
    from ..utils.errors import UserError
    if folder is None:
        return
    if not Path(folder).is_dir():
        raise UserError(f'{folder}: there is no such folder of features (python -m audiocraft feature_cache makes it)')
    for name, made in FeatureCache(folder).about().items():
        if made['seconds'] != seconds:
            raise UserError(f'{folder}: its features ({name}) are of {made["seconds"]:g} s of each clip, and --seconds '
                            f'is {seconds:g}: give --seconds {made["seconds"]:g}, or make them again.')


def build_measures(args: argparse.Namespace) -> tuple[dict[str, tp.Any], dict[str, tp.Any]]:
    """The measures by name; and the results of those that --unpaired leaves out."""
    from ..metrics.base import unavailable
    from ..metrics.frechet import NetworkFrechet
    from ..metrics.network_metric import NetworkMetric
    from ..utils.config import build
    from ._measures import read_nodes, settle
    for folder in (args.cache, args.generated_cache):
        check_cache(folder, args.seconds)
    measures: dict[str, tp.Any] = {}
    left_out: dict[str, tp.Any] = {}
    for name, node in read_nodes(args.metric, args.overrides).items():
        metric = build(settle(node, device=args.device, batch_size=args.batch_size, cache=args.cache, names=args.names,
                              generated_cache=args.generated_cache))
        if isinstance(metric, NetworkMetric):
            metric.network.seconds = args.seconds
        if args.unpaired and isinstance(metric, NetworkFrechet):
            metric.paired = False
        elif args.unpaired and isinstance(metric, NetworkMetric) and metric.needs_truth:
            left_out |= unavailable(metric.name, UNPAIRED)
            continue
        measures[name] = metric
    return measures, left_out


def read_generated(args: argparse.Namespace, truth: Truth) -> 'tp.Iterator[list[Clip]]':
    """The generated clips with their captions, a batch at a time."""
    from ..data.media import MediaError
    from ..features.inputs import read_captions
    from ._measures import in_batches, media_by_id, prompt_of, read_whole
    captions = read_captions(args.captions_tsv) if args.captions_tsv else {}
    for items in in_batches(list(media_by_id(args.generated).items()), args.batch_size):
        clips = []
        for id, path in items:
            try:
                caption = captions.get(truth.id_of(id), '') if captions else prompt_of(path)
                clips.append(read_whole(path, caption=caption))
            except MediaError as error:
                truth.rejected.add(path, error)
        yield clips


def take(measures: dict[str, tp.Any], clips: 'list[Clip]', truth: Truth, args: argparse.Namespace) -> None:
    """Show a batch to all measures; networks that several of them use run once."""
    from ..metrics.network_metric import NetworkMetric
    stand_ins = truth.stand_ins(clips)
    true = truth.clips(clips) if truth.media and not all(_cached(metric) for metric in measures.values()) else None
    true = true or [None] * len(clips)
    once = truth.once(true)
    for metric in measures.values():
        if isinstance(metric, NetworkMetric):  # its network cuts what it hears itself
            metric.update(clips, stand_ins if _cached(metric) else true if metric.paired else once)
        else:
            metric.update([_cut(clip, args.seconds) for clip in clips],
                          [clip and _cut(clip, args.seconds) for clip in true])


def take_others(measures: dict[str, tp.Any], truth: Truth, batch_size: int) -> None:
    """Show the true clips without a generated one to the measures that compare sets."""
    from ..metrics.network_metric import NetworkMetric
    sets = [metric for metric in measures.values() if isinstance(metric, NetworkMetric) and metric.compares_sets]
    for clips in truth.others(batch_size) if sets else ():
        for metric in sets:
            metric.add_true(clips)


def _cached(metric: tp.Any) -> bool:
    return getattr(metric, 'cache', None) is not None


def _cut(clip: 'Clip', seconds: float) -> 'Clip':
    return dataclasses.replace(clip, audio=clip.audio[..., :round(seconds * clip.sample_rate)])


def in_order(results: dict[str, tp.Any]) -> dict[str, tp.Any]:
    """The results with those of av-benchmark first, in its order."""
    from ..metrics.network_metric import AV_BENCHMARK
    return {name: results[name] for name in AV_BENCHMARK if name in results} | results


def table(results: dict[str, tp.Any]) -> tp.Iterator[str]:
    """A line for each result: value, number of clips or windows, or why there is none."""
    for name, value in results.items():
        if f'{name}_reason' in results:
            yield f'{name:18} {"-":>10}  {results[f"{name}_reason"]}'
        elif isinstance(value, float) and not name.endswith(('_n', '_unpaired')):
            count, lonely = (results.get(f'{name}_{key}') for key in ('n', 'unpaired'))
            yield (f'{name:18} {value:10.4f}' + (f'  of {count:g}' if count else '')
                   + (f', {lonely:g} have no partner' if lonely else ''))


def main(args: argparse.Namespace) -> int:
    """Score."""
    from ..utils.errors import UserError
    from ..utils.files import write_atomic
    from ..utils.logging import jsonable
    from ._measures import Rejected, check_numbers, media_by_id
    check_numbers(seconds=args.seconds, batch_size=args.batch_size)
    if not args.cache and (not args.data_dir or args.generated_cache):
        raise UserError('What are the true clips? Give --cache (made by `python -m audiocraft feature_cache`)'
                        + (', or --data_dir, the folder of their media.' if not args.generated_cache else '.'))
    media = media_by_id(args.data_dir, videos_first=True) if args.data_dir else {}
    truth, count = Truth(media, args.names, Rejected()), 0
    measures, results = build_measures(args)
    for clips in read_generated(args, truth) if args.generated else ():
        take(measures, clips, truth, args)
        count += len(clips)
    if args.generated and not count:
        raise UserError(f'{args.generated}: none of its {len(truth.rejected)} files could be read.')
    take_others(measures, truth, args.batch_size)
    for metric in measures.values():
        results |= metric.compute()
    results = in_order(results)
    print('\n'.join(table(results)))
    results |= {'generated': count} if args.generated else {}
    results |= {'unreadable': len(truth.rejected), 'unreadable_files': dict(truth.rejected)}
    out = Path(args.out or Path(args.generated or args.generated_cache) / OUTPUT)
    write_atomic(out, json.dumps(jsonable(results), indent=2, ensure_ascii=False, allow_nan=False) + '\n')
    print(f'{out}: {len(truth.rejected)} files left out' if truth.rejected else out)
    return 0
