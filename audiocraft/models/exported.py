"""A trained model as a folder to give away: `model.safetensors`, `model.json`, `config.yaml` and whatever else."""

import json
import typing as tp
from pathlib import Path

from .. import __version__
from ..utils.checkpoint import Checkpoint, State, read_tensors, write_tensors
from ..utils.errors import UserError

WEIGHTS, DESCRIPTION, CONFIG = 'model.safetensors', 'model.json', 'config.yaml'
FORMAT = 1


def is_exported(path: Path) -> bool:
    """Whether a path is a folder that `write_exported` made, or the weights in it."""
    folder = path.parent if path.name in (WEIGHTS, DESCRIPTION) else path
    return (folder / DESCRIPTION).is_file()


def write_exported(folder: Path, state: State, build_cfg: dict[str, tp.Any], *, config: str = '',
                   **facts: tp.Any) -> None:
    """Write weights and description into an existing folder.

    Args:
        folder (Path): where to.
        state (dict): the weights; floating tensors are written in fp32.
        build_cfg (dict): how `utils.config.rebuild` makes the model.
        config (str): resolved config of the training, yaml text.
        facts: further plain values for `model.json` (signature, update, ...).
    """
    fp32 = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    write_tensors(folder / WEIGHTS, fp32)
    description = {'format': FORMAT, 'audiocraft': __version__, **facts, 'build': build_cfg}
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2, allow_nan=False) + '\n', encoding='utf-8')
    (folder / CONFIG).write_text(config, encoding='utf-8')


def read_exported(path: Path) -> Checkpoint:
    """Read what `write_exported` wrote, as a checkpoint that holds one model and nothing to go on from.

    Raises:
        UserError: something is missing, damaged, or written by a newer version.
    """
    folder = path.parent if path.is_file() else path
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding='utf-8'))
        version, build_cfg = int(description['format']), dict(description['build'])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'{folder / DESCRIPTION} does not describe an exported model: {error!r}.') from error
    if version > FORMAT:
        raise UserError(f'{folder} was written by a newer version of audiocraft (format {version}, this one reads '
                        f'{FORMAT}). Update the package.')
    config = folder / CONFIG
    return Checkpoint(path=folder, update=int(description.get('update', 0)),
                      models={'model': read_tensors(folder / WEIGHTS)},
                      state={'models': {'model': build_cfg}, 'objects': {'facts': description.get('facts')}},
                      config=config.read_text(encoding='utf-8') if config.is_file() else '')
