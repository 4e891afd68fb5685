"""Extraction: media and captions to a store of latents and features.

One process, or several that share the work by files (`RANK` and `WORLD_SIZE`, as torchrun sets them); the result is the
same. Threads decode ahead of the models, a window of a few batches, so that memory does not grow with the data, and
another one writes behind them; see `pipeline.py`.
"""
import errno
import hashlib
import logging
import math
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
from ..utils.devices import select_device
from ..utils.errors import UserError
from ..utils.logging import ProgressLine
from .base import Extractor, dtype_named
from .codec import Codec
from .inputs import Item, Reader, list_clips, list_videos
from .online import require_weights
from .pipeline import Behind, Inputs, Outputs, Runner, ahead
from .windows import list_windows

logger = logging.getLogger(__name__)

Loaded = tuple[Item, Inputs | None, str]
# What goes wrong with the machine and not with a file: to leave files out for it would lose good ones.
MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN)


def extract(*, data_dir: str | Path | None = None, output_dir: str | Path, codec: str | CompressionModel,
            extractors: tp.Mapping[str, tp.Any] | None = None, duration: float,
            captions_tsv: str | Path | None = None, clips_tsv: str | Path | None = None,
            manifest: str | Path | None = None, windows: bool = False, min_duration: float = 1.,
            only_listed: bool = False, latent_dir: str | Path | None = None, sample_rate: int | None = None,
            batch_size: int = 16, num_workers: int = 2, normalize_audio: bool = True, device: str = 'cpu',
            dtype: str = 'float32', log_items: int = 50, rank: int | None = None,
            world_size: int | None = None) -> Path:
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
        only_listed (bool): of the folder (of the table of clips) only what `captions_tsv` lists; what has no file is
            rejected as `missing`.
        latent_dir (str or Path or None): folder for what is needed to resume; by default beside the store.
        sample_rate (int or None): that the latents must have; only compared with that of the codec.
        batch_size (int): items per pass through the models.
        num_workers (int): threads that decode.
        normalize_audio (bool): scale each file's largest sample (mixed to mono if the codec is mono) to 0.95.
        device (str): where the models run: cpu, cuda (of several processes each takes the GPU of its `LOCAL_RANK`) or
            auto.
        dtype (str): float32; bfloat16: automatic mixed precision around all models. What is stored stays float32.
        log_items (int): a line of progress every so many items.
        rank, world_size (int or None): this process among several; from the environment when None.
    Returns:
        Path: `output_dir`.
    Raises:
        UserError: nothing to extract, a store of something else at `output_dir`, no item accepted, ...
    """
    rank, world_size = _place(rank, world_size)
    _check_values(duration, batch_size, normalize_audio)
    dtype_named(dtype)  # what is wrong is said before a folder is listed or a model built
    require_weights([codec, extractors or {}])
    items = _list_items(data_dir, clips_tsv, manifest, captions_tsv, duration, min_duration if windows else None,
                        only_listed)
    videos = not (windows or clips_tsv)
    models = build_extractors(codec, extractors or {}, choose_device(device), with_frames=videos)
    facts = store_facts(models, items, duration=duration, normalize_audio=normalize_audio, dtype=dtype,
                        **({'min_duration': float(min_duration)} if windows else {}))
    _check_rate(sample_rate, facts['sample_rate'])
    columns = ['label' if videos else 'caption', 'duration', *(['start', 'path'] if windows else [])]
    writer = StoreWriter(output_dir, keys=store_spec(models, duration, windows), ids=[item.id for item in items],
                         facts=facts, columns=columns, state=latent_dir, rank=rank)
    if writer.complete:
        logger.info('already complete: %s, nothing to do', writer.finish().files.folder)
        return Path(output_dir)
    span = None if windows else tp.cast(Codec, models['codec']).span(duration)
    reader = Reader(models, facts['sample_rate'], duration, normalize_audio, facts['channels'], min_duration, span)
    first, last = (len(items) * part // world_size for part in (rank, rank + 1))
    try:
        _fill(writer, Runner(models, batch_size, dtype), reader, items[first:last], num_workers, log_items)
    finally:
        writer.close()
    if rank == 0:
        _wait_for_others(writer, len({item.id for item in items}))
        _report(writer, output_dir)
    return Path(output_dir)


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """This process among several, from the environment where it is not given."""
    return (int(os.environ.get('RANK', 0)) if rank is None else rank,
            int(os.environ.get('WORLD_SIZE', 1)) if world_size is None else world_size)


def choose_device(name: str) -> torch.device:
    """The device of this process, which is then also the one that CUDA takes when it is not told."""
    device = select_device(name)
    if device.index is not None:
        torch.cuda.set_device(device)  # else every process would also take memory of the first one
    return device


def _check_values(duration: tp.Any, batch_size: tp.Any, normalize_audio: tp.Any) -> None:
    number = isinstance(duration, (int, float)) and not isinstance(duration, bool)
    if not number or not 0 < duration < math.inf:
        raise UserError(f'duration={duration}: expected seconds, more than 0')
    if not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(f'batch_size={batch_size}: expected a whole number from 1 on')
    if not isinstance(normalize_audio, bool):
        raise UserError(f'normalize_audio={normalize_audio}: expected true or false')


def _check_sources(data_dir: str | Path | None, clips_tsv: str | Path | None, manifest: str | Path | None,
                   windows: bool, only_listed: bool, captions_tsv: str | Path | None) -> None:
    if (data_dir is None) == (manifest is None):
        raise UserError('extract needs either data_dir, a folder of media, or manifest, a list of audio files')
    if manifest is not None and not windows:
        raise UserError(f'{manifest}: the audio of a manifest is cut into windows: use --config audio_codes, or '
                        f'another one with windows: true')
    if clips_tsv is not None and windows:
        raise UserError(f'{clips_tsv}: either clips of a table or windows of whole files, not both')
    if only_listed and windows:
        raise UserError('only_listed is for videos and for clips of audio files: list the files of windows in a '
                        'manifest')
    if only_listed and captions_tsv is None:
        raise UserError('only_listed=true takes what captions_tsv lists: give --captions_tsv, or only_listed=false for '
                        'all files of the folder')


def _list_items(data_dir: str | Path | None, clips_tsv: str | Path | None, manifest: str | Path | None,
                captions_tsv: str | Path | None, duration: float, min_duration: float | None,
                only_listed: bool) -> list[Item]:
    """The items of the store; windows when they have a `min_duration`."""
    _check_sources(data_dir, clips_tsv, manifest, min_duration is not None, only_listed, captions_tsv)
    source = tp.cast(Path, data_dir if manifest is None else manifest)
    if min_duration is not None:
        return list_windows(source, duration=duration, min_duration=min_duration, captions_tsv=captions_tsv)
    if clips_tsv:
        return list_clips(source, clips_tsv, captions_tsv, only_listed)
    return list_videos(source, captions_tsv, only_listed)


def build_extractors(codec: str | CompressionModel, nodes: tp.Mapping[str, tp.Any],
                     device: str | torch.device = 'cpu', with_frames: bool = True) -> dict[str, Extractor]:
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
            if min(shape, default=1) < 1:
                raise UserError(f'duration={duration:g} is too short: {name} gives "{key}" of shape {list(shape)}')
            spec[key] = ((None, *shape[1:]) if ragged and key in model.timed else shape), dtype
    return spec


def store_facts(models: tp.Mapping[str, Extractor], items: tp.Sequence[Item], *, duration: float,
                normalize_audio: bool, dtype: str = 'float32', **more: tp.Any) -> dict[str, tp.Any]:
    """Return what the store says of itself: rates, duration, which models made it from which items, and `more`."""
    codec = tp.cast(Codec, models['codec'])
    listed = [[item.id, item.path and item.path.name, item.caption, item.bounds,
               *([item.window, item.listed] if item.window else [])] for item in items]
    discrete = {'num_codebooks': codec.model.num_codebooks, 'codebook_size': codec.model.codebook_size}
    return {
        **more, **(discrete if codec.model.is_discrete else {}),
        'sample_rate': codec.sample_rate, 'frame_rate': codec.model.frame_rate, 'channels': codec.model.channels,
        'duration': float(duration), 'normalize_audio': normalize_audio, 'dtype': dtype, 'codec': codec.reference,
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
    if item.refused:
        return item, None, item.refused
    try:
        return item, reader(item), ''
    except Exception as error:  # decoders raise anything over a damaged file
        cause = error.__cause__ or error
        if isinstance(cause, MemoryError) or getattr(cause, 'errno', None) in MACHINE:
            raise
        if isinstance(error, MediaError):
            return item, None, f'{error.reason}: {error.detail}' if error.detail else error.reason
        return item, None, f'unreadable: {type(error).__name__}: {error}'


def _fill(writer: StoreWriter, runner: Runner, reader: Reader, items: tp.Sequence[Item], num_workers: int,
          log_items: int) -> None:
    """Extract the items into the store that it has not, a batch at a time."""
    items = [item for item in items if not writer.has(item.id)]
    progress = ProgressLine(logger, f'Extract | {writer.files.folder.name}', total=len(items), every=log_items)
    loaded = ahead(lambda item: _load(reader, item), items, num_workers, 2 * runner.batch_size + num_workers)
    batch: list[tuple[Item, Inputs]] = []
    rejected = 0
    with Behind() as behind:
        def run(batch: list[tuple[Item, Inputs]], size: int | None = None) -> None:
            outputs = runner([inputs for _, inputs in batch], [item.caption for item, _ in batch], size)
            lengths = [inputs['codec'].shape[-1] for _, inputs in batch]
            behind(_write, writer, reader, [item for item, _ in batch], lengths, outputs)

        try:
            for _ in items:
                item, inputs, reason = progress.wait(loaded)
                if inputs is None:
                    if not item.refused:  # those were counted and named when the items were listed
                        logger.warning('%s is left out: %s', item.path or item.id, reason)
                    behind(writer.reject, item.id, reason)
                    rejected += 1
                elif inputs['codec'].shape[-1] < reader.samples:
                    run([(item, inputs)], 1)  # a short window has no other of its length: it goes alone, always
                else:
                    batch.append((item, inputs))
                if len(batch) == runner.batch_size:
                    run(batch)
                    batch = []
                if progress.step():
                    progress.line({'rejected': str(rejected)})
            if batch:
                run(batch)
        finally:
            progress.close()


def _write(writer: StoreWriter, reader: Reader, items: list[Item], lengths: list[int], outputs: Outputs) -> None:
    """Write the items of a batch; `lengths` are those of their audio, in samples."""
    features = outputs.wait()
    for i, (item, length) in enumerate(zip(items, lengths)):
        row = {writer.columns[1]: item.caption, 'duration': f'{reader.duration:g}'}
        if item.window is not None:
            row |= {'duration': _seconds(length / reader.sample_rate), 'start': _seconds(item.window[0]),
                    'path': item.listed}
        writer.add(item.id, row, {key: value[i] for key, value in features.items()})


def _seconds(value: float) -> str:
    return f'{value:.6f}'.rstrip('0').rstrip('.')


def _wait_for_others(writer: StoreWriter, items: int, patience: float = 1800., poll: float = 0.5) -> None:
    """Wait until every item is in a journal; give up when nothing was added for `patience` seconds."""
    before, since, said = -1, time.monotonic(), False
    started = since
    while (done := len({entry['id'] for entry in read_journals(writer.partial)})) < items:
        if done != before:
            before, since = done, time.monotonic()
        if time.monotonic() - since > patience:
            raise UserError(f'{writer.partial}: {items - done} items of other processes are missing, and none was '
                            f'added for {patience:.0f} s. Run the same command again: it goes on from there.')
        if not said:
            logger.info('waiting for the other processes: %d of %d items are done', done, items)
            said = True
        # Journals of hundreds of thousands of items take a while to read: not all the time.
        time.sleep(max(poll, 4 * (time.monotonic() - started)))
        started = time.monotonic()


def _report(writer: StoreWriter, output_dir: str | Path) -> None:
    store = writer.finish()
    rejected = (store.facts or {}).get('rejected', 0)
    listed = f', {rejected} left out (reasons in {writer.files.rejected})' if rejected else ''
    logger.info('%s: %d items, %.1f MB%s', output_dir, len(store), store.nbytes / 1e6, listed)
