"""How much louder the reconstruction is than its error, whatever its volume."""

import typing as tp

import torch

from ..data.samples import Clip
from ..losses.sisnr import si_snr
from .base import Metric, References, Results, unavailable
from .pairs import NO_PAIRS, aligned


class SISNR(Metric):
    """Scale-invariant signal-to-noise ratio of whole clips in mono, in dB: more is better.

    Gives `si_snr`, the mean over clips, `si_snr_median` and `si_snr_worst` (the 5th percentile), and `si_snr_n`, the
    number of clips. Clips whose truth is silent have none, and do not count.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """See `Metric.reset`."""
        self.values: list[float] = []
        self.silent = 0

    def update(self, generated: tp.Sequence[Clip], reference: References) -> None:
        """See `Metric.update`."""
        for ours, theirs, _ in aligned(generated, reference):
            if bool((theirs == theirs[..., :1]).all()):
                self.silent += 1
            else:
                self.values.append(float(si_snr(ours, theirs)))

    def compute(self) -> Results:
        """See `Metric.compute`."""
        values = torch.tensor(self.values, dtype=torch.float64)
        if not len(values):
            return unavailable('si_snr', 'the true clips are silent' if self.silent else NO_PAIRS)
        if broken := int((~values.isfinite()).sum()):
            return unavailable('si_snr', f'{broken} of {len(values)} clips hold NaN or infinite samples')
        return {'si_snr': float(values.mean()), 'si_snr_median': float(values.quantile(0.5)),
                'si_snr_worst': float(values.quantile(0.05)), 'si_snr_n': float(len(values))}
