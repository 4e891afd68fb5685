"""Distances of magnitude spectrograms."""

import typing as tp

import torch
import torch.nn.functional as F

from .base import WaveformLoss, power

EPSILON = torch.finfo(torch.float32).eps
LEAST_POWER = 1e-7  # of a bin: the square root below it has no useful gradient


class MultiResolutionSTFTLoss(WaveformLoss):
    """Spectral convergence and difference of log magnitudes, averaged over several resolutions.

    Spectral convergence is |Y - X|_F / |Y|_F with magnitudes X of the output and Y of the target, over the whole batch;
    the other is the mean of |log X - log Y| (Yamamoto et al. 2020, arXiv:1910.11480, equations 4 to 6).

    Args:
        n_ffts, hop_lengths, win_lengths (list of int): of each resolution, in samples.
        factor_sc (float), factor_mag (float): weights of the two terms.
        normalized (bool): divide the spectrograms by the root of the size of the transform.
        epsilon (float): added to |Y|_F, and to magnitudes before the logarithm.
    """

    def __init__(self, *, n_ffts: tp.Sequence[int] = (1024, 2048, 512), hop_lengths: tp.Sequence[int] = (120, 240, 50),
                 win_lengths: tp.Sequence[int] = (600, 1200, 240), factor_sc: float = 0.5, factor_mag: float = 0.5,
                 normalized: bool = False, epsilon: float = EPSILON):
        if not n_ffts or not len(n_ffts) == len(hop_lengths) == len(win_lengths):
            raise ValueError('n_ffts, hop_lengths and win_lengths give one number for each resolution, got '
                             f'{len(n_ffts)}, {len(hop_lengths)} and {len(win_lengths)} of them')
        super().__init__(min_samples=max(n_ffts) // 2 + 1)
        self.sizes = list(zip(n_ffts, hop_lengths, win_lengths))
        self.factor_sc, self.factor_mag = factor_sc, factor_mag
        self.normalized, self.epsilon = normalized, epsilon
        self.windows: list[str] = [f'window_{index}' for index in range(len(self.sizes))]
        for name, win_length in zip(self.windows, win_lengths):
            self.register_buffer(name, torch.hann_window(win_length), persistent=False)

    def magnitudes(self, wav: torch.Tensor, index: int) -> torch.Tensor:
        """Magnitudes of `[B, C, T]` at one resolution, `[B * C, n_fft / 2 + 1, frames]`."""
        n_fft, hop_length, win_length = self.sizes[index]
        spec = torch.stft(wav.flatten(0, 1), n_fft, hop_length, win_length, getattr(self, self.windows[index]),
                          normalized=self.normalized, return_complex=True)
        return power(spec).clamp(min=LEAST_POWER).sqrt()

    def distance(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """See `WaveformLoss`."""
        total = output.new_zeros(())
        for index in range(len(self.sizes)):
            made, true = self.magnitudes(output, index), self.magnitudes(target, index)
            convergence = (true - made).norm() / (true.norm() + self.epsilon)
            logs = [(self.epsilon + value).log() for value in (made, true)]
            total = total + self.factor_sc * convergence + self.factor_mag * F.l1_loss(logs[0], logs[1])
        return total / len(self.sizes)
