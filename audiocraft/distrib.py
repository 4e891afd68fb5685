"""Several processes that train one model; everything here does nothing with a single one.

This is the only file that names `torch.distributed`.
"""

import logging
import os
import typing as tp
from datetime import timedelta

import torch
from torch import distributed

from .utils.errors import UserError

logger = logging.getLogger(__name__)


def init(backend: str | None = None, *, timeout: float = 1800.) -> None:
    """Join the group that the launcher described in the environment (`dora run -d`, `torchrun`, SLURM).

    Args:
        backend (str or None): `nccl` or `gloo`; None takes nccl with CUDA and gloo without.
        timeout (float): seconds that a collective may take before the group is ended.
    """
    # Dora's module knows the launchers; it imports torch at its top.
    from dora.distrib import get_distrib_spec, set_distrib_env
    spec = get_distrib_spec()
    if distributed.is_initialized() or spec.world_size == 1:
        return
    cuda = torch.cuda.is_available()
    backend = backend or ('nccl' if cuda else 'gloo')
    if backend == 'nccl' and not cuda:
        raise UserError('The backend "nccl" needs CUDA, which this machine does not offer: use "gloo".')
    options: dict[str, tp.Any] = {}
    if cuda:
        device = torch.device('cuda', spec.local_rank)
        torch.cuda.set_device(device)
        if backend == 'nccl':
            options['device_id'] = device
    set_distrib_env()
    distributed.init_process_group(backend, init_method='env://', rank=spec.rank, world_size=spec.world_size,
                                   timeout=timedelta(seconds=timeout), **options)
    logger.info('Process %d of %d (local %d), backend %s.', spec.rank, spec.world_size, spec.local_rank, backend)


def finish() -> None:
    """Leave the group."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def is_distributed() -> bool:
    """Whether there is more than one process."""
    return world_size() > 1


def rank() -> int:
    """The number of this process; before `init`, what the launcher said."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank()
    return int(os.environ.get('RANK') or 0)


def local_rank() -> int:
    """The number of this process on its machine."""
    return int(os.environ.get('LOCAL_RANK') or rank())


def world_size() -> int:
    """How many processes there are; 1 before `init`."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


def is_rank_zero() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    if is_distributed():
        distributed.barrier()


def _device() -> torch.device:
    """Where tensors of a collective must live for the backend in use."""
    if distributed.get_backend() == 'nccl':
        return torch.device('cuda', torch.cuda.current_device())
    return torch.device('cpu')


def all_reduce(tensor: torch.Tensor, op: str = 'sum') -> torch.Tensor:
    """Combine a tensor over the processes, in place (`sum`, `max` or `min`), and return it."""
    if is_distributed():
        moved = tensor.to(_device())
        distributed.all_reduce(moved, getattr(distributed.ReduceOp, op.upper()))
        if moved is not tensor:
            tensor.copy_(moved)
    return tensor


def broadcast(tensor: torch.Tensor, src: int = 0) -> torch.Tensor:
    """Give all processes the tensor of process `src`, in place, and return it."""
    if is_distributed():
        moved = tensor.to(_device())
        distributed.broadcast(moved, src)
        if moved is not tensor:
            tensor.copy_(moved)
    return tensor


def average(tensors: tp.Sequence[torch.Tensor]) -> None:
    """Replace tensors by their means over the processes, with one collective for each dtype."""
    if not is_distributed():
        return
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):  # in the same order everywhere
        same = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = all_reduce(torch.cat([tensor.flatten() for tensor in same])) / world_size()
        for tensor, mean in zip(same, flat.split([tensor.numel() for tensor in same])):
            tensor.copy_(mean.view_as(tensor))


def agree(flag: bool) -> bool:
    """True on all processes as soon as it is on one."""
    if not is_distributed():
        return bool(flag)
    return bool(all_reduce(torch.tensor(int(flag), device=_device()), 'max').item())
