"""How fast audio is listed, read and resampled: this project, the bare library and a plain DataLoader, in one run.

    python benchmarks/audio.py              # about a minute; 40 files of 10 s in a temporary folder
    python benchmarks/audio.py --short      # a few seconds, to see that it runs
    python benchmarks/audio.py --root DIR   # your own wav and flac files

Every measurement is short, repeated in interleaved rounds, and the best counts: what else runs on a machine only
slows things down. Everything runs on one thread unless it says otherwise. Files are in memory after the first touch:
this is not the speed of a disk.
"""
import argparse
import itertools
import sys
import tempfile
import time
import typing as tp
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also from a checkout that is not installed

from audiocraft.data.audio_dataset import AudioDataset  # noqa: E402
from audiocraft.data.audio_loader import AudioLoader  # noqa: E402
from audiocraft.data.audio_manifest import AudioMeta, find_audio, read_manifest, write_manifest  # noqa: E402
from audiocraft.data.resampling import SincResampler, resample_sinc  # noqa: E402

RATE, NEW_RATE, CHANNELS, SECONDS = 44_100, 32_000, 2, 1.

Way = tp.Callable[[], tp.Iterator[int]]


def make_files(folder: Path, count: int, seconds: float) -> None:
    """Write noise, as wav and as flac."""
    rng = np.random.default_rng(0)
    for i in range(count):
        samples = (rng.standard_normal((round(seconds * RATE), CHANNELS)) * 0.1).clip(-1, 1)
        for suffix in ('wav', 'flac'):
            soundfile.write(folder / f'{i:04d}.{suffix}', samples, RATE, subtype='PCM_16')


def best_rates(ways: dict[str, Way], rounds: int, seconds: float) -> dict[str, float]:
    """Things per second of each way, the best of interleaved rounds."""
    best = dict.fromkeys(ways, 0.)
    for name, way in [*ways.items()] * rounds:
        things = way()
        next(things)
        done, start = 0, time.perf_counter()
        while (passed := time.perf_counter() - start) < seconds:
            done += next(things)
        best[name] = max(best[name], done / passed)
        getattr(things, 'close', lambda: None)()
    return best


def table(title: str, unit: str, best: dict[str, float], reference: str) -> None:
    """Print one line for each way, with the ratio to one of them."""
    print(f'\n{title}\n{"":44}{unit:>12}{"ratio":>9}')
    for name, speed in best.items():
        print(f'{name:44}{speed:>12.1f}{speed / best[reference]:>9.2f}', flush=True)


def forever(do: tp.Callable[[], tp.Any], things: int = 1) -> Way:
    """A way that does the same again and again."""
    return lambda: (things for _ in itertools.repeat(None) if do() is not NotImplemented)


def bare(metas: list[AudioMeta]) -> Way:
    """The library alone: open, seek, read a piece as float."""
    def way() -> tp.Iterator[int]:
        rng = np.random.default_rng(1)
        while True:
            meta = metas[rng.integers(len(metas))]
            with soundfile.SoundFile(meta.path) as file:
                file.seek(int(rng.uniform() * max(0, file.frames - SECONDS * meta.sample_rate)))
                file.read(round(SECONDS * meta.sample_rate), dtype='float32')
            yield 1
    return way


def dataset(metas: list[AudioMeta], sample_rate: int, channels: int) -> AudioDataset:
    """Random pieces, for a long time."""
    return AudioDataset(metas, sample_rate=sample_rate, channels=channels, segment=SECONDS, num_samples=1 << 40)


def pieces(metas: list[AudioMeta], sample_rate: int, channels: int) -> Way:
    """Pieces of the data set, one by one."""
    def way() -> tp.Iterator[int]:
        data = dataset(metas, sample_rate, channels)
        for index in itertools.count():
            data.item(index)
            yield 1
    return way


def batches(metas: list[AudioMeta], threads: int, batch_size: int = 8) -> Way:
    """Batches, resampled to mono."""
    def way() -> tp.Iterator[int]:
        loader = AudioLoader(dataset(metas, NEW_RATE, 1), batch_size=batch_size, infinite=True, threads=threads)
        return (len(batch) for batch in loader.iterate())
    return way


