"""Several processes that train one model; everything here does nothing with a single one.

This is the only file that names `torch.distributed`. What a process says to another is a tensor, or plain data that is
read without running code; nothing is unpickled.
"""

import io
import logging
import os
import sys
import typing as tp
from contextlib import ExitStack, contextmanager
from datetime import timedelta

import torch
from torch import distributed, nn

from .utils.checkpoint import plain_state
from .utils.errors import UserError

logger = logging.getLogger(__name__)

T = tp.TypeVar('T')
MODES = ('none', 'ddp', 'fsdp')
_LOST = ('connection closed by peer', 'connection reset by peer', 'connection refused', 'broken pipe', 'socket closed',
         'gloo/transport', 'remote process exited', 'application timeout')


def is_cut(tensor: torch.Tensor) -> bool:
    """Whether each process holds a part of this tensor only."""
    module = sys.modules.get('torch.distributed.tensor')  # slow to import, and without it no tensor is cut
    return module is not None and isinstance(tensor, module.DTensor)


# -- the group -------------------------------------------------------------------------------------------------------

def init(backend: str | None = None, *, timeout: float = 1800.) -> None:
    """Join the group that the launcher described in the environment (`dora run -d`, `torchrun`, SLURM).

    Args:
        backend (str or None): `gloo`, or None: nccl for tensors on CUDA devices and gloo for those of the CPU. Flags
            and messages are tensors of the CPU, so that asking the others never waits for a GPU.
        timeout (float): seconds that a collective may take before the group is ended.
    """
    # Dora's module knows the launchers; it imports torch at its top.
    from dora.distrib import get_distrib_spec, set_distrib_env
    spec = get_distrib_spec()
    if distributed.is_initialized() or spec.world_size == 1:
        return
    cuda = torch.cuda.is_available() and backend != 'gloo'
    backend = backend or ('cpu:gloo,cuda:nccl' if cuda else 'gloo')
    if 'nccl' in backend and not cuda:
        raise UserError(f'The backend "{backend}" needs CUDA, which this machine does not offer: use "gloo".')
    options: dict[str, tp.Any] = {}
    if cuda:
        options['device_id'] = torch.device('cuda', spec.local_rank)
        torch.cuda.set_device(options['device_id'])
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
    return int(os.environ.get('LOCAL_RANK') or os.environ.get('SLURM_LOCALID') or rank())


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
        all_reduce(torch.zeros(()))


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error only says that another process has gone: the error of that one is the one to read."""
    text = str(error).lower()
    return is_distributed() and isinstance(error, RuntimeError) and not isinstance(error, UserError) and (
        isinstance(error, distributed.DistError) or any(words in text for words in _LOST))


def end_without_goodbye(status: int) -> tp.NoReturn:
    """End this process of a group at once: leaving the group would wait for others, which wait in a collective."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


# -- tensors and plain data ------------------------------------------------------------------------------------------

def all_reduce(tensor: torch.Tensor, op: str = 'sum') -> torch.Tensor:
    """Combine a tensor over the processes, in place (`sum`, `max` or `min`), and return it."""
    if is_distributed():
        distributed.all_reduce(tensor, getattr(distributed.ReduceOp, op.upper()))
    return tensor


def broadcast(tensor: torch.Tensor, src: int = 0) -> torch.Tensor:
    """Give all processes the tensor of process `src`, in place, and return it."""
    if is_distributed():
        distributed.broadcast(tensor, src)
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
    return bool(all_reduce(torch.tensor(int(flag)), 'max').item())


def _packed(value: tp.Any) -> torch.Tensor:
    file = io.BytesIO()
    torch.save(plain_state(value, 'what processes send'), file)
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def _unpacked(data: torch.Tensor) -> tp.Any:
    return torch.load(io.BytesIO(data.numpy().tobytes()), map_location='cpu', weights_only=True)


