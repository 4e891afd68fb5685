"""Losses of discriminators and generators, by name."""

import typing as tp

import torch
from torch.nn import functional as F

from ..utils.config import suggest
from ..utils.errors import UserError

LossT = tp.TypeVar('LossT')


class AdversarialLoss(tp.NamedTuple):
    """Functions of the logits of one sub-discriminator, each to a 0-dim tensor.

    Args:
        real, fake (callable): what the discriminator lowers, on logits of real audio and of the generator's.
        generator (callable): what the generator lowers.
    """
    real: tp.Callable[[torch.Tensor], torch.Tensor]
    fake: tp.Callable[[torch.Tensor], torch.Tensor]
    generator: tp.Callable[[torch.Tensor], torch.Tensor]


def _at_least_one(x: torch.Tensor) -> torch.Tensor:
    return F.relu(1 - x).mean()


def _at_most_minus_one(x: torch.Tensor) -> torch.Tensor:
    return F.relu(1 + x).mean()


def _near_one(x: torch.Tensor) -> torch.Tensor:
    return (x - 1).square().mean()


def _near_zero(x: torch.Tensor) -> torch.Tensor:
    return x.square().mean()


def _high(x: torch.Tensor) -> torch.Tensor:
    return -x.mean()


# hinge: Lim and Ye 2017, arXiv:1705.02894; mse: least squares, Mao et al. 2016, arXiv:1611.04076, equation 9.
# hinge2 is hinge whose generator, like the discriminator, is content with logits of 1.
ADVERSARIAL: dict[str, AdversarialLoss] = {
    'hinge': AdversarialLoss(_at_least_one, _at_most_minus_one, _high),
    'hinge2': AdversarialLoss(_at_least_one, _at_most_minus_one, _at_least_one),
    'mse': AdversarialLoss(_near_one, _near_zero, _near_one),
}


def relative_l1(fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """L1 distance over the mean size of the real features: Défossez et al. 2022, arXiv:2210.13438, equation 2."""
    return F.l1_loss(fake, real) / real.abs().mean().clamp(min=1e-8)


# Distance of two feature maps.
FEATURE: dict[str, tp.Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    'l1': F.l1_loss, 'l2': F.mse_loss, 'relative_l1': relative_l1,
}


def loss_by_name(name: str, losses: dict[str, LossT], key: str) -> LossT:
    """The entry of `ADVERSARIAL` or `FEATURE` with this name.

    Raises:
        UserError: there is none; names the config's `key`.
    """
    if name not in losses:
        raise UserError(f'{key}: {name} is unknown, expected one of {", ".join(losses)}. '
                        f'{suggest(name, losses)}'.rstrip())
    return losses[name]
