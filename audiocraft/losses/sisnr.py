"""How much louder a signal is than its error, whatever its volume."""

import math

import torch
import torch.nn.functional as F

from .base import WaveformLoss

EPSILON = torch.finfo(torch.float32).eps
LIMIT = 1e-12  # energies relative to the estimate below which nothing is told apart: 120 dB


def si_snr(estimate: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Scale-invariant signal-to-noise ratio of whole signals `[B, ..., T]` in dB, `[B]`: more is better.

    Without its mean, the estimate is split into the reference times a factor, and what is orthogonal to it; the ratio
    is that of their energies, from -120 to 120, averaged over channels (Le Roux et al. 2019, arXiv:1811.02508,
    equation 3). NaN where a reference is silent; -120 for a silent estimate of one that is not.
    """
    estimate, reference = (_centered(wav.double().reshape(len(wav), -1, wav.shape[-1]))
                           for wav in (estimate, reference))
    energy, size = _energy(reference), _energy(estimate)
    signal = (estimate * reference).sum(dim=-1, keepdim=True) / energy * reference
    # The two are orthogonal, so that their energies add up to that of the estimate.
    ratio = (_energy(signal) + LIMIT * size) / (_energy(estimate - signal) + LIMIT * size)
    ratio = torch.where((size == 0) & (energy > 0), LIMIT, ratio)
    return 10 * ratio.log10().mean(dim=(1, 2))


def _centered(wav: torch.Tensor) -> torch.Tensor:
    return wav - wav.mean(dim=-1, keepdim=True)


def _energy(wav: torch.Tensor) -> torch.Tensor:
    return wav.square().sum(dim=-1, keepdim=True)


class SISNRLoss(WaveformLoss):
    """Minus the scale-invariant signal-to-noise ratio in dB, averaged over frames that overlap by half: less is better.

    The last frames are filled with zeros. A constant that grows with the frame is added to all energies, so that
    silent frames have a gradient (after Le Roux et al. 2019, arXiv:1811.02508, equation 3).

    Args:
        sample_rate (int): of the waveforms.
        segment (float or None): seconds of a frame; None takes the whole waveform as one.
        joint (bool): take all items of a batch as one long signal, in which loud items count for more and silent ones
            for nothing. Not with a `segment`.
        epsilon (float): added to energies, per sample of a frame.
    """

    def __init__(self, *, sample_rate: int = 16000, segment: float | None = 5., joint: bool = False,
                 epsilon: float = EPSILON):
        super().__init__()
        if joint and segment is not None:
            raise ValueError(f'joint takes the whole batch as one signal: set segment to null, not to {segment}')
        self.joint = joint
        self.frame = None if segment is None else int(segment * sample_rate)
        if self.frame is not None and self.frame < 2:
            raise ValueError(f'segment must be at least two samples long, got {segment} s at {sample_rate} Hz')
        self.epsilon = epsilon

    def _frames(self, wav: torch.Tensor) -> torch.Tensor:
        """`[B, C, T]` to centred frames `[B, C, ceil(T / hop), frame]`."""
        length = wav.shape[-1]
        if self.frame is None:
            return _centered(wav[..., None, :])
        hop = self.frame // 2
        count = math.ceil(length / hop)
        padded = F.pad(wav, (0, (count - 1) * hop + self.frame - length))
        return _centered(padded.unfold(-1, self.frame, hop))

    def distance(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """See `WaveformLoss`."""
        if self.joint:
            output, target = output.reshape(1, 1, -1), target.reshape(1, 1, -1)
        made, true = self._frames(output), self._frames(target)
        epsilon = self.epsilon * made.shape[-1]
        signal = (made * true).sum(dim=-1, keepdim=True) * true / (epsilon + _energy(true))
        ratio = (epsilon + _energy(signal)).log10() - (epsilon + _energy(made - signal)).log10()
        return -10 * ratio.mean()
