"""Batches of a store: what a step of training gets, with only the modalities that exist."""
import dataclasses
import typing as tp

import torch

from .sampler import Part


@dataclasses.dataclass
class Batch:
    """A few items of one or more stores.

    A tensor holds only the items that have it. `rows` says where they sit in the batch, in ascending order; a key that
    is not in `rows` is there for all items. Learned null features take the other places, on the device: see `fill`.
    Items of a ragged key are padded at their ends to the longest of the batch; `lengths` says how long they are.

    Args:
        ids (list of str): the id of each item.
        captions (list of str): the caption or label of each item, '' where there is none.
        tensors (dict): key -> `[n_key, ...]`.
        rows (dict): key -> int64 `[n_key]`, positions in the batch.
        lengths (dict): ragged key -> frames of each item of the batch, int64 `[B]`; 0 where an item lacks the key.
        part (Part or None): which part of a global batch this is.
    """
    ids: list[str]
    captions: list[str]
    tensors: dict[str, torch.Tensor]
    rows: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    lengths: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    # Copies to a GPU that still read the tensors: the loader waits for them before it fills the buffers again.
    copies: list[tp.Any] = dataclasses.field(default_factory=list, repr=False, compare=False)
    part: Part | None = dataclasses.field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next((tensor.device for tensor in self.tensors.values()), torch.device('cpu'))

    def _map(self, function: tp.Callable[[torch.Tensor], torch.Tensor]) -> 'Batch':
        tensors, rows, lengths = ({key: function(value) for key, value in values.items()}
                                  for values in (self.tensors, self.rows, self.lengths))
        return Batch(self.ids, self.captions, tensors, rows, lengths)

    def to(self, device: str | torch.device, non_blocking: bool = False) -> 'Batch':
        """Return the batch on a device (itself when it is there already).

        With `non_blocking`, a copy from pinned memory goes on behind the back of the program; the loader knows of it.
        """
        device = torch.device(device)
        if device.type == self.device.type and device.index in (None, self.device.index):
            return self
        batch = self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        if non_blocking and device.type == 'cuda':
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(device))
            self.copies.append(event)
        return batch

    def clone(self) -> 'Batch':
        """Return a batch with tensors of its own, to be kept longer than the loader keeps its buffers."""
        return self._map(torch.clone)

    def exists(self, key: str) -> torch.Tensor:
        """Return which items have this key, bool `[B]`."""
        if key not in self.rows:
            return torch.full((len(self),), key in self.tensors, device=self.device)
        return torch.zeros(len(self), dtype=torch.bool, device=self.device).index_fill(0, self.rows[key], True)

    def fill(self, key: str, null: torch.Tensor) -> torch.Tensor:
        """Return a tensor for all items, with `null` where there is none.

        Args:
            key (str): name of the tensor.
            null (Tensor): broadcastable to one item `[...]`, and of its shape if the whole batch may lack the key;
                gradients flow into it from the missing items.
        Returns:
            Tensor: `[B, ...]`, in the dtype of `null`.
        """
        if key not in self.tensors:
            return null.expand(len(self), *null.shape)
        present = self.tensors[key].to(null.dtype)
        if key not in self.rows:
            return present
        everywhere = null.expand(len(self), *present.shape[1:])
        return everywhere.index_copy(0, self.rows[key], present)

    def slice(self, start: int, stop: int) -> 'Batch':
        """Return the items `[start, stop)`: a micro-batch. Waits for the device, so slice before `to`.

        Ragged keys stay as wide as they are in the whole batch.
        """
        start, stop, _ = slice(start, stop).indices(len(self))
        tensors, rows = {}, {}
        for key, tensor in self.tensors.items():
            if key not in self.rows:
                tensors[key] = tensor[start:stop]
                continue
            first, last = (int((self.rows[key] < bound).sum()) for bound in (start, stop))
            tensors[key], kept = tensor[first:last], self.rows[key][first:last] - start
            if len(kept) < stop - start:
                rows[key] = kept
        lengths = {key: lengths[start:stop] for key, lengths in self.lengths.items()}
        return Batch(self.ids[start:stop], self.captions[start:stop], tensors, rows, lengths, self.copies)
