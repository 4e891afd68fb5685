"""The order of the data: a function of the seed and the pass, whatever the number of processes."""
import dataclasses
import functools
import math

import torch

from ..utils.random import generator


@dataclasses.dataclass(frozen=True)
class Part:
    """Which rows of a global batch a process has: those from `start` on, of `total`.

    Where there are fewer rows than processes, some get a row of another one as `padding`, so that all make the same
    steps; it must not count.
    """
    total: int
    start: int = 0
    padding: bool = False


def share(total: int, rank: int, world_size: int) -> tuple[int, int, Part]:
    """The contiguous rows `[low, high)` of a batch that are for one process; never none, unless the batch is empty."""
    low, high = total * rank // world_size, total * (rank + 1) // world_size
    padding = low == high and total > 0
    if padding:
        low = min(low, total - 1)
        high = low + 1
    return low, high, Part(total, low, padding)


def order(seed: int, pass_number: int, n: int) -> torch.Tensor:
    """Return a permutation of n rows that depends on the seed and the pass alone.

    Args:
        seed (int): seed of the run.
        pass_number (int): how many times all rows were seen before.
        n (int): number of rows.
    Returns:
        Tensor: int64 `[n]`.
    """
    return torch.randperm(n, generator=generator(seed, 'order', pass_number))


class BatchSampler:
    """The rows of batch number b: global positions `[b * batch_size, (b + 1) * batch_size)`; a rank takes a part.

    When `infinite`, position p is row `p % n` of pass `p // n`: a batch may begin in one pass and end in the next, so
    that all batches are of one size. Otherwise the last batch may be short, unless it is dropped.

    Args:
        n (int): number of rows.
        batch_size (int): size of the global batch.
        seed (int): seed of the order.
        shuffle (bool): a new order for each pass, else the order of the store.
        drop_last (bool): leave out a short last batch (when not infinite).
        infinite (bool): go on with the next pass.
        rank, world_size (int): which contiguous part of each batch is taken.
    """

    def __init__(self, n: int, batch_size: int, seed: int = 0, shuffle: bool = False, drop_last: bool = False,
                 rank: int = 0, world_size: int = 1, infinite: bool = False):
        if n < 1 or batch_size < 1:
            raise ValueError(f'expected at least one row and one item per batch, got n={n}, batch_size={batch_size}')
        if not 0 <= rank < world_size:
            raise ValueError(f'rank {rank} is not among {world_size} processes')
        self.n, self.batch_size, self.seed, self.shuffle = n, batch_size, seed, shuffle
        self.drop_last, self.rank, self.world_size, self.infinite = drop_last, rank, world_size, infinite
        self._order = functools.lru_cache(maxsize=2)(lambda number: order(seed, number, n))

    def __len__(self) -> int:
        """Number of batches in one pass."""
        dropped = self.drop_last and not self.infinite
        return self.n // self.batch_size if dropped else math.ceil(self.n / self.batch_size)

    @property
    def local_batch_size(self) -> int:
        """The most rows that a batch holds on this rank."""
        return math.ceil(self.batch_size / self.world_size)

    def batch(self, number: int) -> list[int]:
        """Return the rows of this rank in batch `number`; [] behind the end."""
        return self._rows(*self.span(number))

    def span(self, number: int) -> tuple[int, int]:
        """Return the global positions `[low, high)` of this rank in batch `number`; they count on from pass to pass."""
        start, size = self._bounds(number)
        low, high, _ = share(size, self.rank, self.world_size)
        return start + low, start + high

    def part(self, number: int) -> Part:
        """Return which part of batch `number` this rank has."""
        return share(self._bounds(number)[1], self.rank, self.world_size)[2]

    def _bounds(self, number: int) -> tuple[int, int]:
        start, stop = number * self.batch_size, (number + 1) * self.batch_size
        if not self.infinite:
            stop = min(stop, len(self) * self.batch_size, self.n)
        return start, max(0, stop - start)

    def _rows(self, low: int, high: int) -> list[int]:
        rows: list[int] = []
        while low < high:  # once per pass that the batch touches
            number, first = divmod(low, self.n)
            last = min(self.n, first + high - low)
            rows += self._order(number)[first:last].tolist() if self.shuffle else range(first, last)
            low += last - first
        return rows
