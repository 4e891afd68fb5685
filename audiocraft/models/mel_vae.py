"""A small 1-D variational auto-encoder of log-mel spectrograms, with MMAudio's mel front end.

The latents are made for a flow network: few dims, one stride of two, a Gaussian posterior whose KL divergence to the
standard normal is weighted lightly (Kingma and Welling, "Auto-Encoding Variational Bayes", 2013, appendix B).
"""
import typing as tp

import torch
from torch import nn
from torch.nn import functional as F

from ..modules.mel import LogMel
from ..utils.random import Draws
from .compression import CompressionModel, Encoded, Posterior, Reconstruction


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


class MelVAE(CompressionModel):
    """KL-regularised auto-encoder of mono log-mel spectrograms.

    Args:
        sample_rate (int): of the audio, in Hz.
        n_fft (int): size of the STFT and of its window.
        hop (int): samples between two mel frames; a latent frame covers two of them.
        n_mels (int): mel bands.
        fmin (float): lowest frequency, in Hz.
        fmax (float): highest frequency, in Hz.
        log (str): `log10` or `ln`, the logarithm of the front end.
        latent_dim (int): D.
        width (int): channels of the convolutions.
        depth (int): residual blocks before and after the change of rate, on each side.
        vocoder (nn.Module or None): log-mel `[B, n_mels, T]` to waveform `[B, 1, T * hop]`; None is Griffin-Lim.
        griffin_lim_iter (int): iterations of Griffin-Lim.
    """
    channels = 1
    stride = 2
    data_mean: torch.Tensor
    data_std: torch.Tensor

    def __init__(self, *, sample_rate: int = 16_000, n_fft: int = 1024, hop: int = 256, n_mels: int = 80,
                 fmin: float = 0., fmax: float = 8000., log: str = 'log10', latent_dim: int = 16, width: int = 192,
                 depth: int = 2, vocoder: nn.Module | None = None, griffin_lim_iter: int = 32):
        super().__init__()
        self.sample_rate, self.hop, self.latent_dim = sample_rate, hop, latent_dim
        self.frame_rate = sample_rate / (hop * self.stride)
        self.griffin_lim_iter = griffin_lim_iter
        self.mel = LogMel(sample_rate=sample_rate, n_fft=n_fft, hop=hop, n_mels=n_mels, fmin=fmin, fmax=fmax, log=log)
        self.encoder = MelEncoder(n_mels, width, depth, latent_dim)
        self.decoder = MelDecoder(n_mels, width, depth, latent_dim)
        self.vocoder = vocoder
        self.register_buffer('data_mean', torch.zeros(1, n_mels, 1))
        self.register_buffer('data_std', torch.ones(1, n_mels, 1))

    def latent_shape(self, num_samples: int) -> tuple[int, int]:
        """Return `(D, T')`, the shape of the latents of `num_samples` samples of audio."""
        return self.latent_dim, -(-num_samples // (self.hop * self.stride))

    @torch.no_grad()
    def fit_statistics(self, batches) -> None:
        """Set mean and standard deviation of each mel band from waveforms `[B, 1, T]`."""
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

    def encode_mel(self, normalised: torch.Tensor) -> Posterior:
        """Posterior over the latents of a normalised log-mel `[B, n_mels, 2 T']`."""
        mean, logvar = self.encoder(normalised).chunk(2, dim=1)
        return Posterior(mean, torch.exp(0.5 * logvar.clamp(-20., 10.)))

    def decode_mel(self, latents: torch.Tensor) -> torch.Tensor:
        """Log-mel `[B, n_mels, 2 T']` of latents `[B, D, T']`."""
        return self.decoder(latents) * self.data_std + self.data_mean

    def encode(self, wav: torch.Tensor) -> Posterior:
        """Encode waveforms `[B, 1, T]` to a posterior over latents `[B, D, T']`."""
        return self.encode_mel((self.log_mel(wav) - self.data_mean) / self.data_std)

    def vocode(self, log_mel: torch.Tensor) -> torch.Tensor:
        """Waveform `[B, 1, T * hop]` of a log-mel `[B, n_mels, T]`, by the vocoder or by Griffin-Lim."""
        if self.vocoder is not None:
            return self.vocoder(log_mel)
        with torch.no_grad():  # a graph through all iterations would take gigabytes, for gradients that nobody wants
            return self.mel.griffin_lim(log_mel, n_iter=self.griffin_lim_iter).unsqueeze(1)

    def decode(self, encoded: torch.Tensor | Encoded, num_samples: int | None = None) -> torch.Tensor:
        """Decode latents `[B, D, T']` to waveforms `[B, 1, T]`, cut or padded to `num_samples` when given."""
        latents = encoded.mean if isinstance(encoded, Posterior) else tp.cast(torch.Tensor, encoded)
        wav = self.vocode(self.decode_mel(latents))
        return wav if num_samples is None else F.pad(wav, (0, num_samples - wav.shape[-1]))

    def forward(self, wav: torch.Tensor, draws: Draws | None = None) -> Reconstruction:
        """Reconstruct the normalised log-mel of waveforms `[B, 1, T]`; without `draws` the latents are the means."""
        target = (self.log_mel(wav) - self.data_mean) / self.data_std
        posterior = self.encode_mel(target)
        latents = posterior.mean if draws is None else posterior.sample(draws.randn(*posterior.mean.shape[1:]))
        metrics = {'latent_std': latents.detach().std(), 'posterior_std': posterior.std.detach().mean()}
        return Reconstruction(self.decoder(latents), target, posterior.kl_divergence(), metrics=metrics)
