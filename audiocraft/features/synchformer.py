"""Synchformer (Iashin et al., 2024, arXiv:2401.16423): what moves and when, and by how much sound and pictures differ.

Both are cut into segments of 0.64 s, each half a segment after the one before, and every segment is seen alone.
"""

import functools
import typing as tp
from pathlib import Path

import torch
from torch import nn

from ..environment import resolve_path
from ..models.published.files import Undrawn, load_strict, read_state
from ..modules.sequence import segments_length
from ..utils.devices import select_device
from ..utils.errors import UserError
from ..utils.random import fork_rng
from .base import Extractor, Spec, dtype_named
from .nets.synchformer import SegmentMel, SynchformerNetwork
from .nets.synchformer_visual import VisualEncoder
from .transforms import crop_resized

WEIGHTS = '//pretrained/synchformer'
VISUAL = 'vfeat_extractor.'
FPS, SAMPLE_RATE = 25., 16_000
SAMPLES = 10_240  # of a segment of sound: as long as 16 frames
N = tp.TypeVar('N', bound=nn.Module)


def load_network(make: tp.Callable[[], N], path: Path, prefix: str = '') -> N:
    """The network that `make` builds, frozen, with those weights of a file whose name begins with `prefix`.

    Only they are read from the disk, where the format of the file allows it; none are drawn to be overwritten.

    Raises:
        UserError: the file cannot be read, or holds the weights of something else.
    """
    state = {name.removeprefix(prefix): value.to(torch.float32, copy=True)
             for name, value in read_state(path).items() if name.startswith(prefix)}
    with Undrawn():
        network = make()
    return load_strict(network, state, path, assign=True).eval().requires_grad_(False)


