"""DeSync: how far sound and pictures are apart in time, after Synchformer (Iashin et al., 2024)."""

import typing as tp
from pathlib import Path

import torch

from ..data.samples import Clip
from ..features.synchformer import FPS, SAMPLE_RATE, SAMPLES, SyncNetwork, count_segments
from .base import Results, unavailable
from .network_metric import NetworkMetric, Tensors
from .networks import FeatureNetwork, Features, mono, pictures_of, shared
from .pairs import NO_PAIRS


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


class SyncFeatures(FeatureNetwork):
    """Synchformer: `embedding` of the sound `[S, 6, D]` and of the pictures `[S, 8, D]`, one for each of S segments.

    It is in memory only while features are made or compared, until `rest`. `batch_size` is that of segments of
    pictures; `options`: those of `SynchformerNetwork`, where it is not the published one.
    """
    name, published, sources = 'synchformer', 'synchformer', ('audio', 'video')

    def __init__(self, *, weights: str | None = None, device: str = 'auto', batch_size: int = 8,
                 seconds: float | None = None, options: dict[str, tp.Any] | None = None):
        super().__init__(weights=weights, device=device, batch_size=batch_size, seconds=seconds, options=options)
        self.sync = SyncNetwork(weights=weights, device=self.device, segments=batch_size, network=options)

    def rest(self) -> None:
        """See `FeatureNetwork.rest`."""
        self.sync.release()

    def audio(self, clips: tp.Sequence[Clip]) -> list[Features | None]:
        """Features of the sound; None where it is shorter than a segment."""
        wavs = [mono(clip, SAMPLE_RATE, self.seconds) for clip in clips]
        return [{'embedding': self.sync.audio_features(wav)} if count_segments(len(wav), SAMPLES) else None
                for wav in wavs]

    def video(self, clips: tp.Sequence[Clip]) -> list[Features | None]:
        """Features of the pictures of `media`, as long as the sound or as there are; None of less than a segment."""
        return [self._video(clip) for clip in clips]

    def _video(self, clip: Clip) -> Features | None:
        frames = pictures_of(clip, FPS, self.seconds, self.sync.view)
        if frames is None or not count_segments(len(frames), self.sync.frames):
            return None
        return {'embedding': self.sync.video_features(frames)}


def synchformer(*, weights: str | None = None, device: str = 'auto', batch_size: int = 8,
                options: dict[str, tp.Any] | None = None) -> SyncFeatures:
    """The shared `SyncFeatures` of these arguments (see `FeatureNetwork`)."""
    return shared(SyncFeatures, weights=weights, device=device, batch_size=batch_size, options=options)


class DeSync(NetworkMetric):
    """The offset between the generated sound and the video of the true clip that Synchformer sees, in seconds.

    Sound and video are compared from their beginnings, 14 segments (4.8 s) at a time: the first and the last ones of
    what both have, which all count alike. Gives `desync`, the mean over them, from 0 (none) to 2; `desync_n`, the
    number of clips; `desync_weights`, the sha256 of the weights; and, where clips were left out, `desync_unpaired`
    (without a true video) and `desync_too_short`.

    Args:
        weights (str or None): the published file; None: as the registry finds it.
        device (str): `auto`, `cpu` or `cuda`.
        segments (int): segments of pictures in one pass.
        network (dict or None): other dims, see `SynchformerNetwork`.
        name, cache, names, generated_cache: see `NetworkMetric`.
    """

    def __init__(self, *, weights: str | Path | None = None, device: str = 'auto', segments: int = 8,
                 network: dict[str, tp.Any] | None = None, name: str = 'desync', cache: str | None = None,
                 names: str = 'exact', generated_cache: str | None = None):
        features = synchformer(weights=str(weights) if weights else None, device=device, batch_size=segments,
                               options=network)
        self.sync = features.sync
        super().__init__(network=features, name=name, cache=cache, names=names, true_source='video',
                         generated_cache=generated_cache)

    def score(self, generated: Tensors, true: Tensors) -> Results:
        """See `NetworkMetric.score`: of sound `[S, 6, D]` and video `[S', 8, D]`."""
        try:
            found = [windows_logits(self.sync, *pair) for pair in zip(true, generated, strict=True)]
        finally:
            self.sync.release()
        logits = [one for one in found if one is not None]
        short = len(found) - len(logits)
        results: Results = {f'{self.name}_too_short': float(short)} if short else {}
        if not logits:
            return results | unavailable(self.name, f'sound or video of all clips is shorter than {self._least}')
        return results | {self.name: desync(logits), f'{self.name}_n': float(len(logits)),
                          f'{self.name}_weights': self.network.sha256}

    @property
    def missing(self) -> str:
        """See `NetworkMetric.missing`; offsets need the weights also where all features come from caches."""
        return self.network.missing or super().missing

    @property
    def _least(self) -> str:
        segments = self.sync.segments
        return f'{segments} segments ({(segments + 1) / 2 * SAMPLES / SAMPLE_RATE:g} s)'

    def compute(self) -> Results:
        """See `Metric.compute`."""
        results = super().compute()
        if results.get(f'{self.name}_reason') == NO_PAIRS:
            results |= unavailable(self.name, 'no generated clip has a true one with a video, both of at least '
                                              f'{self._least}')
        return results


def windows_logits(sync: SyncNetwork, video: torch.Tensor, audio: torch.Tensor) -> torch.Tensor | None:
    """Logits `[2, classes]` of the first and the last window of `[S, 8, D]` and `[S', 6, D]`; None if one is short."""
    count, window = min(len(video), len(audio)), sync.segments
    if count < window:
        return None
    ends = slice(0, window), slice(count - window, count)
    return sync.offset_logits(*(torch.stack([x[end] for end in ends]) for x in (video, audio)))
