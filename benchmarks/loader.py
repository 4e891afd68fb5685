"""How fast stores are read: this loader, a plain DataLoader over items, and a memory copy, side by side in one run.

    python benchmarks/loader.py                 # under a minute; a store of MMAudio's shapes in a temporary folder
    python benchmarks/loader.py --busy          # the same while another process holds a core
    python benchmarks/loader.py --store PATH    # your own store

Rounds are interleaved and the best of each counts, because what else runs on a machine only ever slows things down.
The plain DataLoader without workers collates in the main process, with as many threads as torch takes by default; on
shared cores one thread is faster, so that is measured, too. (Workers have one thread each in any case.)
The pages of the files are in memory after the first touch: this is not the speed of a disk.
"""
import argparse
import contextlib
import itertools
import subprocess
import sys
import tempfile
import time
import typing as tp
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also from a checkout that is not installed

from audiocraft.data.loaders import StoreLoader  # noqa: E402
from audiocraft.data.mixture import Mixture  # noqa: E402
from audiocraft.data.store import Store  # noqa: E402
from audiocraft.data.store_writer import StoreWriter  # noqa: E402

SHAPES = {'mean': (250, 20), 'std': (250, 20), 'clip_features': (64, 1024), 'sync_features': (192, 768),
          'text_features': (77, 1024)}  # an item of MMAudio at 16 kHz: 1.2 MB

DEFAULT_THREADS = torch.get_num_threads()


class Items(Dataset):
    """The usual way: one item at a time, collated into a batch."""

    def __init__(self, store: Store):
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> dict[str, tp.Any]:
        tensors = {key: tensor[index] for key, tensor in self.store.tensors.items()}
        return {'id': self.store.ids[index], 'caption': self.store.captions[index], **tensors}


def make_store(path: Path, items: int) -> Store:
    """Write a store of random items."""
    ids = [f'{i:08d}' for i in range(items)]
    writer = StoreWriter(path, keys={key: (shape, 'float32') for key, shape in SHAPES.items()}, ids=ids)
    tensors = {key: torch.randn(shape) for key, shape in SHAPES.items()}
    for id in ids:
        writer.add(id, {'caption': 'a sound'}, tensors)
    return writer.finish()


@contextlib.contextmanager
def busy_core() -> tp.Iterator[None]:
    """Another process that never rests."""
    with subprocess.Popen([sys.executable, '-c', 'while True: pass']) as process:
        try:
            yield
        finally:
            process.kill()


def copies(store: Store, batch_size: int) -> tp.Iterator[int]:
    """Copies of a batch from memory to memory, by one thread: the limit for a reader with one thread."""
    source = np.ones(store.nbytes // len(store) * batch_size, dtype=np.uint8)
    target = np.empty_like(source)
    while True:
        np.copyto(target, source)
        yield batch_size


def ours(store: Store, batch_size: int, **options: tp.Any) -> tp.Iterator[int]:
    """Batches of the loader of this project."""
    loader = StoreLoader(Mixture([store]), batch_size=batch_size, shuffle=True, infinite=True, pin=False, **options)
    return (len(batch) for batch in loader.iterate())


def plain(store: Store, batch_size: int, workers: int, torch_threads: int = DEFAULT_THREADS) -> tp.Iterator[int]:
    """Batches of a DataLoader over items."""
    torch.set_num_threads(torch_threads)
    loader = DataLoader(Items(store), batch_size, shuffle=True, drop_last=True, num_workers=workers,
                        persistent_workers=workers > 0)
    while True:
        yield from (len(batch['id']) for batch in loader)


def items_per_second(batches: tp.Iterator[int], seconds: float) -> float:
    """Throughput over at least `seconds`, after three batches that do not count."""
    for _ in itertools.islice(batches, 3):
        pass
    items, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        items += next(batches)
    return items / passed


def measure(store: Store, batch_size: int, rounds: int, seconds: float) -> dict[str, float]:
    """The best items/s of each way in interleaved rounds."""
    size = min(batch_size, len(store))
    ways: dict[str, tp.Callable[[], tp.Iterator[int]]] = {
        'memory copy': lambda: copies(store, size),
        'StoreLoader, 1 thread': lambda: ours(store, size, threads=1),
        'StoreLoader, 2 threads': lambda: ours(store, size, threads=2),
        'StoreLoader, 1 thread, finite check': lambda: ours(store, size, threads=1, check_finite=True),
        'DataLoader, 0 workers': lambda: plain(store, size, 0),
        'DataLoader, 0 workers, 1 thread': lambda: plain(store, size, 0, 1),
        'DataLoader, 2 workers': lambda: plain(store, size, 2)}
    best = dict.fromkeys(ways, 0.)
    for name, way in [*ways.items()] * rounds:
        batches = way()
        best[name] = max(best[name], items_per_second(batches, seconds))
        getattr(batches, 'close', lambda: None)()
    return best


def report(best: dict[str, float], bytes_per_item: float) -> str:
    """A table: items/s, GB/s, and how many times as fast as the others."""
    others = ('DataLoader, 0 workers', 'DataLoader, 2 workers', 'memory copy')
    lines = [f'{"":36}{"items/s":>10}{"GB/s":>8}' + ''.join(f'{"/ " + other:>26}' for other in others)]
    for name, speed in best.items():
        ratios = ''.join(f'{speed / best[other]:>25.2f}x' for other in others)
        lines.append(f'{name:36}{speed:>10.0f}{speed * bytes_per_item / 1e9:>8.2f}{ratios}')
    return '\n'.join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--store', type=Path, help='read this store instead of a synthetic one')
    parser.add_argument('--items', type=int, default=300, help='items of the synthetic store')
    parser.add_argument('--batch_size', type=int, default=64)
    parser.add_argument('--rounds', type=int, default=2)
    parser.add_argument('--seconds', type=float, default=.8, help='length of one measurement')
    parser.add_argument('--busy', action='store_true', help='measure while another process holds a core')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(args.store) if args.store else make_store(Path(folder) / 'synthetic', args.items)
        per_item = store.nbytes / len(store)
        print(f'{len(store)} items of {per_item / 1e6:.2f} MB, batches of {args.batch_size}'
              f'{", another process holds a core" if args.busy else ""}', flush=True)
        with busy_core() if args.busy else contextlib.nullcontext():
            print(report(measure(store, args.batch_size, args.rounds, args.seconds), per_item))


if __name__ == '__main__':
    main()
