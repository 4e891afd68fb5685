"""The state of an optimizer in one form, however many processes train and whether its parameters are cut over them."""

import typing as tp

import torch

from .. import distrib

State = dict[str, tp.Any]


def separate(groups: list[State]) -> list[State]:
    """Split parameter groups that mix whole and cut parameters, since one fused operation takes one kind only.

    `part_of` in the new groups is the number of the old one, and `places` where its parameters stood in that.
    """
    if not any(distrib.is_cut(param) for group in groups for param in group['params']):
        return groups
    found = []
    for number, group in enumerate(groups):
        for cut in (False, True):
            places = [place for place, param in enumerate(group['params']) if distrib.is_cut(param) is cut]
            if places:
                params = [group['params'][place] for place in places]
                found.append({**group, 'params': params, 'part_of': number, 'places': places})
    return found


def _numbering(optimizer: torch.optim.Optimizer) -> dict[int, int]:
    """From the number of a parameter in torch's own state to its number as if no group had been split."""
    sizes: dict[int, int] = {}
    for group in optimizer.param_groups:
        sizes[group['part_of']] = sizes.get(group['part_of'], 0) + len(group['params'])
    starts = {number: sum(size for other, size in sizes.items() if other < number) for number in sizes}
    places = [starts[group['part_of']] + place for group in optimizer.param_groups for place in group['places']]
    return dict(enumerate(places))


def _is_split(optimizer: torch.optim.Optimizer) -> bool:
    return 'part_of' in optimizer.param_groups[0]


def _mapped(state: tp.Any, param: torch.Tensor, convert: tp.Callable[[torch.Tensor, torch.Tensor], tp.Any]) -> State:
    return {key: convert(value, param) if isinstance(value, torch.Tensor) else value for key, value in state.items()}


def full_state(optimizer: torch.optim.Optimizer) -> State:
    """`optimizer.state_dict()` as it is with one process. All processes must ask for it."""
    state = optimizer.state_dict()
    if not _is_split(optimizer):
        return state
    params = [param for group in optimizer.param_groups for param in group['params']]
    numbers = _numbering(optimizer)
    values = {numbers[index]: _mapped(value, params[index], lambda tensor, _: distrib.whole(tensor))
              for index, value in sorted(state['state'].items())}
    groups: dict[int, State] = {}
    for group in state['param_groups']:
        own = {key: value for key, value in group.items() if key not in ('part_of', 'places')}
        groups.setdefault(group['part_of'], {**own, 'params': []})['params'] += [numbers[i] for i in group['params']]
    ordered = [{**groups[number], 'params': sorted(groups[number]['params'])} for number in sorted(groups)]
    return {'state': dict(sorted(values.items())), 'param_groups': ordered}


def load_full_state(optimizer: torch.optim.Optimizer, state: State) -> None:
    """Load what `full_state` returned, here or in a training with another number of processes."""
    if not _is_split(optimizer):
        optimizer.load_state_dict(state)
        return
    params = [param for group in optimizer.param_groups for param in group['params']]
    numbers = _numbering(optimizer)

    def cut(tensor: torch.Tensor, param: torch.Tensor) -> torch.Tensor:
        return distrib.cut_like(tensor, param) if tensor.shape == param.shape else tensor
    values = {index: _mapped(state['state'][numbers[index]], params[index], cut)
              for index in numbers if numbers[index] in state['state']}
    groups = []
    for ours, theirs in zip(optimizer.param_groups, optimizer.state_dict()['param_groups']):
        loaded = state['param_groups'][ours['part_of']]
        groups.append({**loaded, 'params': theirs['params'], 'part_of': ours['part_of'], 'places': ours['places']})
    optimizer.load_state_dict({'state': values, 'param_groups': groups})
