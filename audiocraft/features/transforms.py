"""From pictures of any size to those that networks of vision were trained on.

Bicubic with antialiasing, on whole numbers: each axis is rounded to uint8 in turn, as Pillow does and as the features
of MMAudio were made. In floating point some pixels come out 20 of 255 apart.
"""

import torch
from torch.nn import functional as F


def _resize(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    if frames.dim() != 4 or frames.dtype != torch.uint8:
        raise ValueError(f'frames must be uint8 [T, 3, H, W], got {frames.dtype} {tuple(frames.shape)}')
    if tuple(frames.shape[-2:]) == (height, width):
        return frames
    return F.interpolate(frames, (height, width), mode='bicubic', antialias=True, align_corners=False)


def squash(frames: torch.Tensor, size: int) -> torch.Tensor:
    """Bring frames uint8 `[T, 3, H, W]` to `[T, 3, size, size]`, whatever their aspect; those of it stay unchanged."""
    return _resize(frames, size, size)


def crop_resized(frames: torch.Tensor, size: int) -> torch.Tensor:
    """Bring the shorter side of frames uint8 `[T, 3, H, W]` to `size`, and take the square in the middle.

    Returns:
        torch.Tensor: uint8 `[T, 3, size, size]`; frames of this size come back unchanged.
    """
    short, long = sorted(frames.shape[-2:])
    longer = int(size * long / short)
    height, width = (size, longer) if frames.shape[-2] == short else (longer, size)
    frames = _resize(frames, height, width)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return frames[..., top:top + size, left:left + size].contiguous()
