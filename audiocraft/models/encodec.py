"""EnCodec: a convolutional auto-encoder of waveforms around a quantizer (Défossez et al. 2022, arXiv:2210.13438).

With a residual vector quantizer it gives codes; with a Gaussian bottleneck it is the continuous codec that MelodyFlow
stands on (Le Lan et al. 2024, arXiv:2407.03648).
"""
import itertools
import math
import typing as tp

import torch
from torch.nn import functional as F

from ..modules.data_init import init_from_data
from ..modules.seanet import SEANetDecoder, SEANetEncoder
from ..quantization.base import Codes, Encoded, Posterior, Quantizer
from ..utils.random import Draws
from .compression import CompressionModel, Reconstruction


class EncodecModel(CompressionModel):
    """SEANet encoder, quantizer, SEANet decoder.

    Args:
        sample_rate (int): of the waveforms, in Hz.
        channels (int): of the waveforms.
        causal (bool): no frame depends on later samples, so that audio can be streamed.
        renormalize (bool): divide each item by its volume before the encoder, multiply after the decoder; the volume
            is then part of what is encoded. Not with `causal`.
        data_init (bool): before training, scale the layers to the data (`init_from_data`): small trainings save
            hundreds of updates.
        seanet (dict): arguments of both `SEANetEncoder` and `SEANetDecoder` but `channels`, `causal` and `dimension`;
            `encoder` and `decoder` in it are dicts of what only one of them gets.
        quantizer (Quantizer): the bottleneck; its dims are those of encoder and decoder.
    Attributes:
        frame_rate (float): sample rate over the product of the strides.
    """

    def __init__(self, *, sample_rate: int, channels: int = 1, causal: bool = False, renormalize: bool = False,
                 data_init: bool = False, seanet: dict[str, tp.Any], quantizer: Quantizer):
        super().__init__()
        if causal and renormalize:
            raise ValueError('renormalize needs the volume of the whole item, which a causal model cannot know: '
                             'set causal or renormalize to false')
        shared = {key: value for key, value in seanet.items() if key not in ('encoder', 'decoder')}
        shared |= {'channels': channels, 'causal': causal}
        self.sample_rate, self.channels, self.causal, self.renormalize = sample_rate, channels, causal, renormalize
        self.data_init = data_init
        self.encoder = SEANetEncoder(**{**shared, 'dimension': quantizer.input_dimension,
                                        **(seanet.get('encoder') or {})})
        self.decoder = SEANetDecoder(**{**shared, 'dimension': quantizer.dimension, **(seanet.get('decoder') or {})})
        self.quantizer = quantizer
        self.hop_length = int(self.encoder.hop_length)
        self.frame_rate = sample_rate / self.hop_length
        self.latent_dim = quantizer.dimension

    @property
    def num_codebooks(self) -> int:  # type: ignore[override]
        """K, the codebooks in use; 0 with a Gaussian bottleneck."""
        return self.quantizer.num_codebooks

    @property
    def codebook_size(self) -> int:  # type: ignore[override]
        """Entries of each codebook."""
        return self.quantizer.bins

    def set_num_codebooks(self, n: int) -> None:
        """Use the first `n` codebooks only: a lower bandwidth."""
        self.quantizer.set_num_codebooks(n)

    def latent_shape(self, num_samples: int) -> tuple[int, int]:
        """Return `(D, T')`, the shape of the latents of `num_samples` samples of audio."""
        return self.latent_dim, math.ceil(num_samples / self.hop_length)

    def fit_statistics(self, batches: tp.Iterable[torch.Tensor]) -> None:
        """With `data_init`, scale the layers to a few of the waveforms `[B, C, T]`."""
        if self.data_init:
            wav = torch.cat(list(itertools.islice(batches, 32)))
            normalized, _ = self._normalized(wav)
            # Not through the quantizer: it learns from the first batch what the encoder gives after this.
            init_from_data(self, lambda: self.decoder(self.encoder(normalized)[:, :self.latent_dim]),
                           last_std=float(normalized.std()))

    def _normalized(self, wav: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Waveforms `[B, C, T]` at volume 1, and the volume `[B, 1]`; unchanged and None without `renormalize`."""
        if wav.dim() != 3 or wav.shape[1] != self.channels or not wav.shape[-1]:
            raise ValueError(f'expected waveforms [B, {self.channels}, T] with T > 0, got {list(wav.shape)}')
        if not self.renormalize:
            return wav, None
        scale = 1e-8 + wav.mean(dim=1).square().mean(dim=1, keepdim=True).sqrt()
        return wav / scale[..., None], scale

    def encode(self, wav: torch.Tensor) -> Encoded:
        """Encode waveforms `[B, C, T]`: to codes `[B, K, T']`, or to a posterior `[B, D, T']`."""
        wav, scale = self._normalized(wav)
        encoded = self.quantizer.encode(self.encoder(wav))
        return Codes(encoded.codes, scale) if isinstance(encoded, Codes) else encoded

    def decode_latent(self, codes: torch.Tensor) -> torch.Tensor:
        """The sum of the codebooks' entries `[B, D, T']` for codes `[B, K, T']`."""
        return self.quantizer.decode(codes)

    def decode(self, encoded: torch.Tensor | Encoded, num_samples: int | None = None) -> torch.Tensor:
        """Decode to waveforms `[B, C, T]`; see `CompressionModel.decode`.

        Without `num_samples` whole frames are returned, which may be more samples than were encoded.
        """
        scale = encoded.scale if isinstance(encoded, Codes) else None
        if isinstance(encoded, Codes):
            encoded = encoded.codes
        latents = encoded.mean if isinstance(encoded, Posterior) else self.quantizer.decode(encoded)
        wav = self.decoder(latents)
        wav = wav if scale is None else wav * scale[..., None]
        return wav if num_samples is None else F.pad(wav, (0, num_samples - wav.shape[-1]))

    def forward(self, wav: torch.Tensor, draws: Draws | None = None) -> Reconstruction:
        """Reconstruct waveforms `[B, C, T]`; without `draws` all codebooks are used and the latents are means."""
        normalized, scale = self._normalized(wav)
        quantized = self.quantizer(self.encoder(normalized), self.frame_rate, draws)
        output = self.decoder(quantized.x)[..., :wav.shape[-1]]
        metrics = dict(quantized.metrics)
        if quantized.bandwidth is not None:
            metrics['bandwidth'] = quantized.bandwidth
        output = output if scale is None else output * scale[..., None]
        return Reconstruction(output, wav, quantized.penalty, quantized.codes, metrics)
