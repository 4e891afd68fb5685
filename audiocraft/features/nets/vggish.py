"""VGGish (Hershey et al., 2017, arXiv:1609.09430), in the form of its port to torch (`vggish-10086976.pth`).

Neither the ReLU after the last layer nor the post-processing (PCA, 8 bits) of the published release: the embeddings
that Fréchet distances are taken on have none.
"""

import math
import typing as tp

import torch
from torch import nn

SAMPLE_RATE = 16_000
WINDOW, HOP, N_FFT = 400, 160, 512  # 25 and 10 ms
OFFSET = 0.01  # added before the logarithm


def _hz_to_mel(hz: torch.Tensor) -> torch.Tensor:
    return 1127. * (hz / 700.).log1p()


def htk_filters(*, n_mels: int = 64, fmin: float = 125., fmax: float = 7500., n_fft: int = N_FFT,
                sample_rate: int = SAMPLE_RATE) -> torch.Tensor:
    """Triangles on HTK's mel scale with a peak of 1, `[n_fft / 2 + 1, n_mels]` float64; nothing of the constant."""
    bins = _hz_to_mel(torch.linspace(0., sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64))[:, None]
    low, high = _hz_to_mel(torch.tensor([fmin, fmax], dtype=torch.float64)).tolist()
    corners = torch.linspace(low, high, n_mels + 2, dtype=torch.float64)
    rising = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    filters = torch.minimum(rising, falling).clamp_min(0)
    filters[0] = 0
    return filters


def logmel(wav: torch.Tensor, *, n_mels: int = 64) -> torch.Tensor:
    """A waveform `[T]` at 16 kHz to `ln(mel + 0.01)` `[F, n_mels]`, float64, of whole windows only."""
    if wav.shape[-1] < WINDOW:
        return wav.new_zeros(0, n_mels, dtype=torch.float64)
    frames = wav.double().unfold(-1, WINDOW, HOP) * torch.hann_window(WINDOW, dtype=torch.float64, device=wav.device)
    magnitude = torch.fft.rfft(frames, N_FFT).abs()
    return (magnitude @ htk_filters(n_mels=n_mels).to(wav.device) + OFFSET).log()


def examples(wav: torch.Tensor, *, n_mels: int = 64, frames: int = 96) -> torch.Tensor:
    """A waveform `[T]` at 16 kHz to its whole windows of 0.96 s, `[N, frames, n_mels]` float32, without overlap."""
    mel = logmel(wav, n_mels=n_mels).float()
    count = len(mel) // frames
    return mel[:count * frames].reshape(count, frames, n_mels)


class VGGish(nn.Module):
    """Windows of log-mel to embeddings.

    Args:
        dims (list of int): channels of the convolutions.
        pools (list of int): number (from 0) of the convolutions that a maximum over 2 by 2 follows.
        hidden (int): width of the two hidden layers.
        dim (int): size of an embedding.
        frames, n_mels (int): size of a window.
    """

    def __init__(self, *, dims: tp.Sequence[int] = (64, 128, 256, 256, 512, 512),
                 pools: tp.Sequence[int] = (0, 1, 3, 5), hidden: int = 4096, dim: int = 128,
                 frames: int = 96, n_mels: int = 64):
        super().__init__()
        self.frames, self.n_mels = frames, n_mels
        self.min_samples = WINDOW + (frames - 1) * HOP
        layers: list[nn.Module] = []
        for number, (dim_in, dim_out) in enumerate(zip((1, *dims), dims)):
            layers += [nn.Conv2d(dim_in, dim_out, 3, padding=1), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if number in pools else []
        self.features = nn.Sequential(*layers)
        flat = dims[-1] * math.prod(size >> len(pools) for size in (frames, n_mels))
        self.embeddings = nn.Sequential(nn.Linear(flat, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
                                        nn.Linear(hidden, dim))

    def examples(self, wav: torch.Tensor) -> torch.Tensor:
        """A waveform `[T]` at 16 kHz to windows `[N, frames, n_mels]`."""
        return examples(wav, n_mels=self.n_mels, frames=self.frames)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Windows `[N, frames, n_mels]` to embeddings `[N, dim]`."""
        # The published weights expect the channels last when the picture is flattened, as in TensorFlow.
        return self.embeddings(self.features(windows[:, None]).permute(0, 2, 3, 1).flatten(1))
