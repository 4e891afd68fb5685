"""What a solver puts into a checkpoint and takes from one."""

import logging
import typing as tp
from pathlib import Path

import torch
from torch import nn

from .. import distrib
from ..environment import resolve_path
from ..models.loaders import find_checkpoint, is_published
from ..models.published import files, mmaudio_training
from ..optim import optimizer_state
from ..utils.checkpoint import Checkpoint, State
from ..utils.config import ABSENT, diff, from_yaml, to_plain
from ..utils.errors import UserError
from ..utils.secrets import hide_config
from .best import weights_name

logger = logging.getLogger(__name__)

# Flashy registers these; the history and the config are kept in forms of their own.
NOT_OBJECTS = ('history', 'xp.cfg', 'xp.sig')


def _all_tensors(module: nn.Module) -> bool:
    return all(isinstance(value, torch.Tensor) for value in module.state_dict().values())


def stateful_modules(stateful: tp.Any) -> dict[str, nn.Module]:
    """Return the registered modules by name; the rest of what is registered is not made of tensors alone."""
    found = {}
    for name, source in stateful.sources.items():
        value = getattr(source, 'owner', None) is not None and getattr(source.owner, source.name)
        if isinstance(value, nn.Module) and _all_tensors(value):
            found[name] = value
    return found


def is_cut(solver: tp.Any) -> bool:
    """Whether weights are cut over the processes, so that only all of them together can say what they are."""
    return any(distrib.is_cut(param) for module in stateful_modules(solver.stateful).values()
               for param in module.parameters())


def _object_state(source: tp.Any, value: tp.Any) -> tp.Any:
    return optimizer_state.full_state(value) if isinstance(value, torch.optim.Optimizer) else source.state_dict()


def _registered(source: tp.Any) -> tp.Any:
    """What was registered, behind Flashy's wrapper."""
    return getattr(source.owner, source.name) if hasattr(source, 'owner') else source


def collect(solver: tp.Any) -> tuple[dict[str, State], dict[str, tp.Any]]:
    """Return the weights by file name, and the rest of a solver's state; on all processes if weights are cut."""
    modules = stateful_modules(solver.stateful)
    weights = {name: distrib.full_state(module) for name, module in modules.items()}
    if solver.ema is not None:
        weights |= {weights_name('ema', name): state for name, state in solver.ema.averaged().items()}
    weights |= {weights_name('best', name): state for name, state in solver.best.full_states().items()}
    objects = {name: _object_state(source, _registered(source)) for name, source in solver.stateful.sources.items()
               if name not in modules and name not in NOT_OBJECTS}
    state = {
        'sig': solver.xp.sig, 'update': solver.update, 'history': solver.history,
        'models': {name: getattr(module, 'build_cfg', None) for name, module in modules.items()},
        'objects': objects, 'ema': None if solver.ema is None else solver.ema.state_dict(),
        'best': solver.best.state_dict(), 'data_facts': solver._facts_of_data,
    }
    return weights, state


def _load_into(module: nn.Module, state: State, where: str) -> None:
    ours = module.state_dict()
    missing, unknown = sorted(ours.keys() - state.keys()), sorted(state.keys() - ours.keys())
    shapes = [f'{key} {tuple(state[key].shape)} where {tuple(ours[key].shape)} is expected'
              for key in ours if key in state and state[key].shape != ours[key].shape]
    problems = [f'{len(names)} {what} ({", ".join(names[:4])}{", ..." if len(names) > 4 else ""})'
                for what, names in (('missing', missing), ('unknown', unknown), ('of another shape', shapes)) if names]
    if problems:
        raise UserError(f'The weights in {where} do not fit the model: {"; ".join(problems)}.')
    distrib.load_full_state(module, state)


def restore(solver: tp.Any, checkpoint: Checkpoint) -> None:
    """Put a checkpoint into a solver that was built from the same config."""
    modules, state = stateful_modules(solver.stateful), checkpoint.state
    stored = {*state['models'], *state['objects']}
    registered = {name for name in solver.stateful.sources if name not in NOT_OBJECTS}
    if stored != registered:
        raise UserError(f'{checkpoint.path} holds other states than the solver registers (only in the checkpoint: '
                        f'{sorted(stored - registered) or "none"}, only in the solver: '
                        f'{sorted(registered - stored) or "none"}). The code has changed: use continue_from to take '
                        'the weights into a new XP.')
    for name, module in modules.items():
        _load_into(module, checkpoint.models[name], f'{checkpoint.path} ("{name}")')
    for name, value in state['objects'].items():
        source = solver.stateful.sources[name]
        try:
            if isinstance(_registered(source), torch.optim.Optimizer):
                optimizer_state.load_full_state(_registered(source), value)
            else:
                source.load_state_dict(value)
        except (ValueError, KeyError, RuntimeError) as error:
            raise UserError(f'{checkpoint.path}: the state of "{name}" does not fit: {error}') from error
    if solver.ema is not None and state['ema'] is not None:
        solver.ema.load_state_dict(state['ema'])
    solver.best.load(state['best'], checkpoint.models)
    solver.history[:] = state['history']
    solver.update = checkpoint.update


