"""Modules whose weights are not float32."""

import typing as tp

import torch
from torch import nn


def cast_inputs(module: nn.Module, dtype: torch.dtype) -> None:
    """Give a module its floating point inputs in `dtype`, unless autocast takes care of that."""
    def cast(value: tp.Any) -> tp.Any:
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    def hook(_: nn.Module, args: tuple, kwargs: dict[str, tp.Any]) -> tuple[tuple, dict[str, tp.Any]] | None:
        if any(torch.is_autocast_enabled(kind) for kind in ('cpu', 'cuda')):
            return None
        return tuple(cast(value) for value in args), {name: cast(value) for name, value in kwargs.items()}
    module.register_forward_pre_hook(hook, with_kwargs=True)
