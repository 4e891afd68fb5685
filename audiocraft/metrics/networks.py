"""Trained networks that metrics take features from: loaded when first needed, run once for each clip.

Their weights are found, never downloaded. Where a file or a package is missing, `missing` says what to do, and the
metrics that need the network give null with that reason. Each is asked for through a function (`panns(...)`), so that
all metrics of a run share one.
"""

import contextlib
import functools
import importlib.util
import io
import logging
import typing as tp
import warnings
import weakref
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from ..data.audio import resample
from ..data.media import VIDEO_SUFFIXES, MediaError
from ..data.samples import Clip
from ..environment import resolve_path
from ..features.base import View, weights_sha256
from ..features.nets import panns as panns_
from ..features.nets import vggish as vggish_
from ..models.published.files import load_strict, read_state
from ..utils.devices import select_device
from ..utils.errors import UserError
from ..utils.files import sha256_of
from .base import sound_of

logger = logging.getLogger(__name__)

Features = dict[str, torch.Tensor]
"""What a network says of one clip, by name."""
MISSING_WEIGHTS, MISSING_PACKAGE = 'skipped_missing_weights: ', 'skipped_missing_package: '


def mono(clip: Clip, sample_rate: int, seconds: float | None = None) -> torch.Tensor:
    """The clip as av-benchmark loads it, `[T]` float32: mean of the channels, less its mean, resampled, cut."""
    wav = sound_of(clip)
    wav = resample(wav - wav.mean(), clip.sample_rate, sample_rate) if len(wav) else wav
    return wav if seconds is None else wav[:round(seconds * sample_rate)]


def pictures_of(clip: Clip, fps: float, seconds: float | None = None, view: View | None = None) -> torch.Tensor | None:
    """The pictures of a clip's `media` uint8 `[T, 3, H, W]`, of so many seconds, or as many as there are.

    Args:
        clip (Clip): whose video it is.
        fps (float): pictures per second.
        seconds (float or None): None: as long as its sound.
        view (callable or None): what is done to each picture as it is decoded.
    Returns:
        torch.Tensor or None: None where there are no pictures, or they cannot be used, which is logged.
    """
    if clip.media is None or clip.media.suffix.lower() not in VIDEO_SUFFIXES:
        return None
    from ..data.video import read_video  # needs PyAV, which sound alone does not
    read = functools.partial(read_video, clip.media, fps, audio=False, reduce={fps: view})
    try:
        try:
            return read(duration=seconds or clip.audio.shape[-1] / clip.sample_rate or None).frames[fps]
        except MediaError as error:
            if error.reason != 'too short':
                raise
            return read().frames[fps]
    except MediaError as error:
        logger.warning('%s: its pictures cannot be used: %s', clip.id, error)
        return None


def batches(wavs: tp.Sequence[torch.Tensor], size: int) -> tp.Iterator[tuple[list[int], torch.Tensor]]:
    """Yield (places, `[B, ...]`) of tensors, those of one shape together."""
    by_shape: dict[torch.Size, list[int]] = {}
    for place, wav in enumerate(wavs):
        by_shape.setdefault(wav.shape, []).append(place)
    for places in by_shape.values():
        for start in range(0, len(places), size):
            chosen = places[start:start + size]
            yield chosen, torch.stack([wavs[place] for place in chosen])


@functools.cache
def _file_digest(path: Path, size: int, changed: int) -> str:
    return sha256_of(path)  # size and time are part of the key only


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning, the first time only."""
    logger.warning(message)


class _PerClip:
    """Features that are kept as long as their clip."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, str], tuple[weakref.ref, Features | None]] = {}

    def __contains__(self, item: tuple[Clip, str]) -> bool:
        entry = self._kept.get((id(item[0]), item[1]))
        return entry is not None and entry[0]() is item[0]

    def __getitem__(self, item: tuple[Clip, str]) -> Features | None:
        return self._kept[id(item[0]), item[1]][1]

    def __setitem__(self, item: tuple[Clip, str], features: Features | None) -> None:
        key = id(item[0]), item[1]
        self._kept[key] = weakref.ref(item[0], lambda _: self._kept.pop(key, None)), features


