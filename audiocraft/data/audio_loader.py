"""Batches of audio: batch number b is a function of b alone, whatever the threads and processes."""
import collections
import concurrent.futures
import itertools
import logging
import math
import typing as tp
from pathlib import Path

import torch

from .audio_dataset import AudioBatch, AudioDataset
from .sampler import Part, share

logger = logging.getLogger(__name__)


class AudioLoader:
    """Batches of an `AudioDataset`: batch b holds its items `b * batch_size` and following.

    When `infinite`, item i is number `i % n` of pass `i // n`: a batch may begin in one pass and end in the next, so
    that all are of one size. Otherwise the last batch of the one pass may be short.

    Worker threads make whole batches ahead, each with one intra-op thread.

    Args:
        dataset (AudioDataset): what to read.
        batch_size (int): items of a global batch.
        infinite (bool): go on with the next pass (training).
        threads (int): worker threads; 0 reads when a batch is asked for.
        ahead (int): batches made ahead per thread.
        rank, world_size (int): which contiguous part of each global batch is made.
        pin (bool): page-locked memory, from which copies to a GPU need not wait.
    """

    def __init__(self, dataset: AudioDataset, *, batch_size: int, infinite: bool = False, threads: int = 1,
                 ahead: int = 2, rank: int = 0, world_size: int = 1, pin: bool = False):
        if batch_size < 1:
            raise ValueError(f'expected at least one item per batch, got {batch_size}')
        if not 0 <= rank < world_size:
            raise ValueError(f'rank {rank} is not among {world_size} processes')
        self.dataset, self.batch_size, self.infinite, self.threads = dataset, batch_size, infinite, threads
        self.ahead, self.rank, self.world_size, self.pin = max(1, ahead), rank, world_size, pin

    def __len__(self) -> int:
        """Batches of one pass."""
        return math.ceil(len(self.dataset) / self.batch_size)

    def __iter__(self) -> tp.Iterator[AudioBatch]:
        return self.iterate(0)

    @property
    def files(self) -> list[Path]:
        """The files of the data set."""
        return self.dataset.files

    @property
    def durations(self) -> list[float]:
        """Their lengths in seconds."""
        return self.dataset.durations

    @property
    def failures(self) -> dict[str, int]:
        """How often each unreadable file was drawn so far."""
        return self.dataset.failures

    def segment(self, index: int, place: float) -> torch.Tensor:
        """Return `[C, T]` of file `index`, at `place`: 0 its beginning, 1 the latest that needs no silence."""
        return self.dataset.segment_at(index, place)

    def spread(self, count: int) -> tp.Iterator[torch.Tensor]:
        """Yield `[C, T]` from the middles of about `count` files, see `AudioDataset.spread`."""
        return self.dataset.spread(count)

    def iterate(self, start: int = 0) -> tp.Iterator[AudioBatch]:
        """Yield the batches from number `start` on, without an end when infinite."""
        numbers = iter(range(start, 2 ** 62 if self.infinite else len(self)))
        if self.threads < 1:
            for number in numbers:
                yield self.batch(number)
                self._summary(number)
            return
        pool = concurrent.futures.ThreadPoolExecutor(self.threads, 'audio', initializer=torch.set_num_threads,
                                                     initargs=(1,))
        try:
            made = collections.deque((number, pool.submit(self.batch, number))
                                     for number in itertools.islice(numbers, self.ahead * self.threads))
            while made:
                number, future = made.popleft()
                batch = future.result()
                made.extend((later, pool.submit(self.batch, later)) for later in itertools.islice(numbers, 1))
                yield batch
                self._summary(number)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def batch(self, number: int) -> AudioBatch:
        """Make batch `number` of this rank."""
        items = [self.dataset.item(place % len(self.dataset), place // len(self.dataset))
                 for place in self._places(number)[0]]
        segments = [segment for _, segment in items]
        longest = max((segment.audio.shape[-1] for segment in segments), default=self.dataset.frames or 0)
        audio = torch.zeros(len(items), self.dataset.channels, longest, pin_memory=self.pin)
        for row, segment in zip(audio, segments):
            row[:, :segment.audio.shape[-1]] = segment.audio
        infos = [segment.info.padded(longest) for segment in segments]
        lengths = torch.tensor([info.n_frames for info in infos], dtype=torch.int64)
        ids = [self.dataset.ids[file] for file, _ in items]
        return AudioBatch(ids, audio, lengths, infos, part=self._places(number)[1])

    def _places(self, number: int) -> tuple[range, Part]:
        """The places of this rank in the endless row of items, and which part of the batch they are."""
        start, stop = number * self.batch_size, (number + 1) * self.batch_size
        if not self.infinite:
            stop = min(stop, len(self.dataset))
        low, high, part = share(max(0, stop - start), self.rank, self.world_size)
        return range(start + low, start + high), part

    def _summary(self, number: int) -> None:
        """At the end of a pass, tell what could not be read so far."""
        if self.failures and (number + 1) % len(self) == 0:
            worst = sorted(self.failures.items(), key=lambda pair: (-pair[1], pair[0]))
            listed = ', '.join(f'{path} ({count} times)' for path, count in worst[:5])
            logger.warning('%d of %d files could not be read so far, and other pieces were drawn %d times: %s%s',
                           len(worst), len(self.files), sum(self.failures.values()), listed,
                           ', ...' if len(worst) > 5 else '.')
