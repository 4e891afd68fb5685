"""Classifier-free guidance of a velocity field (Ho and Salimans, arXiv 2207.12598)."""

import typing as tp

import torch

Field = tp.Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def combine(conditional: torch.Tensor, empty: torch.Tensor, scale: float) -> torch.Tensor:
    """`scale` times the conditional velocity and `1 - scale` times that without condition; 1 is no guidance."""
    return scale * conditional + (1 - scale) * empty


def guided(field_batched: Field, scale: float) -> Field:
    """A guided field, with both velocities from one call.

    Args:
        field_batched (callable): `(t, x [2B, ...]) -> [2B, ...]`, whose conditions are for the first half of its
            batch, and absent ("null") in the second half.
        scale (float): how strong the guidance is.
    Returns:
        callable: `(t, x [B, ...]) -> [B, ...]`.
    """
    def field(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        conditional, empty = field_batched(t, torch.cat([x, x])).chunk(2)
        return combine(conditional, empty, scale)
    return field