class Uncached(torch.utils.data.Dataset):
    """What a first version does: whole files decoded to float, both channels resampled by a filter made each time."""

    def __init__(self, metas: list[AudioMeta]):
        self.metas = metas

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, index: int) -> torch.Tensor:
        wav, rate = soundfile.read(self.metas[index * 7919 % len(self.metas)].path, dtype='float32', always_2d=True)
        wav = torch.from_numpy(wav).T[:, :round(SECONDS * rate)]
        return torchaudio.functional.resample(wav, rate, NEW_RATE).mean(0, keepdim=True)


def plain(metas: list[AudioMeta], batch_size: int = 8) -> Way:
    """A DataLoader over that."""
    return lambda: (len(batch) for batch in DataLoader(Uncached(metas), batch_size))


def listing(root: Path, folder: Path, rounds: int, seconds: float) -> None:
    """Manifests made and read."""
    metas = find_audio(root, workers=1).metas
    manifest = write_manifest(folder / 'm.jsonl', metas)
    best = best_rates({
        'soundfile.info, one by one': forever(lambda: [soundfile.info(meta.path) for meta in metas], len(metas)),
        'headers, 1 thread': forever(lambda: find_audio(root, workers=1), len(metas)),
        'headers, 4 threads': forever(lambda: find_audio(root, workers=4), len(metas)),
        'decoding all, 2 threads': forever(lambda: find_audio(root, complete=True, workers=2), len(metas)),
        'reading the manifest': forever(lambda: read_manifest(manifest), len(metas))}, rounds, seconds)
    table(f'Manifest of {len(metas)} files', 'files/s', best, 'soundfile.info, one by one')


def reading(metas: list[AudioMeta], suffix: str, rounds: int, seconds: float) -> None:
    """Pieces of one kind of file."""
    metas = [meta for meta in metas if meta.path.endswith(suffix)]
    if not metas:
        return
    best = best_rates({
        'soundfile alone': bare(metas), 'same rate and channels': pieces(metas, metas[0].sample_rate, CHANNELS),
        'mono': pieces(metas, metas[0].sample_rate, 1), f'mono at {NEW_RATE} Hz': pieces(metas, NEW_RATE, 1),
        'batches of 8, 1 thread': batches(metas, 1), 'batches of 8, 2 threads': batches(metas, 2),
        'plain DataLoader, no cache': plain(metas)}, rounds, seconds)
    table(f'Pieces of {SECONDS:g} s from {suffix}; batches: mono at {NEW_RATE} Hz', 'pieces/s', best, 'soundfile alone')


def resampling(rounds: int, seconds: float) -> None:
    """One second of stereo to mono at another rate."""
    wav = torch.randn(CHANNELS, RATE)
    cached = torchaudio.transforms.Resample(RATE, NEW_RATE)
    best = best_rates({
        'new filter each time, both channels': forever(lambda: SincResampler(RATE, NEW_RATE).to('cpu', wav.dtype)(wav)),
        'kept filter, both channels': forever(lambda: resample_sinc(wav, RATE, NEW_RATE)),
        'kept filter, after the mean': forever(lambda: resample_sinc(wav.mean(0), RATE, NEW_RATE)),
        'torchaudio, new filter each time': forever(lambda: torchaudio.functional.resample(wav, RATE, NEW_RATE)),
        'torchaudio, kept filter, after the mean': forever(lambda: cached(wav.mean(0)))}, rounds, seconds)
    table(f'Resampling a second from {RATE} to {NEW_RATE} Hz', 'seconds/s', best, 'new filter each time, both channels')


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--root', type=Path, help='folder of wav and flac files, instead of synthetic ones')
    parser.add_argument('--short', action='store_true', help='little of everything')
    args = parser.parse_args()
    torch.set_num_threads(1)
    rounds, seconds = (1, 0.05) if args.short else (10, 0.2)
    with tempfile.TemporaryDirectory() as folder:
        root = args.root or Path(folder)
        if not args.root:
            make_files(root, 4 if args.short else 40, 2. if args.short else 10.)
        listing(root, Path(folder), rounds, seconds)
        metas = find_audio(root).metas
        for suffix in ('.wav', '.flac'):
            reading(metas, suffix, rounds, seconds)
        resampling(rounds, seconds)


if __name__ == '__main__':
    main()
