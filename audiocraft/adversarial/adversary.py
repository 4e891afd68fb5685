"""A discriminator with its losses: what trains it, and what it asks of a generator."""

import contextlib
import typing as tp
from dataclasses import dataclass

import torch
from torch import nn

from .base import Discriminator
from .losses import ADVERSARIAL, FEATURE, loss_by_name


@dataclass
class Prepared:
    """How the sub-discriminators look at both sides: one tensor `[B, ...]` for each.

    Args:
        fake (list): of the generator's audio, with the graph to it.
        real (list): of real audio, without a graph.
    """
    fake: list[torch.Tensor]
    real: list[torch.Tensor]


class Adversary(nn.Module):
    """A discriminator, the loss that it is trained with, and those that it gives to the generator.

    One update of both sides, the discriminator first::

        prepared = adversary.prepare(fake, real)
        adversary.discriminator_loss(prepared).backward()
        discriminator_optimizer.step()
        losses = adversary.generator_losses(prepared)

    Spectrograms are computed once for all of it. Each side is judged in a pass of its own: in one pass with both, the
    generator's losses would pay for a backward pass through the real half too (half as much again), and gradients that
    cancel exactly, as those of the hinge losses do for the last bias, would leave rounding noise, which Adam amplifies.

    Args:
        discriminator (Discriminator): the networks.
        loss (str): `hinge`, `hinge2` or `mse`.
        feature_loss (str): distance of feature maps, `l1`, `l2` or `relative_l1`.
        normalize (bool): average over the sub-discriminators; False: sum.
    """

    def __init__(self, *, discriminator: Discriminator, loss: str = 'hinge', feature_loss: str = 'l1',
                 normalize: bool = True):
        super().__init__()
        self.loss = loss_by_name(loss, ADVERSARIAL, 'loss')
        self.feature_loss = loss_by_name(feature_loss, FEATURE, 'feature_loss')
        self.discriminator = discriminator
        self.normalize = normalize

    def prepare(self, fake: torch.Tensor, real: torch.Tensor) -> Prepared:
        """Look at the audio of both sides, each `[B, C, T]`; the graph of `fake` is kept.

        Raises:
            UserError: the audio is too short, or has other channels than the discriminator was built for.
        """
        if fake.shape != real.shape:
            raise ValueError(f'fake and real audio must have one shape, got {list(fake.shape)} and {list(real.shape)}')
        with torch.no_grad():
            views = self.discriminator.prepare(real)
        return Prepared(fake=self.discriminator.prepare(fake), real=views)

    def discriminator_loss(self, prepared: Prepared) -> torch.Tensor:
        """What the discriminator lowers, 0-dim; the generator gets no gradient."""
        fakes = self.discriminator.from_prepared([view.detach() for view in prepared.fake]).logits
        reals = self.discriminator.from_prepared(prepared.real).logits
        return self._over_discriminators([self.loss.fake(fake.float()) + self.loss.real(real.float())
                                          for fake, real in zip(fakes, reals, strict=True)])

    def generator_losses(self, prepared: Prepared) -> dict[str, torch.Tensor]:
        """What the generator lowers, 0-dim each: `adv`, and `feat`, the distance of the feature maps.

        The discriminator's parameters get no gradient, and its state does not change.
        """
        with self.frozen():
            with torch.no_grad():
                real_fmaps = self.discriminator.from_prepared(prepared.real).fmaps
            logits, fake_fmaps = self.discriminator.from_prepared(prepared.fake)
        adv = [self.loss.generator(logit.float()) for logit in logits]
        feat = [self._feature_distance(fake, real) for fake, real in zip(fake_fmaps, real_fmaps, strict=True)]
        return {'adv': self._over_discriminators(adv), 'feat': self._over_discriminators(feat)}

    def _feature_distance(self, fake: list[torch.Tensor], real: list[torch.Tensor]) -> torch.Tensor:
        """Mean distance of the feature maps of one sub-discriminator."""
        return torch.stack([self.feature_loss(x.float(), y.float()) for x, y in zip(fake, real, strict=True)]).mean()

    def _over_discriminators(self, losses: list[torch.Tensor]) -> torch.Tensor:
        stacked = torch.stack(losses)
        return stacked.mean() if self.normalize else stacked.sum()

    @contextlib.contextmanager
    def frozen(self) -> tp.Iterator[None]:
        """Inside, the discriminator is in eval mode and what is computed has no graph to its parameters."""
        modes = [(module, module.training) for module in self.discriminator.modules()]
        trained = [parameter for parameter in self.discriminator.parameters() if parameter.requires_grad]
        try:
            self.discriminator.eval().requires_grad_(False)
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)
            for module, training in modes:
                module.training = training
