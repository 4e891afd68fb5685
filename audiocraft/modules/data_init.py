"""Initial scales from data, so that a deep convolutional network starts with signals of a sensible size."""

import typing as tp

import torch
from torch import nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d)


@torch.no_grad()
def init_from_data(module: nn.Module, run: tp.Callable[[], tp.Any], *, last_std: float = 1.) -> None:
    """Scale the convolutions of a module, in the order of their use, until what each gives has mean 0 and deviation 1.

    With the usual initial weights each layer gives less than it got, and what comes out of an auto-encoder of twenty
    layers depends on its biases alone: hundreds of updates go by before it depends on the input (Salimans and Kingma
    2016, arXiv:1602.07868, section 3). Convolutions are scaled by channel, transposed ones as a whole.

    Args:
        module (nn.Module): holds the convolutions.
        run (callable): passes data through the module once.
        last_std (float): deviation that the last convolution shall give, that of the data as a rule.
    """
    used: list[nn.Module] = []
    last = _last_used(module, run)

    def scale(conv: nn.Module, inputs: tp.Any, output: torch.Tensor) -> torch.Tensor | None:
        if conv in used:
            return None
        used.append(conv)
        dims = [0, *range(2, output.dim())]
        transposed = isinstance(conv, nn.ConvTranspose1d)
        mean = output.mean(dims, keepdim=True)
        std = (output - mean).std() if transposed else output.std(dims, keepdim=True)
        factor = (last_std if conv is last else 1.) / std.clamp_min(1e-6)
        weight = _gain(conv)
        weight.mul_(factor if transposed else factor.view(-1, *[1] * (weight.dim() - 1)))
        bias = tp.cast(torch.Tensor | None, conv.bias)
        if bias is None:
            return output * factor
        bias.copy_((bias - mean.flatten()) * factor.flatten())
        return (output - mean) * factor
    _with_hooks(module, scale, run)


def _gain(conv: nn.Module) -> torch.Tensor:
    """What scales the output of a convolution: the gain of its weight normalisation, else its weight."""
    if 'parametrizations' in conv._modules:
        return conv.parametrizations.weight.original0  # type: ignore
    return tp.cast(torch.Tensor, conv.weight)


def _with_hooks(module: nn.Module, hook: tp.Callable, run: tp.Callable[[], tp.Any]) -> None:
    handles = [conv.register_forward_hook(hook) for conv in module.modules() if isinstance(conv, CONVOLUTIONS)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()


def _last_used(module: nn.Module, run: tp.Callable[[], tp.Any]) -> nn.Module | None:
    used: list[nn.Module] = []
    _with_hooks(module, lambda conv, inputs, output: used.append(conv), run)
    return used[-1] if used else None
