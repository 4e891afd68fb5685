"""Features of pictures and words that are not in a store, by the extractors that made it."""

import collections
import inspect
import typing as tp
from pathlib import Path

import torch

from ..data.media import VIDEO_SUFFIXES
from ..data.samples import find_media
from ..data.store_dataset import Batch
from ..data.video import Video, read_video
from ..environment import resolve_path
from ..models.published import mel_vae
from ..utils.config import locate, rebuild
from ..utils.errors import UserError
from .base import Extractor, frame_rates, frame_size, frame_views
from .controls import Conditions
from .pipeline import device_of, to_device

IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp', '.bmp')
MOTION = 'sync_features'
"""The key of what moves in a video: a picture has none of it."""

VOCODERS = {mel_vae.reference(end['sample_rate']): [end['vocoder']] for end in mel_vae.FRONT_ENDS.values()}
"""What published codecs need besides, to decode."""

Keys = tp.Collection[str] | None
Features = dict[str, torch.Tensor]


class Still(Video):
    """A picture: one frame at every rate, for all of the time, and no motion."""


class OnlineFeatures:
    """The extractors of frames and text that the facts of a store name; each is loaded when it is first needed.

    Args:
        facts (dict): of the store; see docs/EXTRACTION.md.
        device: where the extractors run.
        captions (int): how many captions have their features kept, the last ones used.
    """

    def __init__(self, facts: dict[str, tp.Any], *, device: str | torch.device = 'cpu', captions: int = 256):
        if not facts.get('extractors'):
            raise UserError('The store does not say which extractors made it (no facts file), so no other video or '
                            'caption can be used with this model.')
        self.duration, self.device = float(facts['duration']), torch.device(device)
        self.identities: dict[str, dict[str, tp.Any]] = {
            name: identity for name, identity in facts['extractors'].items()
            if identity['consumes'] in ('frames', 'text')}
        self.captions = captions
        self._loaded: dict[str, Extractor] = {}
        self._known: collections.OrderedDict[str, Features] = collections.OrderedDict()

    # -- the extractors ---------------------------------------------------------------------------------------------

    def _names(self, what: str, keys: Keys = None) -> list[str]:
        return [name for name, identity in self.identities.items()
                if identity['consumes'] == what and (keys is None or not set(keys).isdisjoint(identity['keys']))]

    def extractor(self, name: str) -> Extractor:
        """The extractor that the facts call so, in evaluation mode, on the device."""
        if name not in self._loaded:
            self._loaded[name] = rebuild(self.identities[name]['build_cfg']).eval().to(self.device)
        return self._loaded[name]

    def consuming(self, what: str, keys: Keys = None) -> list[Extractor]:
        """The extractors of `frames` or `text`; of some keys only, if they are given."""
        return [self.extractor(name) for name in self._names(what, keys)]

    @property
    def rates(self) -> dict[str, float]:
        """Key -> frames per second that its extractor looks at."""
        return {key: float(x['fps']) for x in self.identities.values() if x.get('fps') for key in x['keys']}

    def build_cfgs(self, keys: Keys = None) -> list[dict[str, tp.Any]]:
        """How the extractors of some keys are built; of all of them without."""
        return [self.identities[name]['build_cfg'] for what in ('frames', 'text') for name in self._names(what, keys)]

    def release(self) -> None:
        """Let go of all extractors and of what they take in memory; they are loaded again when they are needed."""
        self._loaded.clear()
        if self.device.type == 'cuda':
            torch.cuda.empty_cache()

    # -- reading ----------------------------------------------------------------------------------------------------

    def read(self, path: str | Path, duration: float | None = None, keys: Keys = None) -> Video:
        """The frames of the first `duration` seconds (default: of an item) at every rate that an extractor wants.

        Args:
            path (str or Path): a video, or a picture (.png, .jpg, .jpeg, .webp, .bmp), which comes back as a `Still`.
            duration (float or None): seconds.
            keys (collection of str or None): read only what the extractors of these keys want.
        """
        models = self.consuming('frames', keys)
        wanted: dict[str, tp.Any] = dict(fps=frame_rates(models), size=frame_size(models), reduce=frame_views(models))
        if Path(path).suffix.lower() in IMAGE_SUFFIXES:
            frames = read_video(path, audio=False, **wanted).frames
            return Still(frames={rate: pictures[:1] for rate, pictures in frames.items()})
        return read_video(path, duration=duration or self.duration, audio=False, **wanted)

    def find(self, folder: Path, clip_id: str) -> Video | None:
        """The frames of the video of an id in a folder of media; None if it is sound alone, or not there."""
        path = find_media(folder, clip_id)
        return self.read(path) if path is not None and path.suffix.lower() in VIDEO_SUFFIXES else None

    # -- features ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def __call__(self, items: tp.Sequence[Conditions], duration: float | None = None, keys: Keys = None) -> Batch:
        """Features of the first `duration` seconds of some items, as a batch.

        Those of frames are there for the items that have a video (`rows` says which), those of motion not for a
        picture, those of text for all.

        Args:
            items (list of Conditions): what to look at.
            duration (float or None): seconds; None: of an item of the store.
            keys (collection of str or None): the features that are wanted; None: all.
        """
        batch = Batch([item.id for item in items], [item.caption for item in items], {})
        if self._names('text', keys):
            each = [self._of_text(item.caption) for item in items]
            batch.tensors |= {key: torch.stack([features[key] for features in each]) for key in each[0]}
        for name in self._names('frames', keys):
            moves = MOTION in self.identities[name]['keys']
            rows = [row for row, item in enumerate(items)
                    if item.video is not None and not (moves and isinstance(item.video, Still))]
            if not rows:
                continue
            videos = [tp.cast(Video, items[row].video) for row in rows]
            features = self._of_frames(self.extractor(name), videos, duration or self.duration)
            batch.tensors |= features
            if len(rows) < len(items):
                batch.rows |= {key: torch.tensor(rows, device=x.device) for key, x in features.items()}
        return batch

    def _of_frames(self, extractor: Extractor, videos: list[Video], duration: float) -> Features:
        """Features `[B, ...]` of videos and pictures."""
        assert extractor.fps is not None
        count = extractor.frames_needed(duration)
        if count < 1:
            raise UserError(f'{duration:g} s are too short: {type(extractor).__name__} sees no frame in them')
        frames = [video.frames[extractor.fps][:count] for video in videos]
        stills = [row for row, video in enumerate(videos) if isinstance(video, Still)]
        moving = [row for row in range(len(videos)) if row not in stills]
        made = [_run(extractor, [frames[row] for row in moving])] if moving else []
        if stills:  # one frame says it all: it takes its place at every time
            spec = extractor.spec(duration)
            one = _run(extractor, [frames[row] for row in stills])
            made.append({key: x.expand(len(stills), *spec[key][0]) for key, x in one.items()})
        order = torch.tensor([*moving, *stills]).argsort()
        return {key: torch.cat([x[key] for x in made])[order.to(made[0][key].device)] for key in made[0]}

    def _of_text(self, caption: str) -> Features:
        """Features of one caption. Each is computed alone, so that they do not depend on what else is asked for."""
        if caption not in self._known:
            made: Features = {}
            for extractor in self.consuming('text'):
                made |= {key: x[0] for key, x in _run(extractor, [caption]).items()}
            self._known[caption] = made
        self._known.move_to_end(caption)
        while len(self._known) > self.captions:
            self._known.popitem(last=False)
        return self._known[caption]

    @torch.no_grad()
    def text(self, caption: str) -> torch.Tensor:
        """Features of one caption, `[N_text, D]`; the empty one stands for absent words."""
        return self._of_text(caption)['text_features']

    def replace(self, batch: Batch, items: list[Conditions]) -> Batch:
        """The batch with the features of other pictures and words; what they do not have stays as it was."""
        made = self(items).to(batch.device)
        tensors, rows = dict(batch.tensors), dict(batch.rows)
        for key in made.tensors:
            tensors[key], rows[key] = _over(made, batch, key)
            if len(rows[key]) == len(batch):
                del rows[key]
        lengths = {key: x for key, x in batch.lengths.items() if key not in made.tensors}
        return Batch(batch.ids, made.captions, tensors, rows, lengths)


