"""Controls: what is changed in the input of a model to learn what its output really follows.

A control takes the frames and captions of a whole evaluation set and returns changed ones; a score that stays high
under a control that removes the information shows that the score did not come from it.
"""

import dataclasses
import random
import typing as tp

import torch

from ..data.video import Video


@dataclasses.dataclass
class Conditions:
    """What a clip is generated from: its pictures and words, and the clip whose words they are."""

    id: str
    video: Video | None
    caption: str
    caption_of: str  # id of the clip that the caption belongs to


class Control:
    """Changes the conditions of every clip; `removes` names what a fair score must lose: 'time', 'caption' or ''."""

    def __call__(self, items: list[Conditions]) -> list[Conditions]:
        return [self.change(item) for item in items]

    def change(self, item: Conditions) -> Conditions:
        raise NotImplementedError(f'{type(self).__name__} changes no single clip')


def with_frames(video: Video | None, change: tp.Callable[[torch.Tensor, float], torch.Tensor]) -> Video | None:
    """A copy of `video` whose frames `[T, 3, H, W]` at each rate went through `change(frames, fps)`."""
    if video is None:
        return None
    return dataclasses.replace(video, frames={fps: change(frames, fps) for fps, frames in video.frames.items()})


class Frozen(Control):
    """The first frame for the whole clip: the picture is there, its motion is not."""

    def change(self, item: Conditions) -> Conditions:
        return dataclasses.replace(item, video=with_frames(item.video, lambda x, fps: x[:1].expand_as(x).contiguous()))


class Shifted(Control):
    """Frames late by `seconds` (the end wraps to the start): the motion is there, at the wrong time."""

    def __init__(self, *, seconds: float = 0.5):
        self.seconds = seconds

    def change(self, item: Conditions) -> Conditions:
        shift = lambda x, fps: torch.roll(x, round(self.seconds * fps), dims=0)  # noqa: E731
        return dataclasses.replace(item, video=with_frames(item.video, shift))


class NeutralCaption(Control):
    """The same words for every clip: only the picture tells the kind."""

    def __init__(self, *, text: str = 'something makes a sound'):
        self.text = text

    def change(self, item: Conditions) -> Conditions:
        return dataclasses.replace(item, caption=self.text, caption_of='')


class SwappedCaption(Control):
    """Every clip gets the words of another one (a seeded shuffle in which no clip keeps its own)."""

    def __init__(self, *, seed: int = 0):
        self.seed = seed

    def __call__(self, items: list[Conditions]) -> list[Conditions]:
        order = list(range(len(items)))
        random.Random(self.seed).shuffle(order)
        donor = {a: items[b] for a, b in zip(order, order[1:] + order[:1])}
        return [dataclasses.replace(x, caption=donor[i].caption, caption_of=donor[i].id) for i, x in enumerate(items)]
