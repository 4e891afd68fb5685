"""Randomness that can be saved, forked, and computed again from a seed and an update number."""
import hashlib
import random
import typing as tp
from contextlib import contextmanager

import numpy as np
import torch


def seed_of(*parts: tp.Any) -> int:
    """Return a seed that is a function of the text of the parts."""
    digest = hashlib.sha256('/'.join(str(part) for part in parts).encode('utf-8')).digest()
    return int.from_bytes(digest[:8], 'little') % (2 ** 63)


def seed_all(seed: int, *keys: tp.Any, cuda: bool = True) -> None:
    """Seed python, numpy and torch (all devices, or the CPU alone) from an integer and, if given, further keys."""
    seed = seed_of(seed, *keys) if keys else seed
    random.seed(seed)
    np.random.seed(seed % (2 ** 32))
    if cuda:
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def rng_state() -> dict[str, tp.Any]:
    """Return the state of the global generators of python, numpy, torch and each CUDA device.

    Only plain containers, numbers and tensors, so that `torch.load(weights_only=True)` accepts it.
    """
    name, keys, position, has_gauss, cached = np.random.get_state()  # type: ignore[misc]
    cuda_ready = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {
        'python': random.getstate(),
        'numpy': {'name': str(name), 'keys': torch.from_numpy(np.asarray(keys).astype(np.int64)),
                  'position': int(position), 'has_gauss': int(has_gauss), 'cached': float(cached)},  # type: ignore
        'torch': torch.get_rng_state(),
        'cuda': torch.cuda.get_rng_state_all() if cuda_ready else [],
    }


def set_rng_state(state: tp.Mapping[str, tp.Any]) -> None:
    """Put back what `rng_state` returned; states of CUDA devices that this machine lacks are left out."""
    version, words, gauss = state['python']
    random.setstate((version, tuple(words), gauss))
    numpy = state['numpy']
    np.random.set_state((numpy['name'], numpy['keys'].numpy().astype(np.uint32), numpy['position'],
                         numpy['has_gauss'], numpy['cached']))
    torch.set_rng_state(state['torch'].cpu())
    if state['cuda'] and torch.cuda.is_available():
        for index, cuda_state in enumerate(state['cuda'][:torch.cuda.device_count()]):
            torch.cuda.set_rng_state(cuda_state.cpu(), index)


@contextmanager
def fork_rng(seed: int, *keys: tp.Any) -> tp.Iterator[None]:
    """Run a block with every global generator seeded by (seed, *keys); what was before comes back afterwards."""
    before = rng_state()
    seed_all(seed, *keys)
    try:
        yield
    finally:
        set_rng_state(before)


def generator(seed: int, *keys: tp.Any, device: str | torch.device = 'cpu') -> torch.Generator:
    """Return a new generator whose stream is a function of the seed and the keys alone.

    Args:
        seed (int): seed of the run.
        keys: anything whose text names the stream, e.g. `'order', 3`.
        device (str): device of the generator.
    """
    return torch.Generator(device=device).manual_seed(seed_of(seed, *keys))


class Draws:
    """Random tensors for one update: a function of (seed, update), whatever the ranks and micro-batches.

    Everything is drawn for the global batch from one generator, in the order of the calls, and then cut to the rows
    asked for. So one rank with two micro-batches sees the numbers that two ranks would see. On a GPU the generator is
    its own (14 million numbers an update, as a large batch takes, are 0.1 s on a CPU): other numbers than on a CPU.

    Args:
        seed (int): seed of the run.
        update (int or str): number of the update, or the name of a fixed stream (`'valid/0'`).
        total (int): size of the global batch.
        start (int): first row of it that is wanted.
        size (int): number of rows wanted.
        device (str): where the tensors go.
    """
    def __init__(self, seed: int, update: int | str, *, total: int, start: int = 0, size: int | None = None,
                 device: str | torch.device = 'cpu') -> None:
        size = total - start if size is None else size
        if start < 0 or size < 0 or start + size > total:
            raise ValueError(f'Rows {start} to {start + size} are outside of a global batch of {total}.')
        self.total, self.start, self.size, self.device = total, start, size, torch.device(device)
        where = self.device if self.device.type == 'cuda' else torch.device('cpu')
        self._options: dict[str, tp.Any] = {'generator': generator(seed, 'draws', update, device=where),
                                            'device': where}
        # Decisions are made on the CPU, so that nobody waits for the device.
        self._decisions = self._options['generator'] if where.type == 'cpu' else generator(seed, 'decisions', update)

    def _cut(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor[self.start: self.start + self.size].to(self.device)

    def uniform(self) -> float:
        """Return one number in [0, 1) that is the same on all ranks and for all micro-batches."""
        return float(torch.rand((), generator=self._decisions))

    def randn(self, *shape: int) -> torch.Tensor:
        """Return normal numbers `[size, *shape]`, float32."""
        return self._cut(torch.randn(self.total, *shape, **self._options))

    def rand(self, *shape: int) -> torch.Tensor:
        """Return uniform numbers in [0, 1), `[size, *shape]`, float32."""
        return self._cut(torch.rand(self.total, *shape, **self._options))

    def randint(self, low: int, high: int, *shape: int) -> torch.Tensor:
        """Return integers in [low, high), `[size, *shape]`, int64."""
        return self._cut(torch.randint(low, high, (self.total, *shape), **self._options))
