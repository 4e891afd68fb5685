"""A trained video-to-audio model with all that it needs beside it: extractors and codec, but no solver."""

import contextlib
import logging
import re
import typing as tp
from pathlib import Path

import torch
from torch import nn

from ..flow import samplers
from ..flow.guidance import Field, guided
from ..models.compression import CompressionModel
from ..models.loaders import find_checkpoint, load_compression_model, load_model
from ..models.mmaudio import SYNC_GROUP, Conditions, MMAudio
from ..models.published.mmaudio import GUIDANCE, published_facts
from ..modules.sequence import segments_length
from ..utils.checkpoint import Checkpoint
from ..utils.config import from_yaml
from ..utils.devices import select_device
from ..utils.errors import UserError
from ..utils.random import generator
from . import controls
from .base import dtype_named
from .online import MOTION, VOCODERS, OnlineFeatures, require_weights

logger = logging.getLogger(__name__)

PICTURE, TEXT = 'clip_features', 'text_features'
KEYS = (PICTURE, MOTION, TEXT)


class VideoToAudio:
    """Sound for a video, a picture, words, or any of them together.

    Args:
        model (MMAudio): the flow network.
        codec (CompressionModel): decodes its latents.
        features (OnlineFeatures): the extractors that made the features of its training.
        guidance (float): guidance scale when none is asked for.
        device (str): where everything runs.
        dtype (str): `float32`, or `bfloat16` for the matrices of the network: half the memory, and faster where the
            hardware has it. The path from noise to latents, the extractors and the codec stay in float32.
        keep_loaded (bool): False for small GPUs: extractors, network and codec are on the device one after another,
            and the extractors are loaded anew for each clip.
    """

    def __init__(self, model: MMAudio, codec: CompressionModel, features: OnlineFeatures, *, guidance: float = GUIDANCE,
                 device: str | torch.device = 'cpu', dtype: str = 'float32', keep_loaded: bool = True):
        self.model, self.codec, self.features, self.guidance = model.eval(), codec.eval(), features, guidance
        self.device, self.dtype, self.keep_loaded = torch.device(device), dtype_named(dtype), keep_loaded
        self.sample_rate, self.duration = codec.sample_rate, features.duration
        self._trained = model.clip_seq_len, model.sync_seq_len  # at that duration
        if self.dtype != torch.float32:
            _cast_matrices(self.model, self.dtype)
        if keep_loaded:
            self.model.to(self.device)

    @classmethod
    def load(cls, reference: str | Path, *, codec: str | None = None, device: str = 'auto', dtype: str = 'float32',
             keep_loaded: bool = True, keys: tp.Collection[str] = KEYS) -> 'VideoToAudio':
        """Load the network and its codec; extractors follow when they are needed.

        Args:
            reference (str or Path): `//sig/SIG`, the folder of an XP, a checkpoint, or published weights
                (`//pretrained/mmaudio/large_44k_v2`).
            codec (str or None): the compression model; None: the one that made the training data.
            device (str): `auto`, `cpu` or `cuda`.
            dtype (str), keep_loaded (bool): see the class.
            keys (collection of str): features that will be made of what is given: the external weights that they take
                are looked for at once.
        Raises:
            UserError: no such XP, not a video-to-audio model, or weights that are not there, all of them by name.
        """
        if (facts := _facts_of(reference)) is not None:  # so that all that is missing is said at once
            _require([reference, *OnlineFeatures(facts).build_cfgs(keys)], codec or facts['codec'])
        checkpoint = find_checkpoint(reference)
        facts = _check_facts(reference, checkpoint)
        config = from_yaml(checkpoint.config) if checkpoint.config else {}
        codec = codec or config.get('codec') or facts.get('codec')
        if codec is None:
            raise UserError(f'{reference} does not say which compression model decodes its latents: give --codec.')
        place = select_device(device)
        features = OnlineFeatures(facts, device=place)
        _require(features.build_cfgs(keys), codec)
        model, decoder = tp.cast(MMAudio, load_model(checkpoint.path)), load_compression_model(codec)
        rate = facts.get('sample_rate', decoder.sample_rate)
        if decoder.is_discrete or (decoder.latent_dim, decoder.sample_rate) != (model.latent_dim, rate):
            has = 'codes' if decoder.is_discrete else 'latents'
            raise UserError(f'{codec} does not decode what {reference} makes, latents of {model.latent_dim} dims for '
                            f'{rate} Hz: it has {has} of {decoder.latent_dim} dims for {decoder.sample_rate} Hz.')
        return cls(model, decoder, features, device=place, dtype=dtype, keep_loaded=keep_loaded,
                   guidance=(config.get('sampling') or {}).get('guidance', GUIDANCE))

    @torch.no_grad()
    def __call__(self, video: str | Path | None = None, *, image: str | Path | None = None, prompt: str = '',
                 negative_prompt: str = '', seconds: float | None = None, samples: int = 1, seed: int = 42,
                 steps: int = 25, guidance: float | None = None, method: str = 'euler', motion_only: bool = False
                 ) -> torch.Tensor:
        """Generate sound; what is not given is left to the model.

        Args:
            video (str, Path or None): its first `seconds` are seen.
            image (str, Path or None): a picture instead of a video: what is in it counts, and nothing moves.
            prompt (str): what it should sound like.
            negative_prompt (str): what it should not sound like.
            seconds (float or None): length, also beyond that of the training; None: that of the training.
            samples (int): how many sounds, of different noise.
            seed (int): of the noise: sample i of a seed is the same, however many there are.
            steps (int): of the sampler, where it takes any.
            guidance (float or None): how strongly to follow what is given; up to 1, the network runs once per step and
                the negative prompt has no meaning. None: the scale of the training config.
            method (str): one of `flow.samplers.METHODS`.
            motion_only (bool): see how things in the video move, not what they are.
        Returns:
            torch.Tensor: `[samples, C, T]` on the CPU, at `self.sample_rate`.
        Raises:
            MediaError: the video cannot be read, or is shorter than that.
            UserError: what is asked for makes no sense.
        """
        guidance = self.guidance if guidance is None else guidance
        seconds = self.duration if seconds is None else seconds
        self._check(video, image, negative_prompt, seconds, samples, steps, guidance, motion_only, method)
        features = self.extract(video, image, prompt, seconds, motion_only=motion_only)
        negative = self.features.text(negative_prompt)[None] if negative_prompt else None
        if not self.keep_loaded:
            self.features.release()
        length = round(seconds * self.sample_rate)
        with self._at_work(self.model):
            self._set_lengths(features, seconds, length)
            # The adaptive sampler looks at the error of all that it is given: alone, a sample is what it is by itself.
            together = 1 if method == 'adaptive' else samples
            field = self._field(features, negative, together, guidance)
            latents = torch.cat([samplers.integrate(field, noise, method=method, steps=steps)
                                 for noise in self._noise(seed, samples).split(together)])
            latents = self.model.unnormalize(latents)
        if not bool(latents.isfinite().all()):
            raise UserError('the network made values that are not finite' +
                            (': try float32' if self.dtype != torch.float32 else ': its weights may be damaged'))
        with self._at_work(self.codec):  # one by one: the waveform takes far more memory than the latents
            return torch.cat([self.codec.decode(x[None].mT, num_samples=length).float().cpu() for x in latents])

    def _check(self, video: tp.Any, image: tp.Any, negative_prompt: str, seconds: float, samples: int, steps: int,
               guidance: float, motion_only: bool, method: str) -> None:
        for name, value in (('seconds', seconds), ('samples', samples), ('steps', steps)):
            if not value > 0:
                raise UserError(f'{name} {value:g}: expected more than 0')
        if video is not None and image is not None:
            raise UserError('either a video or an image, not both')
        if motion_only and video is None:
            raise UserError('nothing moves without a video: motion_only goes with one')
        if negative_prompt and guidance <= 1:
            raise UserError(f'a negative prompt takes a guidance scale above 1, not {guidance:g}')
        if method not in samplers.METHODS:
            raise UserError(f'method {method}: expected one of {", ".join(samplers.METHODS)}')
        if method == 'adaptive' and self.dtype != torch.float32:
            raise UserError('the adaptive sampler measures errors that drown in bfloat16: take float32 with it, or '
                            'another method')

    def extract(self, video: str | Path | None, image: str | Path | None, prompt: str, seconds: float, *,
                motion_only: bool = False) -> dict[str, torch.Tensor]:
        """The features `[1, N, D]` of what is given, on the CPU."""
        pictures = video if image is None else image
        given = {PICTURE: pictures is not None and not motion_only, MOTION: video is not None, TEXT: bool(prompt)}
        keys = [key for key in KEYS if given[key]]
        frames = None if pictures is None else self.features.read(pictures, seconds, keys)
        batch = self.features([controls.Conditions('', frames, prompt, '')], seconds, keys)
        return {key: tensor.float().cpu() for key, tensor in batch.tensors.items() if key in keys}

    def _set_lengths(self, features: dict[str, torch.Tensor], seconds: float, samples: int) -> None:
        """Set the network to the lengths of this clip: those of the features, or what they would have been."""
        expected = self._lengths_without(seconds)
        clip, sync = (features[key].shape[1] if key in features else expected[key] for key in (PICTURE, MOTION))
        latent = self.codec.latent_shape(samples)[1]
        if min(clip, sync, latent) < 1:
            raise UserError(f'{seconds:g} s are too short for this model: there would be {clip} features of pictures, '
                            f'{sync} of motion and {latent} latents, and it needs one of each')
        self.model.update_seq_lengths(latent, clip, sync)

    def _lengths_without(self, seconds: float) -> dict[str, int]:
        """How many features of pictures and motion a video of this length would have, from those of the training.

        Where there is no video its extractors are not loaded, so they cannot be asked. The learned nulls, which stand
        there instead, are the same at all times.
        """
        clip, sync = self._trained
        ratio, rates = seconds / self.duration, self.features.rates
        if sync == segments_length(self.duration, rates.get(MOTION, 25.)):
            sync = segments_length(seconds, rates.get(MOTION, 25.))
        else:
            sync = int(sync * ratio + 1e-6) // SYNC_GROUP * SYNC_GROUP
        return {PICTURE: round(clip * ratio), MOTION: sync}

    def _field(self, features: dict[str, torch.Tensor], negative: torch.Tensor | None, samples: int,
               guidance: float) -> Field:
        """The velocity of `samples` sounds of the same conditions, which are computed once; guidance in one call."""
        model = self.model
        null = {PICTURE: model.empty_clip_feat.expand(model.clip_seq_len, -1),
                MOTION: model.empty_sync_feat.expand(model.sync_seq_len, -1), TEXT: model.empty_string_feat}
        given = [features[key].to(self.device) if key in features else null[key][None] for key in KEYS]
        with self._autocast():
            conditions: Conditions = model.preprocess_conditions(*given).expand(samples)
            if guidance > 1:
                negative = None if negative is None else negative.to(self.device)
                conditions = conditions.cat(model.empty_conditions(1, negative).expand(samples))

        def velocity(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            with self._autocast():
                return model.predict_flow(x, t, conditions).float()
        return guided(velocity, guidance) if guidance > 1 else velocity

    def _noise(self, seed: int, samples: int) -> torch.Tensor:
        """Where the sounds begin, `[samples, N, D]`: each sample a function of the seed and its number."""
        shape = self.model.latent_seq_len, self.model.latent_dim
        draws = [torch.randn(shape, generator=generator(seed, 'noise', number)) for number in range(samples)]
        return torch.stack(draws).to(self.device)

    def _autocast(self) -> tp.ContextManager[tp.Any]:
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    @contextlib.contextmanager
    def _at_work(self, module: nn.Module) -> tp.Iterator[None]:
        """Within the context a model is on the device; afterwards too, unless memory matters."""
        module.to(self.device)
        try:
            yield
        finally:
            if not self.keep_loaded and self.device.type == 'cuda':
                module.cpu()
                torch.cuda.empty_cache()


def _require(configs: tp.Iterable[tp.Any], codec: str) -> None:
    """See `require_weights`; with those of the codec and its vocoder."""
    require_weights([*configs, codec, *VOCODERS.get(codec, ())])


def _facts_of(reference: str | Path) -> dict[str, tp.Any] | None:
    """The facts behind the name of a published network, whether or not it is on this machine."""
    found = re.fullmatch(r'//pretrained/mmaudio/\w+_(16|44)k(_v2)?', str(reference))
    return published_facts(16_000 if found[1] == '16' else 44_100) if found else None


def _check_facts(reference: str | Path, checkpoint: Checkpoint) -> dict[str, tp.Any]:
    """The facts of the training data that a checkpoint carries, if it is one of a video-to-audio model."""
    build_cfg = (checkpoint.state.get('models') or {}).get('model') or {}
    kind = str(build_cfg.get('_target_', 'nothing that can be rebuilt')).rsplit('.', 1)[-1]
    if kind != MMAudio.__name__:
        raise UserError(f'{reference} is not a video-to-audio model (it holds a {kind}): give the XP of a '
                        '`solver=mmaudio/...`.')
    facts = checkpoint.state.get('objects', checkpoint.state).get('facts')
    if not facts:
        raise UserError(f'{reference} does not say what the features of its training were made with: give the XP, or '
                        'the file of published weights.')
    return facts


def _cast_matrices(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep the weights of matrices in the type to which autocast would bring them at every call anyway.

    All else stays as it is: times, statistics and norms lose too much in 8 bits.
    """
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d)):
            module.to(dtype)
