"""The weights with the best score so far."""

import typing as tp
from contextlib import contextmanager

import torch
from torch import nn

from .. import distrib
from ..utils.checkpoint import State


def weights_name(kind: str, module: str) -> str:
    """Return the file (without suffix) of a module's weights.

    `best` and `ema` are those of the module called `model`, so that its published names stand in the file as they are;
    another module's are `best.<name>`.
    """
    if kind == 'model':
        return module
    return kind if module == 'model' else f'{kind}.{module}'


def _copy(module: nn.Module) -> State:
    return {key: distrib.local(tensor).detach().clone() for key, tensor in module.state_dict().items()}


def _put(module: nn.Module, state: State) -> None:
    """Load what each process holds of a state dict."""
    module.load_state_dict({key: distrib.from_part(state[key], ours) for key, ours in module.state_dict().items()})


def _full_precision(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of our part on the CPU, in fp32 at least: the best weights are what is evaluated and exported."""
    tensor = distrib.local(tensor)
    dtype = torch.promote_types(tensor.dtype, torch.float32) if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to('cpu', dtype, copy=True)


class BestState:
    """The weights with the best score so far; a lower score is better.

    Attributes:
        modules (dict): the modules that are kept, by name.
        states (dict or None): their weights, on the CPU and in fp32 (of those that are cut over the processes, the part
            of this one); None before the first score.
        score (float or None), update (int), epoch (int): of these weights.
    """

    def __init__(self) -> None:
        self.modules: dict[str, nn.Module] = {}
        self.states: dict[str, State] | None = None
        self.score: float | None = None
        self.update, self.epoch = 0, 0

    def offer(self, score: float | None, *, update: int, epoch: int) -> bool:
        """Keep the weights that are in the modules now if their score is the best one.

        Args:
            score (float or None): NaN and infinities are never the best; None (no metric is followed) always is.
        """
        if score is not None:
            if not torch.isfinite(torch.tensor(float(score))):
                return False
            if self.states is not None and self.score is not None and score > self.score:
                return False
        self.states = {name: {key: _full_precision(tensor) for key, tensor in module.state_dict().items()}
                       for name, module in self.modules.items()}
        self.score, self.update, self.epoch = score, update, epoch
        return True

    @contextmanager
    def swapped(self) -> tp.Iterator[None]:
        """Within the context the modules hold the best weights; afterwards what they held before."""
        before = {name: _copy(module) for name, module in self.modules.items()}
        for name, state in (self.states or {}).items():
            _put(self.modules[name], state)
        try:
            yield
        finally:
            for name, state in before.items():
                _put(self.modules[name], state)

    def full_states(self) -> dict[str, State]:
        """Return the weights, whole. All processes must ask for them."""
        live = {name: self.modules[name].state_dict() for name in self.states or {}}
        return {name: {key: distrib.assemble(part, live[name][key]) for key, part in state.items()}
                for name, state in (self.states or {}).items()}

    def state_dict(self) -> dict[str, tp.Any]:
        """Return everything but the weights."""
        return {'score': self.score, 'update': self.update, 'epoch': self.epoch}

    def load(self, state: tp.Mapping[str, tp.Any], models: tp.Mapping[str, State]) -> None:
        """Take the best state out of a checkpoint."""
        names = {name: weights_name('best', name) for name in self.modules}
        if self.modules and all(file in models for file in names.values()):
            live = {name: module.state_dict() for name, module in self.modules.items()}
            self.states = {name: {key: distrib.part_like(tensor, live[name][key]).to('cpu')
                                  for key, tensor in models[file].items() if key in live[name]}
                           for name, file in names.items()}
            self.score, self.update, self.epoch = state['score'], state['update'], state['epoch']
