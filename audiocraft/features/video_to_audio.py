"""A trained video-to-audio model with all that it needs beside it: extractors and codec, but no solver."""

from pathlib import Path

import torch

from ..flow import samplers
from ..models.compression import CompressionModel
from ..models.loaders import find_checkpoint, load_compression_model, load_model
from ..models.mmaudio import MMAudio
from ..utils.config import from_yaml
from ..utils.errors import UserError
from ..utils.random import generator
from .controls import Conditions
from .online import OnlineFeatures


class VideoToAudio:
    """Sound for any video.

    Args:
        model (MMAudio): the flow network.
        codec (CompressionModel): decodes its latents.
        features (OnlineFeatures): the extractors that made the features of its training.
        guidance (float): guidance scale when none is asked for.
    """

    def __init__(self, model: MMAudio, codec: CompressionModel, features: OnlineFeatures, *, guidance: float = 4.5):
        self.model, self.codec, self.features, self.guidance = model.eval(), codec.eval(), features, guidance
        self.sample_rate, self.duration = codec.sample_rate, features.duration

    @classmethod
    def load(cls, reference: str | Path, *, codec: str | None = None, device: str = 'auto') -> 'VideoToAudio':
        """Load everything from an XP.

        Args:
            reference (str or Path): `//sig/SIG`, the folder of an XP, or a checkpoint.
            codec (str or None): the compression model; None: the one that made the training data.
            device (str): auto, cpu or cuda.
        Raises:
            UserError: no such XP, not a video-to-audio model, or its codec is not there.
        """
        device = ('cuda' if torch.cuda.is_available() else 'cpu') if device == 'auto' else device
        checkpoint = find_checkpoint(reference)
        model = load_model(checkpoint.path, device)
        facts = checkpoint.state.get('objects', checkpoint.state).get('facts')
        if not isinstance(model, MMAudio) or not facts:
            raise UserError(f'{reference} is not a video-to-audio model (it holds a {type(model).__name__}): give the '
                            'XP of a `solver=mmaudio/...`.')
        config = from_yaml(checkpoint.config)
        codec = codec or config.get('codec') or facts.get('codec')
        if codec is None:
            raise UserError(f'{reference} does not say which compression model decodes its latents: give --codec.')
        return cls(model, load_compression_model(codec, device), OnlineFeatures(facts, device=device),
                   guidance=config['sampling']['guidance'])

    @torch.no_grad()
    def __call__(self, video: str | Path, *, prompt: str = '', negative_prompt: str = '', seconds: float | None = None,
                 seed: int = 42, steps: int = 25, guidance: float | None = None, method: str = 'euler') -> torch.Tensor:
        """Generate sound `[C, T]` for the first `seconds` of a video.

        Raises:
            MediaError: the video cannot be read, or is shorter than that.
        """
        seconds = seconds or self.duration
        device = self.model.latent_mean.device
        features = self.features([Conditions('', self.features.read(video, seconds), prompt, '')], seconds)
        clip, sync, text = (features[key].to(device) for key in ('clip_features', 'sync_features', 'text_features'))
        samples = round(seconds * self.sample_rate)
        dim, length = self.codec.latent_shape(samples)
        self.model.update_seq_lengths(length, clip.shape[1], sync.shape[1])
        negative = self.features.text(negative_prompt)[None].to(device) if negative_prompt else None
        field = self.model.field(self.model.preprocess_conditions(clip, sync, text),
                                 self.model.empty_conditions(1, negative),
                                 self.guidance if guidance is None else guidance)
        noise = torch.randn(1, length, dim, generator=generator(seed, 'noise')).to(device)
        latents = self.model.unnormalize(samplers.integrate(field, noise, method=method, steps=steps))
        return self.codec.decode(latents.mT, num_samples=samples)[0].float().cpu()
