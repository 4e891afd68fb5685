"""The batches of a stage that is not trained on, by number."""

import typing as tp

from ..data.loaders import StoreLoader
from ..data.store_dataset import Batch


class Batches(tp.Sequence[Batch]):
    """The batches of a stage by number, each read when it is asked for: there may be more than fit into the memory.

    Args:
        loader (StoreLoader): one pass in the order of the stores.
    """

    def __init__(self, loader: StoreLoader):
        self.loader, self.size = loader, loader.batch_size
        self.ids, self.captions = loader.mixture.ids, loader.mixture.captions

    def __len__(self) -> int:
        return len(self.loader)

    def __getitem__(self, number: tp.Any) -> tp.Any:
        if not 0 <= number < len(self):
            raise IndexError(number)
        buffers = self.loader.lend(1)
        try:
            return self.loader.read(number, buffers[0]).clone()  # the loader uses its buffers again
        finally:
            self.loader.take_back(buffers)
