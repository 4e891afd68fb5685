"""Writing checkpoints behind the back of a training: it waits for the copy to host memory only."""

import logging
import threading
import time
import typing as tp
from pathlib import Path

import torch

from .checkpoint import State, save_checkpoint

logger = logging.getLogger(__name__)


class HostCopy:
    """Copies of nested tensors in host memory that is allocated once: page-locked for tensors of a GPU."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def __call__(self, tree: tp.Any) -> tp.Any:
        """Return the same containers with copies of the tensors, valid until the next call; tied tensors stay tied."""
        used: dict[str, torch.Tensor] = {}
        copied = self._copy(tree, '', {}, used)
        self._buffers = used
        if any(tensor.is_pinned() for tensor in used.values()):
            torch.cuda.synchronize()
        return copied

    def _copy(self, tree: tp.Any, place: str, seen: dict[tuple, torch.Tensor], used: dict[str, torch.Tensor]) -> tp.Any:
        if isinstance(tree, torch.Tensor):
            return self._tensor(tree.detach(), place, seen, used)
        if isinstance(tree, tp.Mapping):
            return {key: self._copy(value, f'{place}/{key}', seen, used) for key, value in tree.items()}
        if type(tree) in (list, tuple):
            return type(tree)(self._copy(value, f'{place}/{index}', seen, used) for index, value in enumerate(tree))
        return tree

    def _tensor(self, tensor: torch.Tensor, place: str, seen: dict[tuple, torch.Tensor],
                used: dict[str, torch.Tensor]) -> torch.Tensor:
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, str(tensor.device))
        if tensor.numel() and key in seen:
            return seen[key]
        buffer = self._buffers.get(place)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        used[place] = seen[key] = buffer.copy_(tensor, non_blocking=tensor.is_cuda)
        return buffer


class CheckpointWriter:
    """Writes one checkpoint at a time; see `utils.checkpoint.save_checkpoint` for what is written, and how.

    An error of the writing thread (disk full, no permission) is raised by the next call of any method.

    Args:
        folder (Path): of all checkpoints.
        asynchronous (bool): write in a thread, from a copy; False: `save` returns when everything is on disk.
        keep_last, keep_every: as for `save_checkpoint`.
    """

    def __init__(self, folder: Path, *, asynchronous: bool = True, keep_last: int | None = None,
                 keep_every: int | None = None) -> None:
        self.folder, self.asynchronous = folder, asynchronous
        self._keep: dict[str, tp.Any] = {'keep_last': keep_last, 'keep_every': keep_every}
        self._copy = HostCopy()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._afterwards: list[tp.Callable[[], None]] = []
        self._lock = threading.Lock()

    def save(self, update: int, *, models: tp.Mapping[str, State], state: dict[str, tp.Any], config: str,
             rank_states: tp.Mapping[int, dict]) -> None:
        """Save a checkpoint, after the one that is still being written."""
        self.wait()
        if not self.asynchronous:
            save_checkpoint(self.folder, update, models=models, state=state, config=config, rank_states=rank_states,
                            **self._keep)
            return
        begin = time.perf_counter()
        models, state = self._copy((dict(models), state))
        logger.debug('Copied the state of update %d in %.3f s.', update, time.perf_counter() - begin)
        self._thread = threading.Thread(target=self._write, name='checkpoint', daemon=True, kwargs={
            'update': update, 'models': models, 'state': state, 'config': config, 'rank_states': rank_states})
        self._thread.start()

    def _write(self, **content: tp.Any) -> None:
        try:
            save_checkpoint(self.folder, **content, **self._keep)
            self._do_afterwards()
        except BaseException as error:  # it belongs to the training, which looks at its next update
            self._error = error

    def _do_afterwards(self) -> None:
        while True:
            with self._lock:
                if not self._afterwards:
                    self._thread = None
                    return
                function = self._afterwards.pop(0)
            function()

    def afterwards(self, function: tp.Callable[[], None]) -> None:
        """Call a function when what is being written is on disk: in the writing thread, or now if there is none."""
        self.check()
        with self._lock:
            if self._thread is not None:
                self._afterwards.append(function)
                return
        function()

    def check(self) -> None:
        """Raise the error of the writing thread, if there was one."""
        if self._error is not None:
            error, self._error, self._thread = self._error, None, None
            self._afterwards.clear()
            raise error

    def wait(self) -> None:
        """Wait until everything is on disk."""
        thread = self._thread
        if thread is not None:
            thread.join()
        self.check()

    def finish(self) -> None:
        """Wait as `wait` does, at the end of a run that may have failed: another error is logged, not raised."""
        try:
            self.wait()
        except Exception as error:
            logger.error('%s', error)