class FeatureNetwork:
    """A trained network that hears, sees or reads a clip.

    What it can be asked for are its `sources`, each a method of that name that takes clips and gives the features of
    each, or None where there is nothing to look at (no caption, no pictures).

    Args:
        weights (str or None): path or `//pretrained/NAME`; None: the published ones of the registry.
        model (nn.Module or None): a network to be used as it is, in place of weights.
        device (str): `auto`, `cpu` or `cuda`. It is there only while features are made, until `rest`.
        batch_size (int): clips that go through it together.
        seconds (float or None): of each clip that are looked at; None for all.
        options (dict or None): arguments of the network, where it is not the published one.

    Attributes:
        name (str): as the files of its features are named by.
        published (str): its weights in the registry.
        package (tuple): module that it needs, and what pip calls it; None if it needs none.
    """
    name: tp.ClassVar[str]
    published: tp.ClassVar[str]
    package: tp.ClassVar[tuple[str, str] | None] = None
    sources: tp.ClassVar[tuple[str, ...]] = ('audio',)

    def __init__(self, *, weights: str | None = None, model: nn.Module | None = None, device: str = 'auto',
                 batch_size: int = 16, seconds: float | None = None, options: dict[str, tp.Any] | None = None):
        self.weights, self.device, self.batch_size = weights, select_device(device), batch_size
        self.seconds, self.options = seconds, dict(options or {})
        self.model = None if model is None else model.eval()
        self.given = model is not None
        self._features = _PerClip()

    # -- what there is ----------------------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The file of the weights. Raises `UserError` when it is not there."""
        path = resolve_path(self.weights or f'//pretrained/{self.published}')
        if not path.exists():
            raise UserError(f'there is nothing at {path}, which should be the weights "{self.published}"')
        return path

    @property
    def missing(self) -> str:
        """Why it cannot be run, and what to do; '' if it can."""
        if self.given:
            return ''
        if self.package and importlib.util.find_spec(self.package[0]) is None:
            return f'{MISSING_PACKAGE}{self.name} needs the package {self.package[0]}: {self.package[1]}'
        try:
            self.path  # noqa: B018
        except UserError as error:
            return f'{MISSING_WEIGHTS}{error}'
        return ''

    @property
    def sha256(self) -> str:
        """Of the file of the weights; of a given network, of its tensors."""
        if self.given:
            assert self.model is not None
            return weights_sha256(self.model)
        path = self.path if self.path.is_file() else next(iter(sorted(self.path.glob('*.safetensors'))), self.path)
        return _file_digest(path, path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else ''

    # -- running ----------------------------------------------------------------------------------------------------

    def load(self) -> nn.Module:
        """Build the network and load its weights."""
        raise NotImplementedError(f'{type(self).__name__} has no load()')

    @torch.no_grad()
    def __call__(self, clips: tp.Sequence[Clip], source: str = 'audio') -> list[Features | None]:
        """The features of each clip, on the CPU. What was asked for before of the same clip is not made again."""
        todo = list({id(clip): clip for clip in clips if (clip, source) not in self._features}.values())
        if todo:
            for clip, features in zip(todo, getattr(self, source)(todo), strict=True):
                self._features[clip, source] = features
        return [self._features[clip, source] for clip in clips]

    def ready(self) -> nn.Module:
        """The network, on its device."""
        if self.model is None:
            self.model = self.load().eval()
        return self.model.to(self.device)

    def rest(self) -> None:
        """Clear the device."""
        if self.model is not None and self.device.type != 'cpu':
            self.model.to('cpu')

    def audio(self, clips: tp.Sequence[Clip]) -> list[Features | None]:
        """Features of the sound."""
        raise NotImplementedError(f'{type(self).__name__} cannot hear')

    def outputs(self, inputs: tp.Sequence[torch.Tensor],
                function: tp.Callable[[torch.Tensor], Features]) -> list[Features | None]:
        """The features of each input, by a function of batches of inputs of one shape."""
        found: list[Features | None] = [None] * len(inputs)
        for places, batch in batches(inputs, self.batch_size):
            made = {key: value.float().cpu() for key, value in function(batch.to(self.device)).items()}
            for row, place in enumerate(places):
                found[place] = {key: value[row].clone() for key, value in made.items()}
        return found


class Panns(FeatureNetwork):
    """Cnn14 of PANNs at 16 kHz: `2048` (the embedding), `logits`, `clipwise_output`; options of `nets.panns.Cnn14`."""
    name, published = 'panns', 'panns_cnn14_16k'

    def load(self) -> nn.Module:
        return load_strict(panns_.Cnn14(**self.options), read_state(self.path), self.path)

    def audio(self, clips: tp.Sequence[Clip]) -> list[Features | None]:
        model = tp.cast(panns_.Cnn14, self.ready())
        wavs = [mono(clip, model.sample_rate, self.seconds) for clip in clips]
        return self.outputs([F.pad(wav, (0, max(0, model.min_samples - len(wav)))) for wav in wavs], model)


class Vggish(FeatureNetwork):
    """VGGish at 16 kHz: `embedding` `[windows, 128]`, one each 0.96 s; options of `nets.vggish.VGGish`.

    What is shorter than a window is filled up with silence to one.
    """
    name, published = 'vggish', 'vggish'

    def load(self) -> nn.Module:
        return load_strict(vggish_.VGGish(**self.options), read_state(self.path), self.path)

    def audio(self, clips: tp.Sequence[Clip]) -> list[Features | None]:
        model = tp.cast(vggish_.VGGish, self.ready())
        wavs = [mono(clip, vggish_.SAMPLE_RATE, self.seconds) for clip in clips]
        windows = [model.examples(F.pad(wav, (0, max(0, model.min_samples - len(wav))))) for wav in wavs]
        return self.outputs(windows, lambda batch: {
            'embedding': model(batch.flatten(0, 1)).unflatten(0, batch.shape[:2])})


class Passt(FeatureNetwork):
    """PaSST (Koutini et al., 2021) by the package hear21passt, at 32 kHz: `embedding` (768) and `logits` (527).

    Its input is 10 s, filled up with zeros. `options`: `arch`, the name that the package gives to the network.
    """
    name, published = 'passt', 'passt'
    package = ('hear21passt', "pip install 'audiocraft[eval]' (or hear21passt)")
    sample_rate, samples = 32_000, 320_000

    def load(self) -> nn.Module:
        # The package prints what it does, and would download the weights if it were not told that there are none.
        with contextlib.redirect_stdout(io.StringIO()):
            from hear21passt.models.passt import get_model
            from hear21passt.models.preprocess import AugmentMelSTFT
            from hear21passt.wrapper import PasstBasicWrapper
            net = get_model(**{'arch': 'passt_s_swa_p16_128_ap476', **self.options}, pretrained=False)
            mel = AugmentMelSTFT(n_mels=128, sr=self.sample_rate, win_length=800, hopsize=320, n_fft=1024, freqm=48,
                                 timem=192, htk=False, fmin=0., fmax=None, norm=1, fmin_aug_range=10,
                                 fmax_aug_range=2000)
        load_strict(net, read_state(self.path), self.path)
        return PasstBasicWrapper(mel=mel, net=net, mode='all')

    def audio(self, clips: tp.Sequence[Clip]) -> list[Features | None]:
        model: tp.Any = self.ready()
        wavs = [mono(clip, self.sample_rate, self.seconds)[:self.samples] for clip in clips]
        padded = [F.pad(wav, (0, self.samples - len(wav))) for wav in wavs]

        def features(batch: torch.Tensor) -> Features:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter('ignore')  # the package uses old names of torch
                both = model(batch)
            classes = both.shape[1] - model.net.embed_dim
            return {'logits': both[:, :classes], 'embedding': both[:, classes:]}
        return self.outputs(padded, features)


_N = tp.TypeVar('_N', bound=FeatureNetwork)
_alive: 'weakref.WeakValueDictionary[str, FeatureNetwork]' = weakref.WeakValueDictionary()


def shared(kind: type[_N], **options: tp.Any) -> _N:
    """The network of these options: the one that is in use, else a new one."""
    key = f'{kind.__module__}.{kind.__name__} {sorted(options.items())!r}'
    network = _alive.get(key)
    if network is None:
        network = _alive[key] = kind(**options)
    return tp.cast(_N, network)


def panns(*, weights: str | None = None, device: str = 'auto', batch_size: int = 16,
          options: dict[str, tp.Any] | None = None) -> Panns:
    """The shared `Panns` of these arguments (see `FeatureNetwork`)."""
    return shared(Panns, weights=weights, device=device, batch_size=batch_size, options=options)


def vggish(*, weights: str | None = None, device: str = 'auto', batch_size: int = 16,
           options: dict[str, tp.Any] | None = None) -> Vggish:
    """The shared `Vggish` of these arguments (see `FeatureNetwork`)."""
    return shared(Vggish, weights=weights, device=device, batch_size=batch_size, options=options)


def passt(*, weights: str | None = None, device: str = 'auto', batch_size: int = 16,
          options: dict[str, tp.Any] | None = None) -> Passt:
    """The shared `Passt` of these arguments (see `FeatureNetwork`)."""
    return shared(Passt, weights=weights, device=device, batch_size=batch_size, options=options)
