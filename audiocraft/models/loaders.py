"""Load a model from an XP, with no solver: the checkpoint says how the model was built."""
import logging
import typing as tp
from pathlib import Path

import torch
from torch import nn

from ..environment import resolve_path
from ..utils.checkpoint import Checkpoint, list_checkpoints, load_latest, read_checkpoint
from ..utils.config import rebuild
from ..utils.errors import UserError
from .compression import CompressionModel

logger = logging.getLogger(__name__)

# From the one that scored best to the one that every checkpoint has.
PREFERENCE = ('best', 'ema', 'model')


def find_checkpoint(reference: str | Path) -> Checkpoint:
    """Read the newest whole checkpoint that a reference means; changes nothing on disk.

    Args:
        reference (str or Path): `//sig/SIG`, the folder of an XP, its `checkpoints` folder or one checkpoint.
    Raises:
        UserError: there is no such folder, or no checkpoint in it yet.
    """
    path = resolve_path(str(reference))
    if not path.exists():
        raise UserError(f'{reference}: there is no such XP or checkpoint ({path}).')
    if (path / 'COMMIT').exists():
        return read_checkpoint(path)
    folder = path / 'checkpoints' if (path / 'checkpoints').is_dir() else path
    checkpoint = load_latest(folder, set_aside=False) if list_checkpoints(folder) else None
    if checkpoint is None:
        raise UserError(f'{reference}: there is no checkpoint in {folder} yet. Train the model to the end of its '
                        'first epoch, or name another XP.')
    return checkpoint


def _weights(checkpoint: Checkpoint, which: str | None, name: str) -> dict[str, torch.Tensor]:
    """The weights of module `name`: those asked for, or the best there are."""
    if which is not None and which not in PREFERENCE:
        raise UserError(f'weights "{which}" are unknown, expected one of {", ".join(PREFERENCE)}')
    wanted = PREFERENCE[PREFERENCE.index(which):] if which else PREFERENCE
    files = {kind: name if kind == 'model' else kind if name == 'model' else f'{kind}.{name}' for kind in wanted}
    found = next((kind for kind, file in files.items() if file in checkpoint.models), None)
    if found is None:
        raise UserError(f'{checkpoint.path} holds no weights of "{name}"; it holds {", ".join(checkpoint.models)}')
    if which and found != which:
        logger.info('%s has no %s weights: taking %s', checkpoint.path, which, found)
    return checkpoint.models[files[found]]


def load_model(reference: str | Path, device: str | torch.device = 'cpu', which: str | None = None,
               name: str = 'model') -> nn.Module:
    """Load a trained model, in evaluation mode.

    Args:
        reference (str or Path): `//sig/SIG`, the folder of an XP, its `checkpoints` folder or one checkpoint.
        device (str or torch.device): where to put it.
        which (str or None): `best`, `ema` or `model`; what is absent gives way to the next one of these.
        name (str): name under which the solver keeps the model.
    Raises:
        UserError: no such XP, no checkpoint yet, or a checkpoint that does not tell how its model was built.
    """
    checkpoint = find_checkpoint(reference)
    configs: dict[str, tp.Any] = checkpoint.state.get('models') or {}
    if not configs.get(name):
        raise UserError(f'{checkpoint.path} does not say how its "{name}" was built; it holds '
                        f'{", ".join(configs) or "no model that can be rebuilt"}.')
    model = rebuild(configs[name])
    try:
        model.load_state_dict(_weights(checkpoint, which, name), strict=True)
    except RuntimeError as error:
        raise UserError(f'{checkpoint.path}: the weights do not fit the model that it describes: {error}') from error
    return model.to(device).eval()


def load_compression_model(reference: str | Path, device: str | torch.device = 'cpu',
                           which: str | None = None) -> CompressionModel:
    """Load a model that turns audio into latents and back; see `load_model`."""
    model = load_model(reference, device, which)
    if not isinstance(model, CompressionModel):
        raise UserError(f'{reference} is a {type(model).__name__}, not a compression model: give the XP of a '
                        '`solver=compression/...`.')
    return model
