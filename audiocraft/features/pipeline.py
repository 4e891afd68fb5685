"""The stages of extraction, side by side: threads decode ahead, the models run on batches, a thread writes behind."""
import collections
import concurrent.futures
import contextlib
import itertools
import typing as tp

import torch

from .base import Extractor, dtype_named

Inputs = dict[str, tp.Any]
Features = dict[str, torch.Tensor]
T = tp.TypeVar('T')
U = tp.TypeVar('U')


def ahead(function: tp.Callable[[T], U], items: tp.Iterable[T], threads: int, window: int) -> tp.Iterator[U]:
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


class Behind:
    """A thread that does what it is given, in order; whoever gives it more than `pending` pieces of work waits.

    An error in the thread is raised at one of the next calls, at the end of the block at the latest. What was given
    before the block ends is done, also where the block ends by an exception.
    """

    def __init__(self, pending: int = 4):
        self.pending = pending
        self._pool = concurrent.futures.ThreadPoolExecutor(1, 'write')
        self._futures: collections.deque[concurrent.futures.Future[tp.Any]] = collections.deque()

    def __call__(self, function: tp.Callable[..., tp.Any], *args: tp.Any) -> None:
        """Have `function(*args)` done."""
        while len(self._futures) >= self.pending:
            self._futures.popleft().result()
        self._futures.append(self._pool.submit(function, *args))

    def __enter__(self) -> 'Behind':
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: tp.Any) -> None:
        self._pool.shutdown(wait=True)
        while kind is None and self._futures:
            self._futures.popleft().result()


class Outputs:
    """Features on their way from the device to memory: the copies are begun, and `wait` waits for them.

    The process that queues work for a GPU goes on meanwhile; the copies go to pinned memory, else they would not.
    """

    def __init__(self, features: Features):
        self._events: list[torch.cuda.Event] = []
        self._features = {key: self._fetched(value) for key, value in features.items()}
        for device in {value.device for value in features.values() if value.is_cuda}:
            self._events.append(torch.cuda.Event())
            self._events[-1].record(torch.cuda.current_stream(device))

    @staticmethod
    def _fetched(value: torch.Tensor) -> torch.Tensor:
        value = value.float() if value.is_floating_point() else value
        if not value.is_cuda:
            return value.cpu()
        return torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)

    def wait(self) -> Features:
        """Return the features, in memory."""
        for event in self._events:
            event.synchronize()
        return self._features


class Runner:
    """Runs the extractors on batches of prepared items, and those of text once per text.

    Every pass has the same size, filled up with the last item: the kernels that are chosen, and with them the last
    bits of the result, depend on the size, and features must not depend on where batches were cut.

    Args:
        models (dict): name -> extractor.
        batch_size (int): items per pass.
        dtype (str): `float32`; `bfloat16`: automatic mixed precision around all models.
        texts (int): how many texts are kept at most, the ones used last.
    """

    def __init__(self, models: tp.Mapping[str, Extractor], batch_size: int, dtype: str = 'float32', texts: int = 1024):
        self.models, self.batch_size, self.texts = models, batch_size, max(texts, batch_size)
        self.dtype = dtype_named(dtype)
        self._known: dict[str, collections.OrderedDict[str, Features]] = {
            name: collections.OrderedDict() for name, model in models.items() if model.consumes == 'text'}

    @torch.no_grad()
    def __call__(self, batch: tp.Sequence[Inputs], captions: tp.Sequence[str], size: int | None = None) -> Outputs:
        """Return the features of a batch; those that were filled up are behind the others.

        Args:
            batch (list of dict): prepared input per extractor.
            captions (list of str): of the same items.
            size (int or None): of the pass of all models but those of text; None: `batch_size`.
        """
        features: Features = {}
        for name, model in self.models.items():
            inputs = [item[name] for item in batch]
            features |= (self._of_texts(name, inputs, captions) if name in self._known
                         else self._run(model, inputs, size or self.batch_size))
        return Outputs(features)

    def _run(self, model: Extractor, inputs: list[tp.Any], size: int) -> Features:
        device = device_of(model)
        filled = to_device(model.collate([*inputs, *inputs[-1:] * (size - len(inputs))]), device)
        mixed = self.dtype != torch.float32
        with torch.autocast(device.type, dtype=self.dtype) if mixed else contextlib.nullcontext():
            return model(filled)

    def _of_texts(self, name: str, inputs: list[tp.Any], captions: tp.Sequence[str]) -> Features:
        """The features of texts, computed for those that are new: data sets of labels have few different ones."""
        known = self._known[name]
        new = {caption: given for caption, given in zip(captions, inputs) if caption not in known}
        for caption in captions:
            if caption in known:
                known.move_to_end(caption)
        for first in range(0, len(new), self.batch_size):
            part = dict(itertools.islice(new.items(), first, first + self.batch_size))
            made = self._run(self.models[name], list(part.values()), self.batch_size)
            for i, caption in enumerate(part):
                known[caption] = {key: value[i].clone() for key, value in made.items()}
        features = [known[caption] for caption in captions]
        while len(known) > self.texts:
            known.popitem(last=False)
        return {key: torch.stack([item[key] for item in features]) for key in features[0]}


def device_of(model: torch.nn.Module) -> torch.device:
    """Where a module is; the CPU if it has no tensors."""
    return next((tensor.device for tensor in itertools.chain(model.parameters(), model.buffers())), torch.device('cpu'))


def to_device(inputs: tp.Any, device: torch.device) -> tp.Any:
    """Move a collated batch, also nested in lists, tuples and dicts; to a GPU through pinned memory."""
    if isinstance(inputs, torch.Tensor):
        if device.type != 'cuda' or inputs.is_cuda:
            return inputs.to(device)
        return inputs.pin_memory().to(device, non_blocking=True)
    if isinstance(inputs, dict):
        return {key: to_device(value, device) for key, value in inputs.items()}
    return type(inputs)(to_device(value, device) for value in inputs) if isinstance(inputs, (list, tuple)) else inputs