def check_config(checkpoint: Checkpoint, cfg: tp.Any, is_excluded: tp.Callable[[str], bool], allow: bool) -> None:
    """Compare the config that a checkpoint was made with to the present one.

    Editing a yaml does not change the signature of an XP: without this, one XP would be trained by two recipes.
    Raises:
        UserError: keys that count differ; each is named with both values.
    """
    now = hide_config(to_plain(cfg))
    changes = [f'{key}: {old} -> {new}' for key, old, new in diff(from_yaml(checkpoint.config), now)
               # A key that is new and says nothing is no difference.
               if not is_excluded(key) and not (old in (None, ABSENT) and new in (None, ABSENT))]
    if not changes:
        return
    listed = '\n  '.join(changes)
    if not allow:
        raise UserError(f'The config of this XP has changed since {checkpoint.path} was written:\n  {listed}\n'
                        'Put it back, make it an override (which is another XP), or go on with the new one by '
                        'allow_config_change=true.')
    logger.warning('Going on with a changed config (allow_config_change=true):\n  %s', listed)


def check_data(checkpoint: Checkpoint, facts: tp.Mapping[str, tp.Any]) -> None:
    """Compare the facts of the data with those that a checkpoint recorded, for the stages that are in both.

    Stages that are switched off (`evaluate.every=0`) have no data open.

    Args:
        facts (dict): as `data_facts` returns them now.
    Raises:
        UserError: they differ; each difference is named.
    """
    before, after = checkpoint.state.get('data_facts') or {}, to_plain(facts)
    shared = before.keys() & after.keys()
    before, after = {key: before[key] for key in shared}, {key: after[key] for key in shared}
    changes = [f'{key}: {old} -> {new}' for key, old, new in diff(before, after)]
    if changes:
        raise UserError(f'The data of this XP has changed since {checkpoint.path} was written:\n  '
                        + '\n  '.join(changes) + '\nPut the data back, or train on the new data under another path, '
                        'which is another XP.')


def _weights_of(path: Path) -> tuple[str, dict[str, State]]:
    """The weights of a single file, under the name `model`."""
    try:
        return str(path), {'model': files.read_state(path)}
    except UserError as error:
        raise UserError(f'continue_from: cannot read the weights in {path}: {error}') from error


def continue_from(solver: tp.Any, reference: str) -> mmaudio_training.Training | None:
    """Load the weights of another XP or of a file into a solver; optimizer, EMA and history start anew.

    The checkpoint of a training by MMAudio (`<exp>_ckpt_last.pth`) continues all of it; its other files, weights only.

    Args:
        reference (str): `//sig/SIG`, `//reference/PATH`, `//pretrained/NAME`, the folder of an XP, of one checkpoint
            or of an export, a safetensors file, a published model, a checkpoint of MMAudio's training. Of a checkpoint
            the best state is taken, else the EMA, else the last.
    Returns:
        Training or None: what else a training by MMAudio left, for `continuing.go_on`.
    """
    path = resolve_path(reference)
    if mmaudio_training.reads(path):
        training = mmaudio_training.read(path)
        if 'model' not in solver.modules:
            raise UserError(f'continue_from={reference} is a training of an MMAudio network: give it to a '
                            '`solver=mmaudio/...`.')
        _load_into(solver.modules['model'], training.weights, str(path))
        return training
    if path.is_file() and not is_published(path):
        where, weights = _weights_of(path)
    else:
        checkpoint = find_checkpoint(reference)
        where, weights = str(checkpoint.path), checkpoint.models
    loaded, fresh = [], []
    for name, module in stateful_modules(solver.stateful).items():
        files = [weights_name(kind, name) for kind in ('best', 'ema', 'model')]
        file = next((candidate for candidate in files if candidate in weights), None)
        if file is None:
            fresh.append(name)
            continue
        _load_into(module, weights[file], f'{where} ("{file}")')
        loaded.append(f'{name} from "{file}"')
    if not loaded:
        raise UserError(f'continue_from={reference}: {where} holds none of the modules {", ".join(fresh)}.')
    kept = f'; {", ".join(fresh)} starts anew' if fresh else ''
    logger.info('continue_from=%s: loaded %s (%s)%s. Weights only: optimizer, averages and history start anew.',
                reference, ', '.join(loaded), where, kept)
    return None
