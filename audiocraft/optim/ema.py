"""Moving averages of weights."""

import contextlib
import typing as tp
from pathlib import Path

import torch
from torch import nn

from .. import distrib

ModuleStates = dict[str, dict[str, torch.Tensor]]


def _slots(module: nn.Module) -> tp.Iterator[tuple[str, dict[str, torch.Tensor | None], str]]:
    """The state-dict keys of a module, each with the dictionary that holds its tensor, so that it is never stale."""
    for path, owner in module.named_modules(remove_duplicate=False):
        prefix = f'{path}.' if path else ''
        for name in owner._parameters:
            yield prefix + name, tp.cast(dict[str, torch.Tensor | None], owner._parameters), name
        for name in owner._buffers:
            if name not in owner._non_persistent_buffers_set:
                yield prefix + name, owner._buffers, name


def _is_averaged(tensor: torch.Tensor) -> bool:
    """Floating point, and not a frozen parameter: frozen parameters and integer buffers are copied as they are."""
    return tensor.is_floating_point() and (tensor.requires_grad or not isinstance(tensor, nn.Parameter))


def _average_of(tensor: torch.Tensor) -> torch.Tensor:
    """A copy to average into, in fp32 at least: a step of `1 - decay` is lost in half precision."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32), copy=True)


class Average:
    """What every moving average shares: which tensors take part, and how they are put into the modules.

    Averaged: floating point parameters that are trained, and persistent floating point buffers. Frozen parameters and
    integer buffers are taken from the modules when they are asked for, and so are the buffers of a module that says
    `averages_itself` (the codebooks of a quantizer: an average over an entry that was replaced would be neither the old
    nor the new one). Tied tensors are averaged once.

    Args:
        modules: the modules by name. Give the plain ones, not a wrapper that renames the keys.
        updates (int): one averaging every that many calls of `step`.
    """

    def __init__(self, modules: tp.Mapping[str, nn.Module], *, updates: int = 1):
        if updates < 1:
            raise ValueError(f'updates must be at least 1, got {updates}')
        if not modules:
            raise ValueError('an average needs at least one module')
        self.modules = dict(modules)
        self.updates = updates
        self.steps = 0
        self._entries: list[tuple[str, str, dict[str, torch.Tensor | None], str]] = []
        self._aliases: dict[str, dict[str, str]] = {name: {} for name in self.modules}
        for name, module in self.modules.items():
            self._find_slots(name, module)

    def _find_slots(self, name: str, module: nn.Module) -> None:
        first: dict[int, str] = {}
        own = {id(part._buffers) for part in module.modules() if getattr(part, 'averages_itself', False)}
        for key, holder, attribute in _slots(module):
            tensor = holder[attribute]
            if tensor is None or not _is_averaged(tensor) or id(holder) in own:
                continue
            owner = first.setdefault(id(tensor), key)
            self._aliases[name][key] = owner
            if owner == key:
                self._entries.append((name, key, holder, attribute))

    def _online(self) -> list[torch.Tensor]:
        """The live tensors that are averaged (of those that are cut, our part), always in the same order."""
        return [distrib.local(tensor).detach() for tensor in self._live()]

    def _live(self) -> list[torch.Tensor]:
        return [tp.cast(torch.Tensor, holder[attribute]) for _, _, holder, attribute in self._entries]

    def _new_averages(self) -> list[torch.Tensor]:
        return [_average_of(tensor) for tensor in self._online()]

    def step(self) -> None:
        """Call once after each update of the parameters."""
        self.steps += 1
        if self.steps % self.updates == 0:
            self._update_averages()

    def _update_averages(self) -> None:
        raise NotImplementedError

    def _current(self) -> list[torch.Tensor]:
        """The average that `averaged` and `swapped` use."""
        raise NotImplementedError

    @torch.no_grad()
    def _lerp(self, averages: list[torch.Tensor], weight: float) -> None:
        """`average += weight * (online - average)` for all tensors, in a few launches."""
        if weight == 1:
            torch._foreach_copy_(averages, self._online())
            return
        by_type: dict[tuple[torch.device, torch.dtype], tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        for average, online in zip(averages, self._online(), strict=True):
            targets, sources = by_type.setdefault((average.device, average.dtype), ([], []))
            targets.append(average)
            sources.append(online.to(average))
        for targets, sources in by_type.values():
            torch._foreach_lerp_(targets, sources, weight)

    def _as_states(self, tensors: tp.Iterable[torch.Tensor]) -> ModuleStates:
        states: ModuleStates = {name: {} for name in self.modules}
        for (name, key, _, _), tensor in zip(self._entries, tensors, strict=True):
            states[name][key] = tensor
        return states

    def _assembled(self, tensors: tp.Iterable[torch.Tensor]) -> ModuleStates:
        """Averages by module and key, whole where each process keeps a part."""
        return self._as_states(distrib.assemble(tensor, live)
                               for tensor, live in zip(tensors, self._live(), strict=True))

    def _full_states(self, tensors: tp.Iterable[torch.Tensor]) -> ModuleStates:
        """Complete state dicts with `tensors` where there is an average, and copies of the live tensors elsewhere."""
        averages = self._assembled(tensors)
        full: ModuleStates = {}
        for name, module in self.modules.items():
            full[name] = {}
            for key, tensor in module.state_dict(keep_vars=True).items():
                owner = self._aliases[name].get(key)
                full[name][key] = (distrib.whole(tensor) if owner is None else averages[name][owner]).detach().clone()
        return full

    def averaged(self) -> ModuleStates:
        """The average as complete state dicts by module name: copies, which later steps do not change."""
        return self._full_states(self._current())

    def finish(self) -> None:
        """Call once after the last update, before the last checkpoint."""

    def final(self) -> ModuleStates:
        """What a finished training is tested with: the average."""
        return self.averaged()

    @contextlib.contextmanager
    def swapped(self, states: ModuleStates | None = None) -> tp.Iterator[None]:
        """Within the context the modules hold the average (or `states`, for instance from `synthesize`).

        On leaving, also by an exception, every tensor that could have changed is what it was, bit for bit.
        """
        if states is None:
            states = self._as_states(self._current())
        else:
            states = self._parts(states)
        backup = self._backup()
        try:
            self._put(states)
            yield
        finally:
            self._put(backup)

    def _parts(self, states: ModuleStates) -> ModuleStates:
        """Our parts of whole states."""
        return {name: {key: distrib.part_like(states[name][key], tensor) for key, holder, attribute in _slots(module)
                       if key in states[name] and (tensor := holder[attribute]) is not None}
                for name, module in self.modules.items()}

    def _backup(self) -> ModuleStates:
        """Copies of everything but frozen parameters: also of integer buffers, which a forward pass may move."""
        return {name: {key: distrib.local(tensor).detach().clone() for key, holder, attribute in _slots(module)
                       if (tensor := holder[attribute]) is not None
                       and (tensor.requires_grad or not isinstance(tensor, nn.Parameter))}
                for name, module in self.modules.items()}

    @torch.no_grad()
    def _put(self, states: ModuleStates) -> None:
        for name, module in self.modules.items():
            for key, holder, attribute in _slots(module):
                if (new := states[name].get(key)) is not None and (tensor := holder[attribute]) is not None:
                    distrib.local(tensor).copy_(new)

    def _load(self, averages: list[torch.Tensor], states: ModuleStates) -> None:
        """Copy saved averages into ours, after checking that they are averages of the same modules."""
        ours = self._as_states(averages)
        for name in ours.keys() | states.keys():
            if ours.get(name, {}).keys() != states.get(name, {}).keys():
                different = sorted(ours.get(name, {}).keys() ^ states.get(name, {}).keys())
                raise ValueError(f'the saved average of module {name!r} is of another module: {different[:5]} differ')
        for (name, key, _, _), live in zip(self._entries, self._live(), strict=True):
            if states[name][key].shape != live.shape:
                raise ValueError(f'the saved average of {name}.{key} has shape {tuple(states[name][key].shape)}, '
                                 f'the module has {tuple(live.shape)}')
            ours[name][key].copy_(distrib.part_like(states[name][key], live))


class EMA(Average):
    """Exponential moving average without a bias towards the initial weights.

    After n averagings the weight that is i averagings old counts `decay ** i * (1 - decay) / (1 - decay ** n)`: at
    first this is nearly the plain mean, and there is no warm-up to choose.

    Args:
        modules, updates: see `Average`.
        decay (float): from 0 (the latest weights) to 1 (the mean of all).
        unbiased (bool): False gives the plain average, which starts from the initial weights: the weight i averagings
            old counts `decay ** i * (1 - decay)`, and the initial ones `decay ** n`.
        folder: accepted for the sake of a common form, not used: this average keeps no files.
    """

    def __init__(self, modules: tp.Mapping[str, nn.Module], *, decay: float = 0.999, updates: int = 1,
                 unbiased: bool = True, folder: Path | str | None = None):
        if not 0 <= decay <= 1:
            raise ValueError(f'decay must be between 0 and 1, got {decay}')
        super().__init__(modules, updates=updates)
        self.decay = decay
        self.unbiased = unbiased
        self._averages = self._new_averages()

    def _current(self) -> list[torch.Tensor]:
        return self._averages

    def _update_averages(self) -> None:
        self._lerp(self._averages, self.weight(self.steps // self.updates))

    def weight(self, count: int) -> float:
        """What the latest weights count in the average after `count` averagings."""
        if not self.unbiased:
            return 1 - self.decay
        return 1 / count if self.decay == 1 else (1 - self.decay) / (1 - self.decay ** count)

    def state_dict(self) -> dict[str, tp.Any]:
        """`steps`, and `averages` by module and key (the live tensors: save them before the next step)."""
        return {'steps': self.steps, 'averages': self._assembled(self._averages)}

    def load_state_dict(self, state: dict[str, tp.Any]) -> None:
        """Continue a saved average; ValueError when it is of other modules."""
        self._load(self._averages, state['averages'])
        self.steps = int(state['steps'])
