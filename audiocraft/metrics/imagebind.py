"""ImageBind: does the sound fit the pictures? (Girdhar et al., 2023, arXiv:2305.05665)

The front ends are here; the network is that of the package `imagebind`, which is not on PyPI.
"""

import typing as tp

import torch
import torchaudio
from torch import nn
from torch.nn import functional as F

from ..data.samples import Clip
from ..features.clip import MEAN as PIXEL_MEAN
from ..features.clip import STD as PIXEL_STD
from ..models.published.files import load_strict, read_state
from .networks import FeatureNetwork, Features, mono, pictures_of, shared

SAMPLE_RATE = 16_000
CLIPS, CLIP_SECONDS, N_MELS, FRAMES = 3, 2., 128, 204
MEAN, STD = -4.268, 9.138
FPS, SIDE, CROPS = 0.5, 224, 3


def clip_starts(seconds: float, clips: int = CLIPS, clip_seconds: float = CLIP_SECONDS) -> list[float]:
    """Where the clips begin that cover so many seconds evenly."""
    room = max(0., seconds - clip_seconds)
    return [room * number / max(1, clips - 1) for number in range(clips)]


def mel(wav: torch.Tensor, *, n_mels: int = N_MELS, frames: int = FRAMES) -> torch.Tensor:
    """A waveform `[T]` at 16 kHz to Kaldi's log-mel filter banks `[1, n_mels, frames]`, cut or filled with zeros."""
    banks = torchaudio.compliance.kaldi.fbank(
        (wav - wav.mean())[None], htk_compat=True, sample_frequency=SAMPLE_RATE, use_energy=False,
        window_type='hanning', num_mel_bins=n_mels, dither=0., frame_length=25., frame_shift=10.)[:frames]
    return F.pad(banks.T, (0, frames - len(banks)))[None]


def sound(wav: torch.Tensor) -> torch.Tensor:
    """A waveform `[T]` at 16 kHz to what the network hears: `[clips, 1, n_mels, frames]`."""
    length = round(CLIP_SECONDS * SAMPLE_RATE)
    wav = F.pad(wav, (0, max(0, length - len(wav))))
    starts = [int(start * SAMPLE_RATE) for start in clip_starts(len(wav) / SAMPLE_RATE)]
    return (torch.stack([mel(wav[start:start + length]) for start in starts]) - MEAN) / STD


def pictures(frames: torch.Tensor, *, side: int = SIDE, crops: int = CROPS) -> torch.Tensor:
    """Pictures uint8 `[T, 3, H, W]` to what the network sees: `[(T - 1) * crops, 3, 2, side, side]`.

    The shorter side becomes `side`; pairs of neighbours are one clip each, seen through `crops` squares along the
    longer side.
    """
    height, width = frames.shape[-2:]
    shorter = min(height, width)
    size = (height * side // shorter, width * side // shorter)
    x = F.interpolate(frames.float() / 255, size, mode='bilinear', align_corners=False)
    x = (x - torch.tensor(PIXEL_MEAN).view(3, 1, 1)) / torch.tensor(PIXEL_STD).view(3, 1, 1)
    places = [round((max(size) - side) * number / max(1, crops - 1)) for number in range(crops)]
    squares = [x[..., place:place + side, :] if size[0] > size[1] else x[..., place:place + side] for place in places]
    pairs = [torch.stack([square[number], square[number + 1]], dim=1)
             for number in range(len(x) - 1) for square in squares]
    return torch.stack(pairs)


class ImageBind(FeatureNetwork):
    """ImageBind huge: `embedding` (1024) of the sound, all of it, and of the pictures, two seconds apart."""
    name, published = 'imagebind', 'imagebind'
    package = ('imagebind', 'pip install git+https://github.com/facebookresearch/ImageBind '
                            '(CC BY-NC-SA 4.0; the package of this name on PyPI is another one)')
    sources = ('audio', 'video')

    def load(self) -> nn.Module:
        from imagebind.models import imagebind_model
        return load_strict(imagebind_model.imagebind_huge(pretrained=False), read_state(self.path), self.path)

    def audio(self, clips: tp.Sequence[Clip]) -> list[Features | None]:
        model = self.ready()
        inputs = [sound(mono(clip, SAMPLE_RATE)) for clip in clips]
        return self.outputs(inputs, lambda batch: {'embedding': model({'audio': batch})['audio']})

    def video(self, clips: tp.Sequence[Clip]) -> list[Features | None]:
        """Features of the pictures of `media`, as long as the sound or as there are; None of fewer than two."""
        model = self.ready()
        inputs = [self._pictures(clip) for clip in clips]
        seen = [one for one in inputs if one is not None]
        made = iter(self.outputs(seen, lambda batch: {'embedding': model({'vision': batch})['vision']}))
        return [None if one is None else next(made) for one in inputs]

    def _pictures(self, clip: Clip) -> torch.Tensor | None:
        frames = pictures_of(clip, FPS, self.seconds)
        return pictures(frames) if frames is not None and len(frames) > 1 else None


def imagebind(*, weights: str | None = None, device: str = 'auto', batch_size: int = 4) -> ImageBind:
    """The shared `ImageBind` of these arguments (see `FeatureNetwork`)."""
    return shared(ImageBind, weights=weights, device=device, batch_size=batch_size)
