"""Where models run."""
import os

import torch

from .errors import UserError


def select_device(name: str | torch.device = 'auto') -> torch.device:
    """The device that `auto`, `cpu` or `cuda` means for this process.

    Of several processes on a machine each has a GPU of its own (`LOCAL_RANK`, as torchrun sets it, or SLURM's
    `SLURM_LOCALID`). `cuda:1` is what it says.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    name = ('cuda' if available else 'cpu') if str(name) == 'auto' else str(name)
    if name.startswith('cuda') and not available:
        raise UserError(f'device={name}, but there is no CUDA device here: use device=auto or device=cpu.')
    local_rank = os.environ.get('LOCAL_RANK') or os.environ.get('SLURM_LOCALID') or os.environ.get('RANK')
    if name == 'cuda' and local_rank:
        return torch.device('cuda', int(local_rank) % torch.cuda.device_count())
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise UserError(f'device={name} is unknown: use auto, cpu or cuda.') from error
