"""Feature extractors without any weights: pooled frames, their differences, hashed words.

They know nothing of any data set. They stand where CLIP and Synchformer stand when their weights are there, and give
features of the same form: few enough numbers for a small network to learn from on a CPU.
"""
import hashlib
import re

import torch
from torch.nn import functional as F

from .base import Extractor, Spec


def pool(frames: torch.Tensor, size: int) -> torch.Tensor:
    """Average uint8 frames `[T, 3, H, W]` over `size` x `size` cells: float `[T, 3, size, size]` in [0, 1]."""
    return F.adaptive_avg_pool2d(frames.float(), (size, size)) / 255.


# (height, width): enough for the coarse grids below. Videos are brought to it while they are decoded: less memory.
DECODED = (120, 160)


class TinyImage(Extractor):
    """What there is in the picture: pooled colours and a colour histogram of each frame, key `clip_features`.

    Args:
        fps (float): frames per second.
        grid (int): cells in each direction.
        bits (int): bits of each colour channel that the histogram tells apart, 8 ** bits colours.
    """
    consumes = 'frames'
    size = DECODED

    def __init__(self, *, fps: float = 8., grid: int = 8, bits: int = 2):
        super().__init__()
        self.fps, self.grid, self.bits = fps, grid, bits

    def spec(self, duration: float) -> Spec:
        """One key, `clip_features`: `[T, 3 * grid ** 2 + 8 ** bits]`."""
        dim = 3 * self.grid ** 2 + 8 ** self.bits
        return {'clip_features': ((self.frames_needed(duration), dim), torch.float32)}

    def histogram(self, frames: torch.Tensor) -> torch.Tensor:
        """Square roots of the shares of each colour in frames `[T, 3, H, W]`: `[T, 8 ** bits]`.

        The root lifts small things: a hundredth of the picture counts a tenth.
        """
        red, green, blue = (frames >> (8 - self.bits)).short().unbind(1)
        index = ((((red << self.bits) + green) << self.bits) + blue).flatten(1)
        counts = torch.stack([torch.bincount(row, minlength=8 ** self.bits) for row in index])
        return (counts / index.shape[1]).sqrt()

    def prepare(self, item: torch.Tensor) -> torch.Tensor:
        """Features `[T, D]` of uint8 frames `[T, 3, H, W]`."""
        pooled = (pool(item, self.grid) - 0.5).flatten(1)
        return torch.cat([2. * pooled, 4. * self.histogram(item)], dim=1)

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Pass on what `prepare` computed, `[B, T, D]`."""
        return {'clip_features': batch}


class TinyMotion(Extractor):
    """What moves, when and where: signed differences of pooled luminance, key `sync_features`.

    Each frame is compared with the one before it and with the median of the clip, which is the still background.

    Args:
        fps (float): frames per second.
        grid (int): cells in each direction.
        scale (float): factor that brings differences (luminance in [0, 1]) to the order of one. It is the same for
            all clips, so that a fast motion stays larger than a slow one.
        limit (float): features are squashed smoothly into [-limit, limit], so that a cut in the film cannot dominate.
    """
    consumes = 'frames'
    size = DECODED
    # MMAudio's network takes motion features in segments of eight.
    segment = 8
    luminance: torch.Tensor

    def __init__(self, *, fps: float = 24., grid: int = 16, scale: float = 10., limit: float = 5.):
        super().__init__()
        self.fps, self.grid, self.scale, self.limit = fps, grid, scale, limit
        self.register_buffer('luminance', torch.tensor([0.299, 0.587, 0.114])[:, None, None], persistent=False)

    def frames_needed(self, duration: float) -> int:
        """Frames of a clip, whole segments of eight."""
        return super().frames_needed(duration) // self.segment * self.segment

    def spec(self, duration: float) -> Spec:
        """One key, `sync_features`: `[T, 2 * grid ** 2]`, T a multiple of eight."""
        return {'sync_features': ((self.frames_needed(duration), 2 * self.grid ** 2), torch.float32)}

    def prepare(self, item: torch.Tensor) -> torch.Tensor:
        """Features `[T, D]` of uint8 frames `[T, 3, H, W]`."""
        grey = (pool(item, self.grid) * self.luminance).sum(dim=1).flatten(1)
        steps = torch.diff(grey, dim=0, prepend=grey[:1])
        background = grey - grey.median(dim=0).values
        features = self.scale * torch.cat([steps, background], dim=1)
        return self.limit * torch.tanh(features / self.limit)

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Pass on what `prepare` computed, `[B, T, D]`."""
        return {'sync_features': batch}


class TinyText(Extractor):
    """Each word of a text as a fixed random direction, key `text_features`.

    Args:
        dim (int): dimension of a token.
        max_tokens (int): tokens per text; the first is the start of the sentence, absent ones are zeros.
    """
    consumes = 'text'
    start = '<start>'

    def __init__(self, *, dim: int = 64, max_tokens: int = 16):
        super().__init__()
        self.dim, self.max_tokens = dim, max_tokens

    def spec(self, duration: float) -> Spec:
        """One key, `text_features`: `[max_tokens, dim]`."""
        return {'text_features': ((self.max_tokens, self.dim), torch.float32)}

    def word_vector(self, word: str) -> torch.Tensor:
        """Direction of one word, `[dim]` with mean square one, seeded by the sha256 of the word."""
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], 'little') % 2 ** 63
        vector = torch.randn(self.dim, generator=torch.Generator().manual_seed(seed))
        return F.normalize(vector, dim=0) * self.dim ** 0.5

    def prepare(self, item: str) -> torch.Tensor:
        """Features `[max_tokens, dim]` of a text; the words are cut at anything but letters and digits."""
        words = [self.start, *re.findall(r'\w+', item.lower())][:self.max_tokens]
        tokens = torch.stack([self.word_vector(word) for word in words])
        return F.pad(tokens, (0, 0, 0, self.max_tokens - len(words)))

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Pass on what `prepare` computed, `[B, max_tokens, dim]`."""
        return {'text_features': batch}
