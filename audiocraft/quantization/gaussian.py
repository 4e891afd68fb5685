"""The bottleneck of a variational auto-encoder (Kingma and Welling 2014, arXiv:1312.6114)."""

import typing as tp

import torch
from torch.nn import functional as F

from .. import distrib
from ..utils.random import Draws
from .base import Posterior, Quantized, Quantizer

MIN_STD = 1e-4
STATISTICS = ('latent_count', 'latent_mean', 'latent_var')


class GaussianBottleneck(Quantizer):
    """A diagonal Gaussian over continuous latents.

    The encoder gives mean and scale, one after the other; the standard deviation is `softplus(scale) + 1e-4`. The
    penalty is the KL divergence to the standard normal. What learns on the latents needs them at unit scale: mean and
    deviation of each channel are tracked while training, in buffers that published files need not have.

    Args:
        dimension (int): D, channels of the latents; the encoder gives 2 D.
        track_statistics (bool): track mean and deviation of the posteriors' means.
        decay (float): how much of the statistics is kept at each update, after the first `1 / (1 - decay)` updates,
            which all count alike.
    """

    latent_count: torch.Tensor
    latent_mean: torch.Tensor
    latent_var: torch.Tensor

    def __init__(self, *, dimension: int, track_statistics: bool = True, decay: float = 0.999):
        super().__init__()
        self.dimension, self.input_dimension = dimension, 2 * dimension
        self.track_statistics, self.decay = track_statistics, decay
        self.register_buffer('latent_count', torch.zeros((), dtype=torch.int64))
        self.register_buffer('latent_mean', torch.zeros(dimension))
        self.register_buffer('latent_var', torch.ones(dimension))

    def _load_from_state_dict(self, state_dict: dict[str, tp.Any], prefix: str, local_metadata: dict[str, tp.Any],
                              strict: bool, missing_keys: list[str], *args: tp.Any) -> None:
        missing: list[str] = []
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, *args)
        optional = {prefix + name for name in STATISTICS}
        missing_keys += [key for key in missing if key not in optional]

    def encode(self, x: torch.Tensor) -> Posterior:
        """The posterior of `[B, 2 D, T']`: mean and standard deviation `[B, D, T']`, in fp32."""
        if x.dim() != 3 or x.shape[1] != self.input_dimension:
            raise ValueError(f"expected [B, {self.input_dimension}, T'], got {list(x.shape)}")
        mean, scale = x.float().chunk(2, dim=1)
        return Posterior(mean, F.softplus(scale) + MIN_STD)

    def forward(self, x: torch.Tensor, frame_rate: float, draws: Draws | None = None) -> Quantized:
        """Sample latents from the posterior of `[B, 2 D, T']`; without `draws`, take its mean."""
        with torch.autocast(x.device.type, enabled=False):
            posterior = self.encode(x)
            latents = posterior.mean
            if draws is not None:
                latents = posterior.sample(draws.randn(*latents.shape[1:]).to(latents))
            penalty = posterior.kl_divergence()
        if self.training and self.track_statistics:
            self._track(posterior.mean.detach())
        metrics = {'posterior_std': posterior.std.detach().mean(),
                   'latent_rms': latents.detach().square().mean().sqrt()}
        return Quantized(latents.to(x.dtype), penalty, metrics=metrics)

    def decode(self, encoded: torch.Tensor) -> torch.Tensor:
        """The latents `[B, D, T']` themselves."""
        if encoded.dim() != 3 or encoded.shape[1] != self.dimension:
            raise ValueError(f"expected latents [B, {self.dimension}, T'], got {list(encoded.shape)}")
        return encoded

    @torch.no_grad()
    def _track(self, means: torch.Tensor) -> None:
        """Add the means `[B, D, T']` of one batch, of all processes together; not if one is not finite."""
        rows = means.transpose(0, 1).flatten(1)
        # Twice through the batch: the mean square less the squared mean loses a deviation that is far below the mean.
        sums = distrib.all_reduce(torch.cat([rows.sum(1), rows.new_full((1,), rows.shape[1])]))
        mean, count = sums[:-1] / sums[-1], sums[-1]
        var = distrib.all_reduce((rows - mean[:, None]).square().sum(1)) / count
        shift = mean - self.latent_mean
        finite = (shift.isfinite() & var.isfinite()).all()
        self.latent_count += finite
        weight = torch.where(finite, (1 / self.latent_count).clamp(min=1 - self.decay), 0.)
        shift, var = shift.where(finite, 0.), var.where(finite, 0.)
        # Two groups of weights w and 1 - w whose means differ by d: the joint variance has the term w (1 - w) d^2.
        self.latent_var.lerp_(var, weight).add_(weight * (1 - weight) * shift.square())
        self.latent_mean.add_(weight * shift)

    def latent_statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of each channel of the latents, `[D]` each; zeros and ones if none was tracked.

        Of the posteriors' means: the noise of sampling is not in the deviation.
        """
        return self.latent_mean.clone(), self.latent_var.clamp(min=0).sqrt()
