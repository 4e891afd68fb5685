"""DeSync: how far sound and pictures are apart in time, after Synchformer (Iashin et al., 2024)."""

import typing as tp

import torch


def offset_grid(classes: int = 21, reach: float = 2.) -> torch.Tensor:
    """The offsets in seconds that the classes stand for `[classes]`, evenly spaced from -reach to reach."""
    return torch.linspace(-reach, reach, classes)


def desync(logits: tp.Sequence[torch.Tensor], grid: torch.Tensor | None = None) -> float:
    """Mean absolute offset of the likeliest class, in seconds.

    Args:
        logits: one `[N, classes]` for each window of the clips (the first and the last 14 segments); all count alike.
        grid: the offset of each class.
    """
    stacked = torch.cat(list(logits))
    grid = offset_grid(stacked.shape[-1]) if grid is None else grid
    return float(grid[stacked.argmax(dim=-1)].abs().mean())
