"""Cnn14 of PANNs, which hears the classes of AudioSet (Kong et al., 2020, arXiv:1912.10211), at 16 kHz.

The file is `Cnn14_16k_mAP=0.438.pth` of the authors; all names and shapes are those of its key `model`.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from ...modules.mel import mel_filters

SAMPLE_RATE = 16_000
AMIN = 1e-10  # power below which everything is silence


class _FourierTransform(nn.Module):
    """The windowed transform as two convolutions, whose weights are part of the published file."""

    def __init__(self, window: int):
        super().__init__()
        steps = torch.arange(window // 2 + 1)[:, None] * torch.arange(window) % window
        angles, hann = steps.double() * (2 * math.pi / window), torch.hann_window(window, dtype=torch.float64)
        self.conv_real, self.conv_imag = (nn.Conv1d(1, window // 2 + 1, window, bias=False) for _ in range(2))
        for conv, table in ((self.conv_real, angles.cos() * hann), (self.conv_imag, -angles.sin() * hann)):
            conv.weight = nn.Parameter(table[:, None].float(), requires_grad=False)


class _Spectrogram(nn.Module):
    def __init__(self, window: int, hop: int):
        super().__init__()
        self.window, self.hop = window, hop
        self.stft = _FourierTransform(window)

    def forward(self, wav: torch.Tensor) -> torch.Tensor:
        """Waveforms `[B, T]` to power `[B, F, window / 2 + 1]`; frame i is centered at sample `i * hop`."""
        padded = F.pad(wav[:, None], (self.window // 2, self.window // 2), mode='reflect')
        real, imag = (F.conv1d(padded, conv.weight, stride=self.hop)
                      for conv in (self.stft.conv_real, self.stft.conv_imag))
        return (real.square() + imag.square()).mT


class _LogMel(nn.Module):
    def __init__(self, window: int, n_mels: int, fmin: float, fmax: float, sample_rate: int):
        super().__init__()
        with torch.device('cpu'):  # also where the network is only outlined
            filters = mel_filters(sample_rate=sample_rate, n_fft=window, n_mels=n_mels, fmin=fmin, fmax=fmax)
        self.melW = nn.Parameter(filters.T.contiguous(), requires_grad=False)

    def forward(self, power: torch.Tensor) -> torch.Tensor:
        """Power `[B, F, bins]` to decibels in mel bands `[B, F, n_mels]`."""
        return 10 * (power @ self.melW).clamp_min(AMIN).log10()


class _Block(nn.Module):
    """Two convolutions with batch norm, then the mean over squares of `pool` by `pool`."""

    def __init__(self, dim_in: int, dim: int):
        super().__init__()
        self.conv1 = nn.Conv2d(dim_in, dim, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(dim), nn.BatchNorm2d(dim)

    def forward(self, x: torch.Tensor, pool: int) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.avg_pool2d(x, pool) if pool > 1 else x


class Cnn14(nn.Module):
    """Waveforms to embeddings and classes.

    Args:
        dims (list of int): channels of the blocks; the last one is the size of the embedding.
        classes (int): of AudioSet.
        sample_rate, window, hop, n_mels, fmin, fmax: of the spectrogram, in Hz and samples.
    """

    def __init__(self, *, dims: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048), classes: int = 527,
                 sample_rate: int = SAMPLE_RATE, window: int = 512, hop: int = 160, n_mels: int = 64,
                 fmin: float = 50., fmax: float = 8000.):
        super().__init__()
        self.sample_rate, self.blocks = sample_rate, len(dims)
        # Five halvings of the time, and a window for the reflection at the ends.
        self.min_samples = max(hop * 2 ** (len(dims) - 1), window)
        self.spectrogram_extractor = _Spectrogram(window, hop)
        self.logmel_extractor = _LogMel(window, n_mels, fmin, fmax, sample_rate)
        self.bn0 = nn.BatchNorm2d(n_mels)
        for number, (dim_in, dim) in enumerate(zip((1, *dims), dims), 1):
            self.add_module(f'conv_block{number}', _Block(dim_in, dim))
        self.fc1 = nn.Linear(dims[-1], dims[-1])
        self.fc_audioset = nn.Linear(dims[-1], classes)

    def logmel(self, wav: torch.Tensor) -> torch.Tensor:
        """Waveforms `[B, T]` to decibels `[B, 1 + T // hop, n_mels]`."""
        return self.logmel_extractor(self.spectrogram_extractor(wav))

    def forward(self, wav: torch.Tensor) -> dict[str, torch.Tensor]:
        """Waveforms `[B, T]`, all of one length, to features of whole clips.

        Returns:
            dict: `2048`, the embedding `[B, dims[-1]]` (named by its published size), `logits` `[B, classes]`, and
                `clipwise_output`, their sigmoid. Dropout belongs to training and is left out.
        Raises:
            ValueError: the waveforms are shorter than `min_samples`.
        """
        if wav.shape[-1] < self.min_samples:
            raise ValueError(f'needs at least {self.min_samples} samples, got {wav.shape[-1]}')
        x = self.bn0(self.logmel(wav).mT[..., None])[..., 0].mT[:, None]
        for number in range(1, self.blocks + 1):
            x = self.get_submodule(f'conv_block{number}')(x, pool=2 if number < self.blocks else 1)
        x = x.mean(dim=3)
        embedding = F.relu(self.fc1(x.amax(dim=2) + x.mean(dim=2)))
        logits = self.fc_audioset(embedding)
        return {'2048': embedding, 'logits': logits, 'clipwise_output': logits.sigmoid()}