def _references(tree: tp.Any) -> tp.Iterator[str]:
    """All external weights that configs name, `//pretrained/NAME`, with those that are defaults of their classes."""
    if isinstance(tree, str) and tree.startswith('//pretrained/'):
        yield tree
    if isinstance(tree, dict):
        if str(tree.get('_target_', '')).startswith('audiocraft.'):
            parameters = inspect.signature(locate(tree['_target_'], ['audiocraft.'])).parameters
            yield from _references([x.default for name, x in parameters.items() if name not in tree])
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _references(value)


def require_weights(configs: tp.Iterable[tp.Any]) -> None:
    """Look for all external weights that some configs name, at once. Raises `UserError` with those that are missing."""
    missing = []
    for reference in dict.fromkeys(_references(list(configs))):
        try:
            resolve_path(reference)
        except UserError as error:
            missing.append(str(error))
    if missing:
        raise UserError('\n'.join(missing))


def _over(new: Batch, old: Batch, key: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The items of `new` that have a key, over those of `old`: a tensor, and its rows."""
    found: dict[int, torch.Tensor] = {}
    for batch in (old, new):
        if key in batch.tensors:
            rows = batch.rows.get(key, torch.arange(len(batch))).tolist()
            found |= dict(zip(rows, batch.tensors[key]))
    order = sorted(found)
    return torch.stack([found[row] for row in order]), torch.tensor(order, device=new.tensors[key].device)


def _run(extractor: Extractor, items: list[tp.Any]) -> Features:
    inputs = extractor.collate([extractor.prepare(item) for item in items])
    return extractor(to_device(inputs, device_of(extractor)))