def gather(value: T, *, everywhere: bool = True) -> list[T]:
    """The values of all processes, in the order of their numbers.

    Args:
        value: plain data: numbers, text, lists, dicts, tensors (which arrive on the CPU).
        everywhere (bool): False: only process 0 gets them, the others get an empty list.
    """
    if not is_distributed():
        return [value]
    data = _packed(value)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
    distributed.all_gather(sizes, torch.tensor([data.numel()]))
    longest = max(int(size) for size in sizes)
    padded = torch.cat([data, data.new_zeros(longest - data.numel())])
    wanted = everywhere or is_rank_zero()
    found = [torch.empty_like(padded) for _ in range(world_size())] if wanted else []
    if everywhere:
        distributed.all_gather(found, padded)
    else:
        distributed.gather(padded, found or None, dst=0)
    return [_unpacked(part[:int(size)]) for part, size in zip(found, sizes)]


def from_rank_zero(function: tp.Callable[[], T]) -> T:
    """Call a function on process 0 alone and return its result, plain data, on all; a `UserError` is raised on all."""
    if not is_distributed():
        return function()
    answer: tuple[tp.Any, str | None] = (None, None)
    if is_rank_zero():
        try:
            answer = (function(), None)
        except UserError as error:
            answer = (None, str(error))
    data = _packed(answer) if is_rank_zero() else torch.empty(0, dtype=torch.uint8)
    size = int(broadcast(torch.tensor([data.numel()])))
    value, problem = _unpacked(broadcast(data if is_rank_zero() else torch.empty(size, dtype=torch.uint8)))
    if problem is not None:
        raise UserError(problem)
    return value


# -- models that are trained together --------------------------------------------------------------------------------

class _Guarded(nn.Module):
    """What DDP sees of a module: its parameters, and its forward as it was."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        self.stock = module.forward

    def forward(self, *args: tp.Any, **kwargs: tp.Any) -> tp.Any:
        return self.stock(*args, **kwargs)


def parallelize(module: nn.Module, mode: str = 'ddp', *, bucket_mb: float = 25., find_unused: bool = False,
                reshard: bool = True) -> nn.Module:
    """Let the processes train a module together; it is changed in place, keeps its class and the names of its weights.

    All begin with the weights of process 0. Call it before the optimizer is made.

    Args:
        module (nn.Module): on its device.
        mode (str): `ddp`: gradients are averaged in buckets while the backward pass goes on. `fsdp`: the blocks (what
            is in lists of modules; without any, the whole) are cut over the processes (FSDP2); what else the module
            holds stays whole, and may be used outside of `forward`. `none`: the updater averages the gradients.
        bucket_mb (float): size of the buckets of DDP.
        find_unused (bool): DDP looks for parameters that a step does not use, which takes time.
        reshard (bool): FSDP frees the weights of a block after its forward pass, and gathers them for the backward.
    """
    if mode not in MODES:
        raise UserError(f'distrib.mode={mode}: expected one of {", ".join(MODES)}.')
    trained = [param for param in module.parameters() if param.requires_grad]
    if not is_distributed() or not trained or is_parallel(module):
        return module
    _same_everywhere(module)
    if mode == 'ddp':
        _use_ddp(module, bucket_mb, find_unused)
    elif mode == 'fsdp':
        _use_fsdp(module, reshard)
    return module


def is_parallel(module: nn.Module) -> bool:
    """Whether `parallelize` takes care of the gradients of a module."""
    return any(is_reduced(param) for param in module.parameters())


def is_reduced(param: torch.Tensor) -> bool:
    """Whether the backward pass itself averages the gradient of a parameter over the processes."""
    return is_cut(param) or getattr(param, '_reduced_by_ddp', False)


@torch.no_grad()
def _same_everywhere(module: nn.Module) -> None:
    for tensor in [*module.parameters(), *module.buffers()]:
        broadcast(tensor.detach())


def _use_ddp(module: nn.Module, bucket_mb: float, find_unused: bool) -> None:
    guarded = _Guarded(module)
    ddp = nn.parallel.DistributedDataParallel(guarded, broadcast_buffers=False, bucket_cap_mb=bucket_mb,
                                              find_unused_parameters=find_unused, gradient_as_bucket_view=True)
    for param in module.parameters():
        param._reduced_by_ddp = param.requires_grad  # type: ignore[attr-defined]

    def forward(*args: tp.Any, **kwargs: tp.Any) -> tp.Any:
        return (ddp if torch.is_grad_enabled() and module.training else guarded)(*args, **kwargs)
    module.forward = forward  # type: ignore[method-assign]  # the names of the weights stay, unlike in a wrapper
    object.__setattr__(module, '_ddp', ddp)  # not as a part of the module


def _use_fsdp(module: nn.Module, reshard: bool) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    mesh = init_device_mesh(next(module.parameters()).device.type, (world_size(),))
    blocks = blocks_of(module)
    cut = {param for block in blocks for param in block.parameters()}
    whole_ones = {param for param in module.parameters() if param not in cut} if blocks else set()
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard)
    fully_shard(module, mesh=mesh, ignored_params=whole_ones)
    for name in getattr(module, 'forward_methods', ()):  # other ways into the module than `forward`
        register_fsdp_forward_method(module, name)


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The elements of the outermost lists of modules: the layers of a transformer."""
    if isinstance(module, nn.ModuleList):
        return list(module)
    return [block for child in module.children() for block in blocks_of(child)]


