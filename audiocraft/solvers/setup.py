"""What a solver checks and says before it trains."""

import typing as tp

import torch
from torch import nn

from .. import distrib
from ..utils.errors import UserError
from .results import LATER_STAGES


def set_precision(*, tf32: bool, cudnn_benchmark: bool) -> None:
    """How exact and how fast GPUs work in float32; without effect on a CPU."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = cudnn_benchmark


def planned_stages(cfg: tp.Any) -> list[str]:
    """Return the stages that a config will run; `every: 0` switches evaluate or generate off."""
    if cfg.execute_only:
        return [cfg.execute_only]
    return ['train', 'valid', *(stage for stage in LATER_STAGES if cfg[stage].every != 0)]


def check_stages(solver: tp.Any, base: type) -> None:
    """Raise one `UserError` that names every method which will be needed and is not there."""
    def defined(name: str) -> bool:
        return getattr(type(solver), name, None) is not getattr(base, name)

    stages = planned_stages(solver.cfg)
    missing = [name for name in ('build_dataloaders', 'build_model') if not defined(name)]
    if any(stage in ('train', 'valid') and not defined(stage) for stage in stages) and not defined('run_step'):
        missing.append('run_step')
    later = [stage for stage in stages if stage in LATER_STAGES and not defined(stage)]
    if missing or later:
        off = ' '.join(f'{stage}.every=0' for stage in later)
        raise UserError(f'{type(solver).__name__} does not define {", ".join([*missing, *later])}, which this config '
                        'will run. Define them in the solver' + (f', or leave the stages out: {off}.' if off else '.'))


def best_metric_name(solver: tp.Any) -> str | None:
    """Return the metric of `valid` that decides: `best_metric`, a method or a property, or `best_metric_name`."""
    value = getattr(solver, 'best_metric_name', None)
    if value is None:
        value = solver.best_metric
    return value() if callable(value) else value


def check_same_length(loader: tp.Any, stage: str) -> None:
    """Refuse loaders that give the processes different numbers of batches: they would wait for each other for ever."""
    lengths = distrib.gather(len(loader) if hasattr(loader, '__len__') else 0)
    if len(set(lengths)) > 1:
        raise UserError(f'The loader of {stage} has {", ".join(map(str, lengths))} batches on the processes, where all '
                        'must have the same number. Give the loader all of the data: its batches are shared out.')


def check_batch_size(cfg: tp.Any, stage: str = 'train') -> None:
    """Refuse a batch that does not fall into equal parts over processes and micro-batches."""
    dataset = cfg.get('dataset') or {}
    size = (dataset.get(stage) or {}).get('batch_size') or dataset.get('batch_size')
    parts = distrib.world_size() * int(cfg.optim.accumulate)
    if size and size % parts:
        raise UserError(f'dataset.batch_size={size} counts the items of one update over all processes: it must be a '
                        f'multiple of {parts} ({distrib.world_size()} processes x optim.accumulate='
                        f'{cfg.optim.accumulate}).')


def describe_modules(modules: tp.Mapping[str, nn.Module]) -> str:
    """Return one line for each module and each of its direct parts: class, parameters in millions, memory."""
    lines = []
    for name, module in modules.items():
        lines.append(_line(name, module))
        lines += [_line(f'  {name}.{part}', child) for part, child in module.named_children()]
    return '\n'.join(lines) or '(no modules are registered)'


def _line(name: str, module: nn.Module) -> str:
    total = sum(param.numel() for param in module.parameters())
    trained = sum(param.numel() for param in module.parameters() if param.requires_grad)
    size = sum(tensor.numel() * tensor.element_size() for tensor in [*module.parameters(), *module.buffers()])
    return (f'{name:<32} {type(module).__name__:<24} {total / 1e6:9.3f} M parameters, {trained / 1e6:.3f} M trained, '
            f'{size / 2 ** 20:.1f} MB')
