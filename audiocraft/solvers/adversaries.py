"""Discriminators in the training of a compression model: their updates, and what they say of a reconstruction."""

import typing as tp

import torch
from torch import nn

from .. import optim
from ..utils.config import build

Prepared = dict[str, tp.Any]
Losses = dict[str, torch.Tensor]


class Adversaries:
    """The discriminators of `cfg.adversarial` with one optimizer for all of them.

    Args:
        cfg: the node `adversarial`: `discriminators` (name to node), `every`, `optim`.
        device (torch.device): where they live.
        build_updater (callable): `(params, optimizer) -> Updater`, with the options of the solver.
    Attributes:
        modules (nn.ModuleDict): the discriminators by name; empty without any.
        optimizer, updater: of all of them; None without any.
    """

    def __init__(self, cfg: tp.Any, device: torch.device, build_updater: tp.Callable[..., optim.Updater]):
        self.every = cfg.every
        self.modules = nn.ModuleDict({name: build(node) for name, node in (cfg.discriminators or {}).items()})
        self.modules.to(device)
        self.optimizer: torch.optim.Optimizer | None = None
        self.updater: optim.Updater | None = None
        if self.modules:
            self.optimizer = optim.build_optimizer(self.modules.parameters(), cfg.optim)
            self.updater = build_updater(self.modules.parameters(), self.optimizer)

    def __bool__(self) -> bool:
        return bool(self.modules)

    def prepare(self, output: torch.Tensor, target: torch.Tensor) -> Prepared:
        """What the update and the losses share (spectrograms), by name."""
        return {name: adversary.prepare(output, target) for name, adversary in self.modules.items()}  # type: ignore

    def update(self, prepared: Prepared) -> Losses:
        """Train the discriminators on what they see; the model gets no gradient. Returns their losses."""
        assert self.updater is not None
        losses = {f'd_{name}': adversary.discriminator_loss(prepared[name])  # type: ignore[operator]
                  for name, adversary in self.modules.items()}
        total = torch.stack(list(losses.values())).sum()
        made = self.updater(total)
        metrics = {**losses, 'd_loss': total / len(losses)}
        metrics |= {f'd_{name}': made[name] for name in ('grad_norm', 'skipped') if name in made}
        return {name: value.detach() if isinstance(value, torch.Tensor) else value for name, value in metrics.items()}

    def losses(self, prepared: Prepared) -> Losses:
        """What the model has to lower: `adv_<name>` and `feat_<name>` for each discriminator."""
        found: Losses = {}
        for name, adversary in self.modules.items():
            for kind, value in adversary.generator_losses(prepared[name]).items():  # type: ignore[operator]
                found[f'{kind}_{name}'] = value
        return found
