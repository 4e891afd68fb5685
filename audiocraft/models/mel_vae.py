"""Variational auto-encoders of log-mel spectrograms, with MMAudio's mel front end: what they share, and a small one.

The latents are made for a flow network: few dims, one stride of two, a Gaussian posterior whose KL divergence to the
standard normal is weighted lightly (Kingma and Welling, "Auto-Encoding Variational Bayes", 2013, appendix B).
"""
import typing as tp

import torch
from torch import nn
from torch.nn import functional as F

from ..modules.mel import LogMel
from ..utils.errors import UserError
from ..utils.random import Draws
from .compression import CompressionModel, Encoded, Posterior, Reconstruction
from .mel_statistics import STATISTICS


class ChannelNorm(nn.Module):
    """RMS normalisation over the channels of `[B, C, T]`, frame by frame, so that a crop gives what the whole gives."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-6) * self.scale


class ResBlock(nn.Module):
    """Pre-activation residual block over time, `[B, C, T]` to the same shape; it starts as the identity."""

    def __init__(self, width: int, kernel: int = 3):
        super().__init__()
        self.norm = ChannelNorm(width)
        self.conv1 = nn.Conv1d(width, width, kernel, padding=kernel // 2)
        self.conv2 = nn.Conv1d(width, width, 1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(self.norm(x)))))


class MelEncoder(nn.Sequential):
    """Normalised log-mel `[B, n_mels, 2 T']` to mean and log-variance, stacked: `[B, 2 D, T']`."""

    def __init__(self, n_mels: int, width: int, depth: int, latent_dim: int):
        super().__init__(
            nn.Conv1d(n_mels, width, 3, padding=1),
            *(ResBlock(width) for _ in range(depth)),
            nn.Conv1d(width, width, 4, stride=2, padding=1),
            *(ResBlock(width) for _ in range(depth)),
            ChannelNorm(width), nn.Conv1d(width, 2 * latent_dim, 1))


class MelDecoder(nn.Sequential):
    """Latents `[B, D, T']` to normalised log-mel `[B, n_mels, 2 T']`."""

    def __init__(self, n_mels: int, width: int, depth: int, latent_dim: int):
        super().__init__(
            nn.Conv1d(latent_dim, width, 3, padding=1),
            *(ResBlock(width) for _ in range(depth)),
            nn.ConvTranspose1d(width, width, 4, stride=2, padding=1),
            *(ResBlock(width) for _ in range(depth)),
            ChannelNorm(width), nn.Conv1d(width, n_mels, 3, padding=1))


class VocoderReference:
    """A vocoder that is loaded when it is first needed, and that is no part of the model that uses it.

    Args:
        reference (str): where it is, for instance `//pretrained/mmaudio/bigvgan_16k`.
    """

    def __init__(self, reference: str):
        self.reference = reference
        self._loaded: nn.Module | None = None

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (self.reference,)  # copies load it again, where they need it

    def __call__(self, log_mel: torch.Tensor) -> torch.Tensor:
        """Log-mel `[B, n_mels, T]` to waveforms `[B, 1, T * hop]`, on the device of the log-mel.

        Raises:
            UserError: there is no such vocoder on this machine.
        """
        if self._loaded is None:
            from .bigvgan import load_vocoder
            self._loaded = load_vocoder(self.reference, log_mel.device).requires_grad_(False)
        return self._loaded.to(log_mel.device)(log_mel)


class MelCompression(CompressionModel):
    """What the auto-encoders of mono log-mel spectrograms share: all but the networks.

    A sub-class sets `encoder`, from normalised log-mel `[B, n_mels, 2 T']` to mean and log-variance `[B, 2 D, T']`, and
    `decoder`, from latents `[B, D, T']` to normalised log-mel.

    Args:
        sample_rate (int): of the audio, in Hz.
        n_fft (int): size of the STFT and of its window.
        hop (int): samples between two mel frames; a latent frame covers two of them.
        n_mels (int): mel bands.
        fmin (float): lowest frequency, in Hz.
        fmax (float): highest frequency, in Hz.
        log (str): `log10` or `ln`, the logarithm of the front end.
        latent_dim (int): D.
        vocoder (str, nn.Module or None): log-mel `[B, n_mels, T]` to waveform `[B, 1, T * hop]`. A module is a part of
            the model; a reference (`//pretrained/mmaudio/bigvgan_16k`) is loaded by the first `vocode`, and is not.
            None is Griffin-Lim.
        griffin_lim_iter (int): iterations of Griffin-Lim.
        statistics (str or None): mean and deviation of the mel bands, one of `mel_statistics.STATISTICS`; None: those
            of the training data, which `fit_statistics` finds.
    """
    channels = 1
    stride = 2
    logvar_range = (-20., 10.)
    encoder: nn.Module
    decoder: nn.Module
    data_mean: torch.Tensor
    data_std: torch.Tensor

    def __init__(self, *, sample_rate: int, n_fft: int, hop: int, n_mels: int, fmin: float, fmax: float, log: str,
                 latent_dim: int, vocoder: str | nn.Module | None = None, griffin_lim_iter: int = 32,
                 statistics: str | None = None):
        super().__init__()
        self.sample_rate, self.hop, self.latent_dim = sample_rate, hop, latent_dim
        self.frame_rate = sample_rate / (hop * self.stride)
        self.griffin_lim_iter, self.statistics = griffin_lim_iter, statistics
        with torch.device('cpu'):  # its filters are computed, which the meta device cannot do
            mel = LogMel(sample_rate=sample_rate, n_fft=n_fft, hop=hop, n_mels=n_mels, fmin=fmin, fmax=fmax, log=log)
        self.mel = mel.to(torch.get_default_device())
        self.vocoder = VocoderReference(vocoder) if isinstance(vocoder, str) else vocoder
        mean, std = known_statistics(statistics, n_mels) if statistics else ([0.] * n_mels, [1.] * n_mels)
        self.register_buffer('data_mean', torch.tensor(mean)[None, :, None])
        self.register_buffer('data_std', torch.tensor(std)[None, :, None])

    def latent_shape(self, num_samples: int) -> tuple[int, int]:
        """Return `(D, T')`, the shape of the latents of `num_samples` samples of audio."""
        return self.latent_dim, -(-num_samples // (self.hop * self.stride))

    @torch.no_grad()
    def fit_statistics(self, batches: tp.Iterable[torch.Tensor]) -> None:
        """Set mean and deviation of each mel band from waveforms `[B, 1, T]`, unless `statistics` chose them."""
        if self.statistics:
            return
        mels = torch.cat([self.log_mel(wav).double().transpose(0, 1).flatten(1) for wav in batches], dim=1)
        self.data_mean.copy_(mels.mean(dim=1)[None, :, None])
        # A band that never moves (all silence) must not blow up its rounding errors.
        self.data_std.copy_(mels.std(dim=1).clamp_min(1e-3)[None, :, None])

    def log_mel(self, wav: torch.Tensor) -> torch.Tensor:
        """Log-mel `[B, n_mels, T]` of mono waveforms `[B, 1, T_wav]`, padded with silence to whole latent frames."""
        if wav.dim() != 3 or wav.shape[1] != self.channels:
            raise ValueError(f'expected mono waveforms [B, 1, T], got {list(wav.shape)}')
        total = self.latent_shape(wav.shape[-1])[1] * self.stride * self.hop
        return self.mel(F.pad(wav, (0, total - wav.shape[-1])).squeeze(1))

    def normalize_mel(self, log_mel: torch.Tensor) -> torch.Tensor:
        """What the encoder takes, of a log-mel `[B, n_mels, 2 T']`."""
        return (log_mel - self.data_mean) / self.data_std

    def encode_mel(self, normalised: torch.Tensor) -> Posterior:
        """Posterior over the latents of a normalised log-mel `[B, n_mels, 2 T']`."""
        mean, logvar = self.encoder(normalised).float().chunk(2, dim=1)
        return Posterior(mean, torch.exp(0.5 * logvar.clamp(*self.logvar_range)))

    def decode_mel(self, latents: torch.Tensor) -> torch.Tensor:
        """Log-mel `[B, n_mels, 2 T']` of latents `[B, D, T']`."""
        return self.decoder(latents) * self.data_std + self.data_mean

    def encode(self, wav: torch.Tensor) -> Posterior:
        """Encode waveforms `[B, 1, T]` to a posterior over latents `[B, D, T']`."""
        return self.encode_mel(self.normalize_mel(self.log_mel(wav)))

    def vocode(self, log_mel: torch.Tensor) -> torch.Tensor:
        """Waveform `[B, 1, T * hop]` of a log-mel `[B, n_mels, T]`, by the vocoder or by Griffin-Lim, in fp32."""
        with torch.autocast(log_mel.device.type, enabled=False):
            if self.vocoder is not None:
                return self.vocoder(log_mel.float())
            with torch.no_grad():  # a graph through all iterations would take gigabytes, for gradients nobody wants
                return self.mel.griffin_lim(log_mel.float(), n_iter=self.griffin_lim_iter).unsqueeze(1)

    def decode(self, encoded: torch.Tensor | Encoded, num_samples: int | None = None) -> torch.Tensor:
        """Decode latents `[B, D, T']` to waveforms `[B, 1, T]`, cut or padded to `num_samples` when given."""
        latents = encoded.mean if isinstance(encoded, Posterior) else tp.cast(torch.Tensor, encoded)
        wav = self.vocode(self.decode_mel(latents))
        return wav if num_samples is None else F.pad(wav, (0, num_samples - wav.shape[-1]))

    def forward(self, wav: torch.Tensor, draws: Draws | None = None) -> Reconstruction:
        """Reconstruct the normalised log-mel of waveforms `[B, 1, T]`; without `draws` the latents are the means."""
        target = self.normalize_mel(self.log_mel(wav))
        posterior = self.encode_mel(target)
        latents = posterior.mean if draws is None else posterior.sample(draws.randn(*posterior.mean.shape[1:]))
        metrics = {'latent_std': latents.detach().std(), 'posterior_std': posterior.std.detach().mean()}
        return Reconstruction(self.decoder(latents), target, posterior.kl_divergence(), metrics=metrics)


def known_statistics(name: str, n_mels: int) -> tuple[list[float], list[float]]:
    """Mean and deviation of each mel band, by name. Raises `UserError` if there are none for so many bands."""
    known = STATISTICS.get(name)
    if known is None or len(known['mean']) != n_mels:
        fitting = [key for key, value in STATISTICS.items() if len(value['mean']) == n_mels]
        raise UserError(f'statistics={name}: for {n_mels} mel bands, expected one of {", ".join(fitting) or "none"}, '
                        'or null for those of the training data.')
    return known['mean'], known['std']


class MelVAE(MelCompression):
    """A small auto-encoder of mono log-mel spectrograms: convolutions alone, so that it is trained in a minute.

    Args:
        latent_dim (int): D.
        width (int): channels of the convolutions.
        depth (int): residual blocks before and after the change of rate, on each side.
        others: as of `MelCompression`.
    """

    def __init__(self, *, sample_rate: int = 16_000, n_fft: int = 1024, hop: int = 256, n_mels: int = 80,
                 fmin: float = 0., fmax: float = 8000., log: str = 'log10', latent_dim: int = 16, width: int = 192,
                 depth: int = 2, vocoder: str | nn.Module | None = None, griffin_lim_iter: int = 32):
        super().__init__(sample_rate=sample_rate, n_fft=n_fft, hop=hop, n_mels=n_mels, fmin=fmin, fmax=fmax, log=log,
                         latent_dim=latent_dim, vocoder=vocoder, griffin_lim_iter=griffin_lim_iter)
        self.encoder = MelEncoder(n_mels, width, depth, latent_dim)
        self.decoder = MelDecoder(n_mels, width, depth, latent_dim)
