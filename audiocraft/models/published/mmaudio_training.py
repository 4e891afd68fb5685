"""Checkpoints of MMAudio's own training (`<exp>_ckpt_last.pth`) and its snapshots of averages (`ema_ckpts/`).

Such a file holds `it`, `weights`, `optimizer` (AdamW), `scheduler` and `ema`. It says neither how wide the averages are
nor what the training was configured to do: those come from the config of the run that goes on.
"""

import re
import typing as tp
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ...utils.checkpoint import State
from ...utils.errors import UserError
from . import mmaudio
from .files import SUFFIXES, read_file

FROZEN = ('latent_mean', 'latent_std', 'empty_string_feat')  # parameters that its optimizer does not know
SNAPSHOTS = 'ema_ckpts'
_NEEDED = {'it', 'weights', 'optimizer'}
_AVERAGE = 'ema_model.'


@dataclass
class Training:
    """A training by MMAudio, at the end of an update.

    Attributes:
        path (Path): the file.
        it (int): the number it gives to the update that it was written after, from 0.
        update (int): updates done.
        scheduled (int or None): updates that its schedule counted.
        weights (dict): of the network.
        moments (dict): name of a parameter -> `step`, `exp_avg`, `exp_avg_sq` of its optimizer.
        group (dict): the optimizer's options: `lr` of the next update, `betas`, `eps`, `weight_decay`.
        averages (list): the averages of the weights, the narrowest first; empty when the file has none.
        averaged (int): updates that they were made of.
        snapshots (list): `(number of the width, step, file)` of the snapshots beside the file.
    """
    path: Path
    it: int
    update: int
    scheduled: int | None
    weights: State
    moments: dict[str, dict[str, tp.Any]]
    group: dict[str, tp.Any]
    averages: list[State] = field(default_factory=list)
    averaged: int = 0
    snapshots: list[tuple[int, int, Path]] = field(default_factory=list)


def reads(path: Path) -> bool:
    """Whether a file is a checkpoint of a training by MMAudio, from which it can go on."""
    return path.is_file() and path.suffix in SUFFIXES and path.suffix != '.safetensors' and mmaudio.reads(path) and \
        _is_training(read_file(path))


def _is_training(content: tp.Any) -> bool:
    return isinstance(content, dict) and _NEEDED <= content.keys()


def _moments(optimizer: tp.Any, weights: State, path: Path) -> tuple[dict[str, dict[str, tp.Any]], dict[str, tp.Any]]:
    """The optimizer's state by name: it numbers the trained parameters in the order of the network's weights."""
    trained = [name for name in weights if name not in FROZEN]
    groups = optimizer['param_groups']
    numbers = [number for group in groups for number in group['params']]
    if len(groups) != 1 or len(numbers) != len(trained):
        raise UserError(f'{path}: its optimizer has {len(numbers)} parameters in {len(groups)} groups, but there are '
                        f'{len(trained)} trained weights, which MMAudio trains as one group. continue_from takes the '
                        'weights alone from a file that holds nothing else (<exp>_last.pth).')
    moments = {name: optimizer['state'][number] for number, name in zip(numbers, trained)
               if number in optimizer['state']}
    for name, state in moments.items():
        shapes = {tuple(state[key].shape) for key in ('exp_avg', 'exp_avg_sq') if key in state}
        if shapes != {tuple(weights[name].shape)}:
            raise UserError(f'{path}: the optimizer\'s state of "{name}" has the shapes {sorted(shapes)}, the weight '
                            f'has {tuple(weights[name].shape)}: they are not of the same network.')
    return moments, {key: value for key, value in groups[0].items() if key != 'params'}


def _averages(ema: tp.Mapping[str, tp.Any] | None) -> tuple[list[State], int]:
    """The averages by width, and how many updates they were made of."""
    found: dict[int, State] = {}
    steps = 0
    for key, value in (ema or {}).items():
        match = re.fullmatch(r'ema_models\.(\d+)\.(.+)', key)
        if match is None:
            continue
        state = found.setdefault(int(match[1]), {})
        if match[2] == '_extra_state':
            steps = int(value['step'])
        elif match[2].startswith(_AVERAGE):
            state[match[2].removeprefix(_AVERAGE)] = value
    return [mmaudio.network_state(found[number]) for number in sorted(found)], steps


def snapshots_beside(path: Path) -> list[tuple[int, int, Path]]:
    """`(number of the width, step, file)` of the snapshots in the folder `ema_ckpts` beside a file, oldest first."""
    names = [(re.fullmatch(r'(\d+)\.(\d+)\.pt', file.name), file) for file in (path.parent / SNAPSHOTS).glob('*.pt')]
    return sorted(((int(match[1]), int(match[2]), file) for match, file in names if match),
                  key=lambda snapshot: (snapshot[1], snapshot[0]))


def read_snapshot(path: Path) -> State:
    """The average in one file of `ema_ckpts`.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    content = read_file(path)
    state = {key.removeprefix(_AVERAGE): value for key, value in content.items() if key.startswith(_AVERAGE)} \
        if isinstance(content, dict) else {}
    if not state:
        raise UserError(f'{path} is no snapshot of an average: names that begin with "{_AVERAGE}" were expected in it.')
    return mmaudio.network_state(state)


def updates_done(it: int, scheduled: int | None) -> int:
    """How many updates were done when a file was written.

    In the course of a training MMAudio writes the number of the update just done, counted from 0; when it ends or is
    stopped, the number of updates. Its schedule counts right in both cases.
    """
    return it if scheduled == it else it + 1


def read(path: str | Path) -> Training:
    """Read a checkpoint of a training by MMAudio.

    Raises:
        UserError: it cannot be read, is something else, or its parts do not fit together.
    """
    path = Path(path)
    content = read_file(path)
    if not _is_training(content):
        raise UserError(f'{path} is no checkpoint of a training by MMAudio: {", ".join(sorted(_NEEDED))} were expected '
                        'in it.')
    raw: State = {key: value for key, value in content['weights'].items() if key not in mmaudio.NON_PERSISTENT}
    try:
        moments, group = _moments(content['optimizer'], raw, path)
        averages, averaged = _averages(content.get('ema'))
        scheduled = (content.get('scheduler') or {}).get('last_epoch')
        it = int(content['it'])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f'{path}: a part of this checkpoint is missing or damaged: {error!r}.') from error
    listed = [snapshot for snapshot in snapshots_beside(path) if snapshot[1] <= averaged]
    return Training(path=path, it=it, update=updates_done(it, scheduled), scheduled=scheduled,
                    weights=mmaudio.network_state(raw), moments=moments, group=group, averages=averages,
                    averaged=averaged, snapshots=listed)


def option(value: tp.Any) -> tp.Any:
    """An option of an optimizer in a form that can be compared."""
    if isinstance(value, torch.Tensor):
        return value.item()
    return tuple(value) if isinstance(value, (list, tuple)) else value
