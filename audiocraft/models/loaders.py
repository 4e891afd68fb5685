"""Load a model with no solver, from an XP (its checkpoint says how it was built), an export, or a published file."""
import logging
import re
import typing as tp
from pathlib import Path

import torch
from torch import nn

from ..environment import resolve_path
from ..utils.checkpoint import Checkpoint, list_checkpoints, load_latest, read_checkpoint
from ..utils.config import rebuild, to_yaml
from ..utils.errors import UserError
from . import bigvgan
from .compression import CompressionModel
from .exported import WEIGHTS as EXPORTED_WEIGHTS
from .exported import is_exported, read_exported
from .published import mel_vae, mmaudio
from .published.audiocraft import FILE as AUDIOCRAFT_FILE
from .published.audiocraft import load_codec
from .published.files import load_strict, shapes_of
from .published.transformers import CONFIG, WEIGHTS, is_encodec_folder, load_encodec

logger = logging.getLogger(__name__)

# From the one that scored best to the one that every checkpoint has.
PREFERENCE = ('best', 'ema', 'model')
FILES = (*WEIGHTS, CONFIG)  # of transformers


class Reader(tp.NamedTuple):
    """What reads one kind of published model.

    Args:
        reads (callable): whether a file or folder is one.
        load (callable): makes the model.
        describe (callable): of a model, what the checkpoint of an XP would hold: its objects, and keys of its config.
    """
    reads: tp.Callable[[Path], bool]
    load: tp.Callable[[Path], nn.Module]
    describe: tp.Callable[[nn.Module], tuple[dict[str, tp.Any], dict[str, tp.Any]]] = lambda model: ({}, {})


def _is_transformers(path: Path) -> bool:
    return is_encodec_folder(path if path.is_dir() else path.parent) and (path.is_dir() or path.name in FILES)


def _is_audiocraft(path: Path) -> bool:
    return (path / AUDIOCRAFT_FILE).is_file() or (path.is_file() and path.suffix in ('.bin', '.th'))


READERS = (
    Reader(_is_transformers, lambda path: load_encodec(path if path.is_dir() else path.parent)),
    Reader(_is_audiocraft, load_codec),
    Reader(mmaudio.reads, mmaudio.load, mmaudio.describe),
    Reader(mel_vae.reads, mel_vae.load),
    Reader(bigvgan.reads, bigvgan.load_vocoder),
)


def _reader(path: Path) -> Reader | None:
    """What reads a published model, or None where there is none."""
    # An export, and the folder of an XP, say themselves what they are.
    if is_exported(path) or (path / 'COMMIT').exists() or (path / 'checkpoints').is_dir():
        return None
    return next((reader for reader in READERS if reader.reads(path)), None)


def _file_in(path: Path) -> Path:
    """The weights that `import_weights` put alone into a folder, or the path itself."""
    alone = path / EXPORTED_WEIGHTS
    return alone if alone.is_file() and not any((path / name).exists() for name in ('COMMIT', CONFIG)) else path


def is_published(path: Path) -> bool:
    """Whether a file or folder is a model in one of the layouts of others."""
    return not is_exported(path) and _reader(_file_in(path)) is not None


def _resolve(reference: str | Path) -> Path:
    path = resolve_path(str(reference))
    if not path.exists():
        hub = f' The published model is //pretrained/{reference}.' if re.fullmatch(r'facebook/\S+', str(path)) else ''
        raise UserError(f'{reference}: there is no such XP or checkpoint, export or published model ({path}).{hub}')
    return path if is_exported(path) else _file_in(path)


def _published(path: Path, reader: Reader) -> Checkpoint:
    """A published model as a checkpoint of its weights alone."""
    model = reader.load(path)
    objects, config = reader.describe(model)
    return Checkpoint(path=path, update=0, models={'model': model.state_dict()},
                      state={'models': {'model': getattr(model, 'build_cfg', None)}, 'objects': objects},
                      config=to_yaml(config) if config else '')


def _unknown(reference: str | Path, path: Path) -> UserError:
    names = list(shapes_of(path))
    what = f'weights of another model ({", ".join(names[:4])}, ...)' if names else 'no weights'
    return UserError(f'{reference}: {path} holds {what}. Published networks, mel VAEs and vocoders of MMAudio, and '
                     'codecs of AudioCraft and of transformers are known; anything else needs an XP or an export.')


def find_checkpoint(reference: str | Path) -> Checkpoint:
    """Read the newest whole checkpoint that a reference means; changes nothing on disk.

    A model that was exported or published comes as a checkpoint of its weights alone.

    Args:
        reference (str or Path): `//sig/SIG`, the folder of an XP, its `checkpoints` folder, one checkpoint, an export,
            `//pretrained/NAME` or another published model.
    Raises:
        UserError: there is no such folder, or no checkpoint in it yet.
    """
    path = _resolve(reference)
    if is_exported(path):
        return read_exported(path)
    if (reader := _reader(path)) is not None:
        return _published(path, reader)
    if path.is_file():
        raise _unknown(reference, path)
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
        reference (str or Path): `//sig/SIG`, the folder of an XP, its `checkpoints` folder, one checkpoint, the folder
            of an export, or a published model: `//pretrained/NAME`, or the path of its file, whatever its name.
        device (str or torch.device): where to put it.
        which (str or None): `best`, `ema` or `model`; what is absent gives way to the next one of these.
        name (str): name under which the solver keeps the model.
    Raises:
        UserError: no such XP, no checkpoint yet, or a checkpoint that does not tell how its model was built.
    """
    path = _resolve(reference)
    if (reader := _reader(path)) is not None:
        return reader.load(path).to(device).eval()
    checkpoint = find_checkpoint(reference)
    configs: dict[str, tp.Any] = checkpoint.state.get('models') or {}
    if not configs.get(name):
        raise UserError(f'{checkpoint.path} does not say how its "{name}" was built; it holds '
                        f'{", ".join(configs) or "no model that can be rebuilt"}.')
    model = rebuild(configs[name])
    return load_strict(model, _weights(checkpoint, which, name), checkpoint.path).to(device).eval()


def load_compression_model(reference: str | Path, device: str | torch.device = 'cpu',
                           which: str | None = None) -> CompressionModel:
    """Load a model that turns audio into latents or codes and back, in evaluation mode.

    Args:
        reference (str or Path): as for `load_model`. Published codecs are `//pretrained/NAME` (for instance
            `//pretrained/facebook/encodec_32khz`), a folder of `transformers` (`config.json` and weights), or
            AudioCraft's `compression_state_dict.bin`, whatever its name, or the folder that holds it.
        device (str or torch.device): where to put it.
        which (str or None): of an XP: `best`, `ema` or `model`.
    Raises:
        UserError: there is no such model, it is not on this machine, or it is no compression model.
    """
    model = load_model(reference, device, which)
    if not isinstance(model, CompressionModel):
        raise UserError(f'{reference} is a {type(model).__name__}, not a compression model: give the XP of a '
                        '`solver=compression/...`, or a published codec.')
    return model