@contextmanager
def no_sync(modules: tp.Iterable[nn.Module]) -> tp.Iterator[None]:
    """Within the context each process sums gradients alone: for all micro-batches of an update but the last."""
    with ExitStack() as stack:
        for module in modules if is_distributed() else ():
            switch: tp.Any = getattr(module, 'set_requires_gradient_sync', None)  # of FSDP
            if hasattr(module, '_ddp'):
                stack.enter_context(tp.cast(nn.parallel.DistributedDataParallel, module._ddp).no_sync())
            elif switch is not None:
                switch(False)
                stack.callback(switch, True)
        yield


# -- tensors that are cut over the processes -------------------------------------------------------------------------

def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part, sharing its memory; the tensor itself when it is whole."""
    return tensor.to_local() if is_cut(tensor) else tensor  # type: ignore[attr-defined]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor. All processes must ask for it, in the same order."""
    return tensor.full_tensor() if is_cut(tensor) else tensor  # type: ignore[attr-defined]


def from_part(part: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The tensor of which each process holds a `part`, cut as `like` is; the part itself when `like` is whole."""
    if not is_cut(like):
        return part
    from torch.distributed.tensor import DTensor
    like = tp.cast(DTensor, like)
    return DTensor.from_local(part.to(local(like).device), like.device_mesh, like.placements, run_check=False,
                              shape=like.shape, stride=like.stride())


def assemble(part: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The whole of what each process holds a part of, on the device of the part. All processes must ask for it."""
    return whole(from_part(part, like)).to(part.device)


def cut_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor, cut as `like` is."""
    if not is_cut(like):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor
    like = tp.cast(DTensor, like)
    return distribute_tensor(tensor.to(local(like).device), like.device_mesh, like.placements)


def part_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's part of a whole tensor, if `like` is cut."""
    return local(cut_like(tensor, like))


def total_norm(tensors: tp.Sequence[torch.Tensor]) -> torch.Tensor:
    """The 2-norm over all elements of tensors (gradients), of which some may be cut over the processes."""
    norm = torch.nn.utils.get_total_norm([tensor for tensor in tensors if not is_cut(tensor)])
    parts = [local(tensor) for tensor in tensors if is_cut(tensor)]
    if not parts:
        return norm
    square = all_reduce(torch.nn.utils.get_total_norm(parts).square())
    return (norm.to(square.device).square() + square).sqrt()


def full_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of a module with whole tensors. All processes must ask for it."""
    return {key: whole(tensor) for key, tensor in module.state_dict().items()}


def load_full_state(module: nn.Module, state: tp.Mapping[str, torch.Tensor]) -> None:
    """Load a state dict of whole tensors, strictly."""
    ours = module.state_dict()
    module.load_state_dict({key: cut_like(tensor, ours[key]) if key in ours else tensor
                            for key, tensor in state.items()})


