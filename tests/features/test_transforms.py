"""Pictures brought to the sizes of networks, and when readers may do it."""

import pytest
import torch

from audiocraft.features.base import Extractor, frame_views
from audiocraft.features.tiny import TinyImage
from audiocraft.features.transforms import crop_resized, squash


def pictures(height: int, width: int, count: int = 3) -> torch.Tensor:
    """Noise, uint8 `[T, 3, H, W]`."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize('transform', [squash, crop_resized])
@pytest.mark.parametrize('height, width', [(45, 80), (80, 45), (33, 33), (20, 21), (24, 60)])
def test_each_picture_alone_and_only_once(transform, height: int, width: int) -> None:
    frames = pictures(height, width)
    small = transform(frames, 24)
    assert small.shape == (3, 3, 24, 24) and small.dtype == torch.uint8
    assert torch.equal(transform(small, 24), small)
    # As a reader does it: one by one, the channels of a pixel side by side.
    alone = [transform(frame[None].contiguous(memory_format=torch.channels_last), 24) for frame in frames]
    assert torch.equal(torch.cat(alone), small)


def test_what_is_kept() -> None:
    ramp = torch.arange(80, dtype=torch.uint8).expand(1, 3, 40, 80).contiguous()
    assert torch.equal(crop_resized(ramp, 40), ramp[..., 20:60]), 'the middle'
    assert torch.equal(crop_resized(ramp.mT.contiguous(), 40), ramp.mT[..., 20:60, :])
    squashed = squash(ramp, 40)[0, 0, 0].float()
    torch.testing.assert_close(squashed, torch.arange(40) * 2 + 0.5, rtol=0, atol=0.6)


def test_steps_in_whole_numbers() -> None:
    """An edge overshoots; what passes 255 is cut between the two axes, as in the recorded features."""
    frames = pictures(45, 80)
    float_numbers = torch.nn.functional.interpolate(frames.float(), (96, 96), mode='bicubic', antialias=True)
    difference = (squash(frames, 96).float() - float_numbers.clamp(0, 255).round()).abs()
    assert difference.max() > 2 and difference.mean() < 2


def test_only_pictures_of_bytes() -> None:
    for frames in (pictures(8, 8).float(), pictures(8, 8)[0]):
        with pytest.raises(ValueError, match='uint8'):
            squash(frames, 4)


class Squashed(Extractor):
    consumes = 'frames'

    def __init__(self, *, fps: float = 8.):
        super().__init__()
        self.fps = fps

    def reduce(self, frames: torch.Tensor) -> torch.Tensor:
        return squash(frames, 4)


def test_what_may_be_done_while_decoding() -> None:
    views = frame_views([Squashed(), TinyImage(fps=4.)])
    assert list(views) == [4., 8.] and views[4.] is None
    assert views[8.] is not None and views[8.](pictures(9, 9)).shape == (3, 3, 4, 4)
    assert frame_views([Squashed(), TinyImage(fps=8.)]) == {8.: None}, 'they do not agree: each gets them as they are'
    assert torch.equal(TinyImage().reduce(frames := pictures(9, 9)), frames)
