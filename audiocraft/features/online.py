"""Features of pictures and words that are not in a store, by the extractors that made it."""

import typing as tp
from pathlib import Path

import torch

from ..data.media import VIDEO_SUFFIXES
from ..data.samples import find_media
from ..data.store_dataset import Batch
from ..data.video import Video, read_video
from ..utils.config import rebuild
from ..utils.errors import UserError
from .base import Extractor, frame_rates, frame_size
from .controls import Conditions


class OnlineFeatures:
    """The extractors of frames and text that the facts of a store name, rebuilt.

    Args:
        facts (dict): of the store; see docs/EXTRACTION.md.
        device: where the extractors run.
    """

    def __init__(self, facts: dict[str, tp.Any], *, device: str | torch.device = 'cpu'):
        if not facts.get('extractors'):
            raise UserError('The store does not say which extractors made it (no facts file), so no other video or '
                            'caption can be used with this model.')
        self.duration = float(facts['duration'])
        extractors = [rebuild(identity['build_cfg']) for identity in facts['extractors'].values()
                      if identity['consumes'] in ('frames', 'text')]
        self.extractors: list[Extractor] = [x.eval().to(device) for x in extractors]

    def consuming(self, what: str) -> list[Extractor]:
        return [extractor for extractor in self.extractors if extractor.consumes == what]

    def read(self, path: str | Path, duration: float | None = None) -> Video:
        """The frames of the first `duration` seconds (default: of an item) at every rate that an extractor wants."""
        return read_video(path, fps=frame_rates(self.extractors), duration=duration or self.duration, audio=False,
                          size=frame_size(self.extractors))

    def find(self, folder: Path, clip_id: str) -> Video | None:
        """The frames of the video of an id in a folder of media; None if it is sound alone, or not there."""
        path = find_media(folder, clip_id)
        return self.read(path) if path is not None and path.suffix.lower() in VIDEO_SUFFIXES else None

    @torch.no_grad()
    def __call__(self, items: list[Conditions], duration: float | None = None) -> dict[str, torch.Tensor]:
        """Features `[B, ...]` by key, of the first `duration` seconds; those of frames only where all have a video."""
        features: dict[str, torch.Tensor] = {}
        for extractor in self.consuming('text'):
            features |= extractor(extractor.collate([extractor.prepare(item.caption) for item in items]))
        videos = [item.video for item in items]
        if all(video is not None for video in videos):
            for extractor in self.consuming('frames'):
                count = extractor.frames_needed(duration or self.duration)
                frames = [video.frames[extractor.fps][:count] for video in videos]  # type: ignore[union-attr,index]
                features |= extractor(extractor.collate([extractor.prepare(x) for x in frames]))
        return features

    def text(self, caption: str) -> torch.Tensor:
        """Features of one caption, `[N_text, D]`; the empty one stands for absent words."""
        return self([Conditions(id='', video=None, caption=caption, caption_of='')])['text_features'][0]

    def replace(self, batch: Batch, items: list[Conditions]) -> Batch:
        """The batch with the features of other pictures and words; what they do not have stays as it was."""
        features = {key: x.to(batch.device) for key, x in self(items).items()}
        rows = {key: x for key, x in batch.rows.items() if key not in features}
        return Batch(batch.ids, [item.caption for item in items], {**batch.tensors, **features}, rows,
                     {key: x for key, x in batch.lengths.items() if key not in features})
