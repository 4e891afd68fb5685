"""The interface of frozen feature extractors."""
import hashlib
import typing as tp

import torch
from torch import nn

from ..utils.errors import UserError

# Feature key -> (shape of one item, dtype).
Spec = dict[str, tuple[tuple[int, ...], torch.dtype]]
# Frames uint8 [T, 3, H, W] -> frames uint8 [T, 3, h, w], each on its own.
View = tp.Callable[[torch.Tensor], torch.Tensor]

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16}


def dtype_named(name: str) -> torch.dtype:
    """The dtype that models compute in, by its name: `float32` or `bfloat16`."""
    if name not in DTYPES:
        raise UserError(f'dtype={name} is unknown, expected one of {", ".join(DTYPES)}')
    return DTYPES[name]


def weights_sha256(module: nn.Module) -> str:
    """Return the sha256 of a module's parameters and buffers (names, dtypes, shapes and bytes)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class Extractor(nn.Module):
    """A frozen map from one kind of input to named features.

    An item goes through `prepare` on its own (in the reader threads), then a batch of items through the call.
    Everything is a function of the item alone, so that batches may be cut anywhere.

    Attributes:
        consumes (str): `audio`, `frames` or `text`.
        fps (float or None): frames per second that it wants, with `consumes == 'frames'` only.
        size (tuple of int or None): (height, width), in pixels, to which frames may be squashed while they are
            decoded; None for frames as they are.
        timed (tuple of str): keys whose first dim is time, in proportion to the length of the audio: ragged where the
            items of a store differ in length.
    """
    consumes: tp.ClassVar[str]
    fps: float | None = None
    size: tuple[int, int] | None = None
    timed: tuple[str, ...] = ()

    def spec(self, duration: float) -> Spec:
        """Return the keys with the shape and dtype of one item of `duration` seconds."""
        raise NotImplementedError

    def frames_needed(self, duration: float) -> int:
        """Return how many frames of `fps` an item of `duration` seconds must have."""
        assert self.fps is not None, 'only extractors of frames need frames'
        return round(duration * self.fps)

    def reduce(self, frames: torch.Tensor) -> torch.Tensor:
        """Reduce uint8 frames `[T, 3, H, W]` to uint8 frames `[T, 3, h, w]`, each on its own, as `prepare` begins.

        Readers may do it to each picture right after it is decoded, so that a large video takes no gigabytes.
        Therefore `prepare` must call it, and frames that are reduced already must come back unchanged.
        """
        return frames

    def prepare(self, item: tp.Any) -> tp.Any:
        """Bring one item into the form that batches are made of (resizing, tokenising), on the CPU.

        Args:
            item: audio `[C, T]`, frames uint8 `[T, 3, H, W]`, or a str.
        """
        return item

    def collate(self, items: list[tp.Any]) -> tp.Any:
        """Make a batch of prepared items."""
        return torch.stack(items) if isinstance(items[0], torch.Tensor) else items

    def forward(self, batch: tp.Any) -> dict[str, torch.Tensor]:
        """Return the features of a batch, each `[B, *shape]` with the shapes of `spec`."""
        raise NotImplementedError

    def identity(self) -> dict[str, tp.Any]:
        """Return plain data that tells this extractor from any other: its config and the sha256 of its weights."""
        return {'build_cfg': getattr(self, 'build_cfg', {'_target_': f'{type(self).__module__}.{type(self).__name__}'}),
                'fps': self.fps, 'weights_sha256': self.weights_sha256()}

    def weights_sha256(self) -> str:
        """Return the sha256 of the weights; what is large may remember it."""
        return weights_sha256(self)


def frame_rates(extractors: tp.Iterable[Extractor]) -> list[float]:
    """Return the frame rates that these extractors ask for."""
    return sorted({float(x.fps) for x in extractors if x.consumes == 'frames' and x.fps})


def frame_size(extractors: tp.Iterable[Extractor]) -> tuple[int, int] | None:
    """Return what frames are reduced to while they are decoded: the size on which all extractors agree, or None."""
    sizes = {extractor.size for extractor in extractors if extractor.consumes == 'frames'}
    return sizes.pop() if len(sizes) == 1 else None


def frame_views(extractors: tp.Iterable[Extractor]) -> dict[float, View | None]:
    """Return for each frame rate what may be done to its pictures as they are decoded: see `Extractor.reduce`.

    None where there is nothing to do, and where several extractors share a rate: each gets the pictures as they are.
    """
    models = [extractor for extractor in extractors if extractor.consumes == 'frames' and extractor.fps]
    views: dict[float, View | None] = {}
    for rate in frame_rates(models):
        sharing = [model for model in models if model.fps == rate]
        alone = len(sharing) == 1 and type(sharing[0]).reduce is not Extractor.reduce
        views[rate] = sharing[0].reduce if alone else None
    return views
