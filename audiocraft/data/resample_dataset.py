"""A copy of a data set at another sample rate, so that training need not resample."""
import concurrent.futures
import functools
import json
import logging
import os
import typing as tp
from pathlib import Path

import torch

from ..utils.errors import UserError
from ..utils.files import write_atomic
from .audio import audio_info, convert_audio, read_audio, write_audio
from .audio_manifest import AudioMeta, list_media, load_audio, manifest_file, write_manifest
from .levels import normalize_audio
from .media import MediaError

logger = logging.getLogger(__name__)

OPTIONS = 'resampled.json'
"""File in the folder of the copies that says how they are made."""


class Job(tp.NamedTuple):
    """How every file is made."""
    sample_rate: int
    channels: int
    strategy: str


class Resampled(tp.NamedTuple):
    """What was done: the manifest, files made now, files that were there, and errors of broken ones."""
    manifest: Path
    made: int
    kept: int
    broken: list[MediaError]


def resample_dataset(source: str | Path, out: str | Path, *, sample_rate: int, channels: int, suffix: str = '.wav',
                     strategy: str = 'none', workers: int = 2) -> Resampled:
    """Write every audio file of a folder or manifest again, in the same tree below `out`, and a manifest of them.

    Each file is whole or not there; those that are there, and not older than their original, are kept, so that the
    same call goes on where an earlier one was stopped. Weights and `info_path` of a manifest are handed on.

    Args:
        source (str or Path): folder, manifest or table of media.
        out (str or Path): folder of the copies; it gets `data.jsonl`.
        sample_rate (int): of the copies, in Hz.
        channels (int): of the copies; see `convert_channels`.
        suffix (str): `.wav` or `.flac`, 16 bits.
        strategy (str): a level to bring each file to, see `levels.normalize_audio`; 'none' only clamps.
        workers (int): threads.
    Raises:
        UserError: two files would be written to one name, or not one file could be used.
    """
    if suffix not in ('.wav', '.flac'):
        raise UserError(f'copies are .wav or .flac, not {suffix}')
    if sample_rate < 1 or channels < 1:
        raise UserError(f'sample_rate and channels must be at least 1, got {sample_rate} and {channels}')
    metas, out = _sources(source), Path(out)
    _same_as_before(out, {'sample_rate': sample_rate, 'channels': channels, 'suffix': suffix, 'normalize': strategy})
    targets = _targets([meta.path for meta in metas], source, out, suffix)
    work = functools.partial(_convert, Job(sample_rate, channels, strategy))
    results = _map(work, [meta.path for meta in metas], targets, workers)
    broken = [result for result in results if isinstance(result, MediaError)]
    for error in broken:
        logger.warning('%s (left out)', error)
    done = [(meta, target, result) for meta, target, result in zip(metas, targets, results)
            if not isinstance(result, MediaError)]
    if not done:
        raise UserError(f'{source}: none of its {len(metas)} media files can be used')
    copies = [AudioMeta(str(target), result[1] / sample_rate, sample_rate, weight=meta.weight, info_path=meta.info_path)
              for meta, target, result in done]
    made = sum(result[0] for *_, result in done)
    return Resampled(write_manifest(out, copies), made, len(done) - made, broken)


def _same_as_before(out: Path, options: dict[str, tp.Any]) -> None:
    """Write down how the copies are made; refuse to mix them with others."""
    file = out / OPTIONS
    if file.is_file():
        before = json.loads(file.read_text(encoding='utf-8'))
        if before != options:
            differing = ', '.join(f'{key} {before.get(key)} (now {options[key]})' for key in options
                                  if before.get(key) != options[key])
            raise UserError(f'{out} holds copies made otherwise: {differing}. Choose another folder, or delete it.')
        return
    write_atomic(file, json.dumps(options) + '\n')


def _sources(source: str | Path) -> list[AudioMeta]:
    if manifest_file(source) is not None:
        return load_audio(source)
    return [AudioMeta(str(path), 0., 0) for path in list_media(source)]


def _targets(paths: list[str], source: str | Path, out: Path, suffix: str) -> list[Path]:
    """Where the copies go: as the originals lie below the folder that they share."""
    root = str(source) if os.path.isdir(source) and manifest_file(source) is None else \
        os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    targets = [(out / os.path.relpath(os.path.abspath(path), os.path.abspath(root))).with_suffix(suffix)
               for path in paths]
    first: dict[Path, str] = {}
    for path, target in zip(paths, targets):
        if target in first:
            raise UserError(f'{first[target]} and {path} would both be written to {target}: rename one of them.')
        if os.path.abspath(path) == os.path.abspath(target):
            raise UserError(f'{path} would be overwritten by its copy: choose another folder for the copies.')
        first[target] = path
    return targets


def _map(work: tp.Callable, paths: list[str], targets: list[Path], workers: int) -> list[tp.Any]:
    if workers < 2:
        return list(map(work, paths, targets))
    with concurrent.futures.ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(work, paths, targets))


def _convert(job: Job, path: str, target: Path) -> tuple[bool, int] | MediaError:
    """Write one copy unless it is there; return whether it was written, and its samples per channel."""
    try:
        if (samples := _there(job, path, target)) is not None:
            return False, samples
        wav, rate = read_audio(path)
        if not bool(wav.isfinite().all()):
            return MediaError(path, 'not finite', 'it holds NaN or infinite samples')
        wav = convert_audio(wav, rate, job.sample_rate, job.channels)
        if not wav.shape[-1]:
            return MediaError(path, 'too short', f'no sample is left at {job.sample_rate} Hz')
        write_audio(target, normalize_audio(wav, job.strategy, sample_rate=job.sample_rate, name=path), job.sample_rate)
        return True, wav.shape[-1]
    except MediaError as error:
        return error
    except ValueError as error:
        return MediaError(path, 'channels', str(error))


def _there(job: Job, path: str, target: Path) -> int | None:
    """The samples of a copy that an earlier run made, None if there is none, or its original has changed since."""
    try:
        info = audio_info(target)
        fresh = target.stat().st_mtime >= os.stat(path).st_mtime
    except (MediaError, OSError):
        return None
    fits = (info.sample_rate, info.channels) == (job.sample_rate, job.channels)
    return info.samples if fresh and fits else None
