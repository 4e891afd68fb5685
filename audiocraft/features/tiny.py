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
    """What there is in the picture, key `clip_features`: pooled colours, the colours of all, and of what moves.

    What moves is what differs from the median of the clip, which is the still background.

    Args:
        fps (float): frames per second.
        grid (int): cells in each direction.
        bits (int): bits of each colour channel that the histograms tell apart, 8 ** bits colours.
        threshold (int): difference to the background, of 255, from which on something is there.
    """
    consumes = 'frames'
    size = DECODED

    def __init__(self, *, fps: float = 8., grid: int = 8, bits: int = 2, threshold: int = 24):
        super().__init__()
        self.fps, self.grid, self.bits, self.threshold = fps, grid, bits, threshold

    def spec(self, duration: float) -> Spec:
        """One key, `clip_features`: `[T, 3 * grid ** 2 + 2 * 8 ** bits]`."""
        dim = 3 * self.grid ** 2 + 2 * 8 ** self.bits
        return {'clip_features': ((self.frames_needed(duration), dim), torch.float32)}

    def colours(self, frames: torch.Tensor) -> torch.Tensor:
        """The colour of each pixel of frames `[T, 3, H, W]` as a number below `8 ** bits`: `[T, H * W]`."""
        red, green, blue = (frames >> (8 - self.bits)).short().unbind(1)
        return ((((red << self.bits) + green) << self.bits) + blue).flatten(1)

    def histogram(self, colours: torch.Tensor, where: torch.Tensor | None = None) -> torch.Tensor:
        """Square roots of the shares of each colour `[T, N]` (of the pixels `where`, bool `[T, N]`): `[T, 8 ** bits]`.

        The root lifts small things: a hundredth of the picture counts a tenth.
        """
        rows = colours if where is None else [row[mask] for row, mask in zip(colours, where)]
        counts = torch.stack([torch.bincount(row, minlength=8 ** self.bits) for row in rows])
        return (counts / counts.sum(1, keepdim=True).clamp_min(1)).sqrt()

    def moving(self, frames: torch.Tensor) -> torch.Tensor:
        """Which pixels of frames `[T, 3, H, W]` are not the background: bool `[T, H * W]`."""
        difference = (frames.short() - frames.median(dim=0).values.short()).abs()
        return (difference.amax(1) > self.threshold).flatten(1)

    def prepare(self, item: torch.Tensor) -> torch.Tensor:
        """Features `[T, D]` of uint8 frames `[T, 3, H, W]`."""
        pooled = (pool(item, self.grid) - 0.5).flatten(1)
        coarse = item[:, :, ::2, ::2]  # every other pixel: a quarter of the work, and what moves is larger than that
        moving = self.histogram(self.colours(coarse), self.moving(coarse))
        return torch.cat([2. * pooled, 4. * self.histogram(self.colours(item)), 3. * moving], dim=1)

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
        grey = (pool(item, self.grid) * self.luminance.to(item.device)).sum(dim=1).flatten(1)
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
