"""Extraction: media and captions to a store of latents and features.

One process, or several that share the work by files (`RANK` and `WORLD_SIZE`, as torchrun sets them); the result is the
same. Threads decode ahead of the models, a window of a few batches, so that memory does not grow with the data.
"""
import collections
import concurrent.futures
import hashlib
import itertools
import logging
import os
import time
import typing as tp
from pathlib import Path

import torch

from ..data.journal import read_journals
from ..data.media import MediaError
from ..data.store_writer import KeySpec, StoreWriter
from ..models.compression import CompressionModel
from ..utils.config import build
from ..utils.errors import UserError
from ..utils.logging import ProgressLine
from .base import Extractor
from .codec import Codec
from .inputs import Item, Reader, list_clips, list_videos
from .windows import list_windows

logger = logging.getLogger(__name__)

Inputs = dict[str, tp.Any]
Loaded = tuple[Item, Inputs | None, str]


def extract(*, data_dir: str | Path | None = None, output_dir: str | Path, codec: str | CompressionModel,
            extractors: tp.Mapping[str, tp.Any] | None = None, duration: float,
            captions_tsv: str | Path | None = None, clips_tsv: str | Path | None = None,
            manifest: str | Path | None = None, windows: bool = False, min_duration: float = 1.,
            latent_dir: str | Path | None = None, sample_rate: int | None = None, batch_size: int = 16,
            num_workers: int = 2, normalize_audio: bool = True, device: str = 'cpu', log_items: int = 50,
            rank: int | None = None, world_size: int | None = None) -> Path:
    """Make a store of a folder of videos, of clips of audio files (`clips_tsv`), or of windows of them (`windows`).

    Started again, also with another number of processes, it goes on where it was stopped; when all is there it only
    says so. Items that cannot be used are listed with the reason in `<output_dir>.rejected.tsv`.

    Args:
        data_dir (str or Path or None): folder of the media.
        output_dir (str or Path): the store: `<output_dir>/`, `<output_dir>.tsv` and `<output_dir>.facts.json`.
        codec (str or CompressionModel): compression model, or its XP (`//sig/SIG` or folder) or checkpoint.
        extractors (dict): name -> config node (with `_target_`) or `Extractor`; which keys the store gets follows.
        duration (float): seconds of an item; of a window, at most.
        captions_tsv (str or Path or None): table `id`, `caption` (or `label`); ids are file names without suffix.
        clips_tsv (str or Path or None): table `id name start_sample end_sample` (see `partition_clips`).
        manifest (str or Path or None): instead of `data_dir`, the audio files to cut into windows: `.jsonl[.gz]`, or a
            table with a column `path`.
        windows (bool): cut all audio files below `data_dir` into windows; latents and codes are then ragged keys.
        min_duration (float): seconds that the last window of a file must have.
        latent_dir (str or Path or None): folder for what is needed to resume; by default beside the store.
        sample_rate (int or None): that the latents must have; only compared with that of the codec.
        batch_size (int): items per pass through the models.
        num_workers (int): threads that decode.
        normalize_audio (bool): scale each file's largest sample (mixed to mono if the codec is mono) to 0.95.
        device (str): where the models run.
        log_items (int): a line of progress every so many items.
        rank, world_size (int or None): this process among several; from the environment when None.
    Returns:
        Path: `output_dir`.
    Raises:
        UserError: nothing to extract, a store of something else at `output_dir`, no item accepted, ...
    """
    rank, world_size = _place(rank, world_size)
    items = _list_items(data_dir, clips_tsv, manifest, captions_tsv, duration, min_duration if windows else None)
    videos = not (windows or clips_tsv)
    models = build_extractors(codec, extractors or {}, device, with_frames=videos)
    facts = store_facts(models, items, duration=duration, normalize_audio=normalize_audio,
                        **({'min_duration': float(min_duration)} if windows else {}))
    _check_rate(sample_rate, facts['sample_rate'])
    columns = ['label' if videos else 'caption', 'duration', *(['start', 'path'] if windows else [])]
    writer = StoreWriter(output_dir, keys=store_spec(models, duration, windows), ids=[item.id for item in items],
                         facts=facts, columns=columns, state=latent_dir, rank=rank)
    if writer.complete:
        logger.info('already complete: %s, nothing to do', writer.finish().files.folder)
        return Path(output_dir)
    reader = Reader(models, facts['sample_rate'], duration, normalize_audio, facts['channels'], min_duration)
    first, last = (len(items) * part // world_size for part in (rank, rank + 1))
    try:
        _fill(writer, models, reader, items[first:last], batch_size, num_workers, log_items)
    finally:
        writer.close()
    if rank == 0:
        _wait_for_others(writer, len(items))
        _report(writer, output_dir)
    return Path(output_dir)


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """This process among several, from the environment where it is not given."""
    return (int(os.environ.get('RANK', 0)) if rank is None else rank,
            int(os.environ.get('WORLD_SIZE', 1)) if world_size is None else world_size)


def _check_sources(data_dir: str | Path | None, clips_tsv: str | Path | None, manifest: str | Path | None,
                   windows: bool) -> None:
    if (data_dir is None) == (manifest is None):
        raise UserError('extract needs either data_dir, a folder of media, or manifest, a list of audio files')
    if manifest is not None and not windows:
        raise UserError(f'{manifest}: the audio of a manifest is cut into windows: use --config audio_codes, or '
                        f'another one with windows: true')
    if clips_tsv is not None and windows:
        raise UserError(f'{clips_tsv}: either clips of a table or windows of whole files, not both')


def _list_items(data_dir: str | Path | None, clips_tsv: str | Path | None, manifest: str | Path | None,
                captions_tsv: str | Path | None, duration: float, min_duration: float | None) -> list[Item]:
    """The items of the store; windows when they have a `min_duration`."""
    _check_sources(data_dir, clips_tsv, manifest, min_duration is not None)
    source = tp.cast(Path, data_dir if manifest is None else manifest)
    if min_duration is not None:
        return list_windows(source, duration=duration, min_duration=min_duration, captions_tsv=captions_tsv)
    return list_clips(source, clips_tsv, captions_tsv) if clips_tsv else list_videos(source, captions_tsv)


def build_extractors(codec: str | CompressionModel, nodes: tp.Mapping[str, tp.Any], device: str = 'cpu',
                     with_frames: bool = True) -> dict[str, Extractor]:
    """Return the codec (as `codec`) and the extractors by name, those of frames only where there are frames."""
    models: dict[str, Extractor] = {'codec': Codec(codec, device=device)}
    for name, node in nodes.items():
        extractor = node if isinstance(node, Extractor) else build(node)
        if not isinstance(extractor, Extractor):
            raise UserError(f'extractors.{name}: {type(extractor).__name__} is not an extractor')
        if with_frames or extractor.consumes != 'frames':
            models[name] = extractor.to(device).eval()
    return models


def store_spec(models: tp.Mapping[str, Extractor], duration: float, ragged: bool = False) -> dict[str, KeySpec]:
    """Return all keys of the store; a key that two extractors give is an error.

    Args:
        models (dict): the extractors.
        duration (float): seconds of an item.
        ragged (bool): items differ in duration, so that keys which go with time are ragged.
    """
    spec: dict[str, KeySpec] = {}
    for name, model in models.items():
        for key, (shape, dtype) in model.spec(duration).items():
            if key in spec:
                raise UserError(f'extractors.{name} gives "{key}", which another extractor gives as well')
            spec[key] = ((None, *shape[1:]) if ragged and key in model.timed else shape), dtype
    return spec


def store_facts(models: tp.Mapping[str, Extractor], items: tp.Sequence[Item], *, duration: float,
                normalize_audio: bool, **more: tp.Any) -> dict[str, tp.Any]:
    """Return what the store says of itself: rates, duration, which models made it from which items, and `more`."""
    codec = tp.cast(Codec, models['codec'])
    listed = [[item.id, item.path and item.path.name, item.caption, item.bounds,
               *([item.window, item.listed] if item.window else [])] for item in items]
    discrete = {'num_codebooks': codec.model.num_codebooks, 'codebook_size': codec.model.codebook_size}
    return {
        **more, **(discrete if codec.model.is_discrete else {}),
        'sample_rate': codec.sample_rate, 'frame_rate': codec.model.frame_rate, 'channels': codec.model.channels,
        'duration': float(duration), 'normalize_audio': normalize_audio, 'codec': codec.reference,
        'fps': {key: model.fps for model in models.values() if model.fps for key in model.spec(duration)},
        'extractors': {name: {**model.identity(), 'consumes': model.consumes, 'keys': list(model.spec(duration))}
                       for name, model in models.items()},
        'items_sha256': hashlib.sha256(repr(listed).encode()).hexdigest()}


def _check_rate(wanted: int | None, found: int) -> None:
    if wanted is not None and wanted != found:
        raise UserError(f'sample_rate={wanted} was asked for, but the compression model works at {found} Hz: give '
                        f'another codec, or leave sample_rate out')


def _load(reader: Reader, item: Item) -> Loaded:
    """Decode one item; what is wrong with a file is a reason to leave it out, not to stop."""
    try:
        return item, reader(item), ''
    except MediaError as error:
        return item, None, f'{error.reason}: {error.detail}' if error.detail else error.reason


def _ahead(function: tp.Callable[[Item], Loaded], items: tp.Sequence[Item], threads: int,
           window: int) -> tp.Iterator[Loaded]:
    """Yield `function(item)` in order, computed by threads, never more than `window` ahead."""
    rest = iter(items)
    with concurrent.futures.ThreadPoolExecutor(max(1, threads), 'decode') as pool:
        futures = collections.deque(pool.submit(function, item) for item in itertools.islice(rest, window))
        try:
            while futures:
                result = futures.popleft().result()
                futures.extend(pool.submit(function, item) for item in itertools.islice(rest, 1))
                yield result
        finally:
            for future in futures:
                future.cancel()


def _fill(writer: StoreWriter, models: tp.Mapping[str, Extractor], reader: Reader, items: tp.Sequence[Item],
          batch_size: int, num_workers: int, log_items: int) -> None:
    """Extract the items into the store that it has not, a batch at a time."""
    items = [item for item in items if not writer.has(item.id)]
    def write(batch: list[tuple[Item, Inputs]], size: int) -> None:
        _write(writer, models, batch, size, reader)

    progress = ProgressLine(logger, f'Extract | {writer.files.folder.name}', total=len(items), every=log_items)
    loaded = _ahead(lambda item: _load(reader, item), items, num_workers, 2 * batch_size + num_workers)
    batch: list[tuple[Item, Inputs]] = []
    rejected = 0
    try:
        for _ in items:
            item, inputs, reason = progress.wait(loaded)
            if inputs is None:
                logger.warning('%s is left out: %s', item.path or item.id, reason)
                writer.reject(item.id, reason)
                rejected += 1
            elif inputs['codec'].shape[-1] < reader.samples:
                write([(item, inputs)], 1)  # a short window has no other of its length: it goes alone, always
            else:
                batch.append((item, inputs))
            if len(batch) == batch_size:
                write(batch, batch_size)
                batch = []
            if progress.step():
                progress.line({'rejected': str(rejected)})
        if batch:
            write(batch, batch_size)
    finally:
        progress.close()


@torch.no_grad()
def _write(writer: StoreWriter, models: tp.Mapping[str, Extractor], batch: list[tuple[Item, Inputs]], batch_size: int,
           reader: Reader) -> None:
    """Run the models on a batch and write its items.

    A short batch is filled up with its last item: the kernels that are chosen, and with them the last bits of the
    result, depend on the size, and the store must not depend on where batches were cut.
    """
    filled = [inputs for _, inputs in batch] + [batch[-1][1]] * (batch_size - len(batch))
    features: dict[str, torch.Tensor] = {}
    for name, model in models.items():
        inputs = model.collate([item[name] for item in filled])
        if isinstance(inputs, torch.Tensor):
            inputs = inputs.to(_device_of(model))
        features |= {key: (value.float() if value.is_floating_point() else value).cpu()
                     for key, value in model(inputs).items()}
    for i, (item, inputs) in enumerate(batch):
        row = {writer.columns[1]: item.caption, 'duration': f'{reader.duration:g}'}
        if item.window is not None:
            row |= {'duration': _seconds(inputs['codec'].shape[-1] / reader.sample_rate),
                    'start': _seconds(item.window[0]), 'path': item.listed}
        writer.add(item.id, row, {key: value[i] for key, value in features.items()})


def _seconds(value: float) -> str:
    return f'{value:.6f}'.rstrip('0').rstrip('.')


def _device_of(model: torch.nn.Module) -> torch.device:
    return next((tensor.device for tensor in itertools.chain(model.parameters(), model.buffers())), torch.device('cpu'))


def _wait_for_others(writer: StoreWriter, items: int, patience: float = 1800., poll: float = 0.5) -> None:
    """Wait until every item is in a journal; give up when nothing was added for `patience` seconds."""
    before, since, said = -1, time.monotonic(), False
    while (done := len({entry['id'] for entry in read_journals(writer.partial)})) < items:
        if done != before:
            before, since = done, time.monotonic()
        if time.monotonic() - since > patience:
            raise UserError(f'{writer.partial}: {items - done} items of other processes are missing, and none was '
                            f'added for {patience:.0f} s. Run the same command again: it goes on from there.')
        if not said:
            logger.info('waiting for the other processes: %d of %d items are done', done, items)
            said = True
        time.sleep(poll)


def _report(writer: StoreWriter, output_dir: str | Path) -> None:
    store = writer.finish()
    rejected = (store.facts or {}).get('rejected', 0)
    listed = f', {rejected} left out (reasons in {writer.files.rejected})' if rejected else ''
    logger.info('%s: %d items, %.1f MB%s', output_dir, len(store), store.nbytes / 1e6, listed)
