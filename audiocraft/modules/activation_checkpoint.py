"""Less memory for more work: the activations of a block are computed again in the backward pass."""

import typing as tp

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(blocks: tp.Iterable[nn.Module]) -> None:
    """Keep only the inputs of blocks during training (Chen et al. 2016, arXiv:1604.06174); in place, same results.

    Random numbers (dropout) are drawn again as they were. Names of weights stay as they are.
    """
    for block in blocks:
        block.forward = _checkpointed(block)  # type: ignore[method-assign]


def _checkpointed(block: nn.Module) -> tp.Callable[..., tp.Any]:
    stock = block.forward

    def forward(*args: tp.Any, **kwargs: tp.Any) -> tp.Any:
        if block.training and torch.is_grad_enabled():
            return checkpoint(stock, *args, use_reentrant=False, **kwargs)
        return stock(*args, **kwargs)
    return forward
