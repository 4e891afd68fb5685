"""From the config's nodes to optimizers, schedules and averages."""

import typing as tp
from pathlib import Path

import torch
from torch import nn

from .. import distrib
from ..utils.config import build, to_plain
from ..utils.errors import UserError
from . import optimizer_state, schedules
from .ema import Average

FUSED = ('torch.optim.Adam', 'torch.optim.AdamW')
Trained = nn.Module | tp.Iterable[nn.Parameter] | tp.Iterable[dict[str, tp.Any]]


def build_optimizer(params: Trained, cfg: tp.Any) -> torch.optim.Optimizer:
    """The optimizer of `cfg.optimizer` over `params`, at the rate `cfg.lr`.

    Args:
        params: a module, its parameters, or parameter groups as torch takes them. Frozen parameters are left out.
            A module may define `make_optim_groups()` to return groups of its own.
        cfg: the `optim` node of the config, or a plain dict: `lr`, and `optimizer` = a node with the `_target_` and the
            other arguments.
    """
    cfg = to_plain(cfg)
    node = cfg.get('optimizer')
    if not isinstance(node, dict) or '_target_' not in node:
        raise UserError(f'optim.optimizer must be a node such as {{_target_: torch.optim.AdamW}}, got {node!r}')
    trained = _trained(params)
    if not trained:
        raise UserError('optim: there is nothing to train: no parameters, or all of them frozen (requires_grad=False)')
    fused = {'fused': True} if _can_be_fused(node, trained) else {}
    return build(node, params=_separate(trained), lr=_number('optim.lr', cfg.get('lr')), **fused)


def _can_be_fused(node: dict[str, tp.Any], trained: list[tp.Any]) -> bool:
    """Whether one kernel can do the whole update, which is faster on a CPU as well: for whole weights, not cut ones."""
    params = [param for item in trained for param in (item['params'] if isinstance(item, dict) else [item])]
    return (node['_target_'] in FUSED and not node.keys() & {'fused', 'foreach', 'capturable', 'differentiable'}
            and all(param.device.type in ('cpu', 'cuda') and param.is_floating_point() and not distrib.is_cut(param)
                    for param in params))


def _trained(params: Trained) -> list[tp.Any]:
    """The parameters (or groups) that require gradients, each once."""
    if isinstance(params, nn.Module):
        params = getattr(params, 'make_optim_groups', params.parameters)()
    items: list[tp.Any] = list(tp.cast(tp.Iterable, params))
    if items and isinstance(items[0], dict):
        groups = [{**group, 'params': _trained(group['params'])} for group in items]
        return [group for group in groups if group['params']]
    return list({id(param): param for param in items if param.requires_grad}.values())


def _separate(trained: list[tp.Any]) -> list[tp.Any]:
    """Groups in which parameters are cut over the processes, or none is."""
    if isinstance(trained[0], dict):
        return optimizer_state.separate(trained)
    groups = optimizer_state.separate([{'params': trained}])
    return trained if len(groups) == 1 and 'part_of' not in groups[0] else groups


def _number(key: str, value: tp.Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f'{key} must be a number, got {value!r}')
    if not 0 <= value < float('inf'):
        raise UserError(f'{key} must be finite and not negative, got {value!r}')
    return float(value)


def build_lr_scheduler(optimizer: torch.optim.Optimizer, cfg: tp.Any, total_updates: int) -> tp.Any:
    """The schedule of the node `cfg`, or a constant one for None.

    One of `audiocraft.optim.schedules` also gets `total_updates`; `torch.optim.lr_scheduler` classes get the node's
    keys only, and cannot be rescaled while a job runs.
    """
    if cfg is None:
        return schedules.Constant(optimizer, total_updates)
    node = to_plain(cfg)
    if '_target_' not in node:
        raise UserError(f'schedule must be null or a node with a _target_ (see config/schedule), got {node!r}')
    ours = node['_target_'].startswith('audiocraft.')
    runtime = {'total_updates': total_updates} if ours else {}
    return build(node, optimizer=optimizer, **runtime)


def build_ema(modules: tp.Mapping[str, nn.Module], cfg: tp.Any, *, folder: Path | str | None = None) -> Average | None:
    """The moving average of `modules` after the node `cfg` (`optim.ema`), or None when `cfg.use` is false.

    `folder` is where an average may keep snapshots; processes other than the first one give None.
    """
    node = dict(to_plain(cfg) or {})
    if not node.pop('use', False):
        return None
    if not modules:
        raise UserError('optim.ema.use is true, but the solver registered no module for it: call register_ema(name)')
    return build({'_target_': 'audiocraft.optim.EMA', **node}, modules=dict(modules), folder=folder)