def count_segments(length: int, size: int) -> int:
    """How many whole segments of `size`, each half a segment after the one before, `length` frames or samples hold."""
    return max(0, (length - size) // (size // 2) + 1)


def cut(x: torch.Tensor, size: int, what: str) -> torch.Tensor:
    """Segments `[S, size, ...]` of `[T, ...]`, without a copy. What is left over at the end is not used.

    Raises:
        UserError: there is not enough for one; `what` says of which.
    """
    if len(x) < size:
        raise UserError(f'Synchformer sees segments of {size} {what}: this clip has only {len(x)}. Give a longer one.')
    return x.unfold(0, size, size // 2).movedim(-1, 1)


def encode_frames(network: VisualEncoder, frames: torch.Tensor, per_pass: int) -> torch.Tensor:
    """Features `[S, 8, D]` of frames uint8 `[T, 3, size, size]`, `per_pass` segments at a time."""
    dtype = network.cls_token.dtype
    passes = cut(frames, network.frames, 'frames').split(per_pass)
    return torch.cat([network(((part.float() / 255 - 0.5) / 0.5).to(dtype)) for part in passes])


class Synchformer(Extractor):
    """What moves and when, by the visual encoder of Synchformer: key `sync_features`.

    Args:
        weights (str or None): the published file, of which only the visual encoder is read; None for random weights,
            always the same.
        fps (float): frames per second; the encoder was trained on 25.
        size (int): pixels of a side of the square in the middle of the frames that it sees.
        dtype (str): of weights and activations, `float32` or `bfloat16`. Features are float32.
        segments (int): of 16 frames, in one pass through the network; more take more memory.
        network (dict or None): other dims, see `VisualEncoder`.
    """
    consumes = 'frames'

    def __init__(self, *, weights: str | Path | None = WEIGHTS, fps: float = FPS, size: int = 224,
                 dtype: str = 'float32', segments: int = 8, network: dict[str, tp.Any] | None = None):
        super().__init__()
        if segments < 1:
            raise UserError(f'segments: at least 1 in a pass was expected, got {segments}')
        self.fps, self.side, self.segments = fps, size, segments
        make = functools.partial(VisualEncoder, size=size, **network or {})
        if weights is None:
            with fork_rng(0, 'synchformer'):
                self.vfeat_extractor = make().eval().requires_grad_(False)
        else:
            self.vfeat_extractor = load_network(make, resolve_path(weights), VISUAL)
        self.to(dtype_named(dtype))

    def _count(self, duration: float) -> int:
        """Segments in so many seconds."""
        size = self.vfeat_extractor.frames
        count = segments_length(duration, tp.cast(float, self.fps), size=size, step=size // 2) // (size // 2)
        if count < 1:
            raise UserError(f'duration: {duration:g} s is too short for Synchformer, whose segments of {size} frames '
                            f'at {self.fps:g} frames per second take {size / tp.cast(float, self.fps):g} s')
        return count

    def frames_needed(self, duration: float) -> int:
        """Frames of all whole segments: 200 of 8 s."""
        size = self.vfeat_extractor.frames
        return size + (self._count(duration) - 1) * (size // 2)

    def spec(self, duration: float) -> Spec:
        """One key, `sync_features`: `[S * 8, D]`, eight features of each segment; 192 of 8 s."""
        network = self.vfeat_extractor
        return {'sync_features': ((self._count(duration) * network.features, network.dim), torch.float32)}

    def reduce(self, frames: torch.Tensor) -> torch.Tensor:
        """The square in the middle, of `size` pixels."""
        return crop_resized(frames, self.side)

    def prepare(self, item: torch.Tensor) -> torch.Tensor:
        """Frames uint8 `[T, 3, H, W]` to `[T, 3, size, size]`."""
        return self.reduce(item)

    @torch.no_grad()
    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Features `[B, S * 8, D]` of prepared frames uint8 `[B, T, 3, size, size]`.

        Each item goes through on its own, so that its features do not depend on what else is in the batch.
        """
        features = [encode_frames(self.vfeat_extractor, frames, self.segments).flatten(0, 1) for frames in batch]
        return {'sync_features': torch.stack(features).float()}


class SyncNetwork:
    """The whole network, for features of pictures and of sound and for the offset between them. Loaded when first used.

    Args:
        weights (str or None): the published file; None: as the registry finds it.
        device (str): where it runs; `auto` for a GPU if there is one.
        segments (int): of pictures in one pass.
        network (dict or None): other dims, see `SynchformerNetwork`.
    """

    def __init__(self, *, weights: str | Path | None = None, device: str | torch.device = 'auto',
                 segments: int = 8, network: dict[str, tp.Any] | None = None):
        self.weights, self.per_pass, self.dims = weights or WEIGHTS, segments, network or {}
        self.device = select_device(device)
        self._network: SynchformerNetwork | None = None

    @property
    def network(self) -> SynchformerNetwork:
        """The network, in evaluation mode. Raises `UserError` when there are no weights."""
        if self._network is None:
            made = load_network(lambda: SynchformerNetwork(**self.dims), resolve_path(self.weights))
            self._network = made.to(self.device)
            self._mel = SegmentMel().to(self.device)
        return self._network

    def release(self) -> None:
        """Let go of the network and its memory; it is loaded again when it is needed."""
        self._network = None
        if self.device.type == 'cuda':
            torch.cuda.empty_cache()

    @property
    def segments(self) -> int:
        """How many segments are compared at once."""
        return int(self.dims.get('segments', 14))

    @property
    def frames(self) -> int:
        """Of a segment of pictures."""
        return self.network.vfeat_extractor.frames

    def view(self, frames: torch.Tensor) -> torch.Tensor:
        """Reduce frames uint8 `[T, 3, H, W]` to what the network sees of them, `[T, 3, size, size]`."""
        return crop_resized(frames, self.network.vfeat_extractor.size)

    @torch.no_grad()
    def video_features(self, frames: torch.Tensor) -> torch.Tensor:
        """Features `[S, 8, D]` (float32, on the CPU) of frames uint8 `[T, 3, H, W]`, 25 a second."""
        frames = self.view(frames).to(self.device)
        return encode_frames(self.network.vfeat_extractor, frames, self.per_pass).float().cpu()

    @torch.no_grad()
    def audio_features(self, wav: torch.Tensor) -> torch.Tensor:
        """Features `[S, 6, D]` (float32, on the CPU) of a waveform `[T]` at 16 kHz."""
        network = self.network.afeat_extractor
        passes = cut(wav.to(self.device), SAMPLES, 'samples at 16 kHz').split(8 * self.per_pass)
        return torch.cat([network(self._mel(part)) for part in passes]).float().cpu()

    @torch.no_grad()
    def offset_logits(self, video: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """Logits `[B, classes]` (on the CPU) of features `[B, segments, 8, D]` and `[B, segments, 6, D]`."""
        return self.network(video.to(self.device), audio.to(self.device)).float().cpu()
