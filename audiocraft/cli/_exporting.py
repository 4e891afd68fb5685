"""Writing a trained model to a folder of its own, and loading it again to see that it is the same."""

import os
import shutil
import typing as tp
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from ..models.encodec import EncodecModel
from ..models.exported import is_exported, write_exported
from ..models.loaders import find_checkpoint, load_model
from ..models.mmaudio import MMAudio
from ..models.mp_mel_vae import MPMelVAE
from ..models.published.audiocraft import FILE, export_audiocraft, load_codec
from ..optim import PostHocEMA
from ..utils.checkpoint import Checkpoint
from ..utils.errors import UserError
from ..utils.files import fsync_dir, fsync_file
from ._card import card

MMAUDIO = 'mmaudio.pth'


class Foreign(tp.NamedTuple):
    """How others read a model: which ones, the file, what writes and reads it, and what it has no room for."""
    models: tuple[type[nn.Module], ...]
    file: str
    write: tp.Callable[[tp.Any, Path], tp.Any]
    read: tp.Callable[[Path], nn.Module]
    left_out: str
    words: str


def _write_mmaudio(model: nn.Module, folder: Path) -> None:
    state = {name: value.cpu() for name, value in model.state_dict().items() if not name.startswith('vocoder.')}
    torch.save(state, folder / MMAUDIO)


FORMATS = {
    'audiocraft': Foreign((EncodecModel,), FILE, export_audiocraft, load_codec, 'quantizer.latent_',
                          'AudioCraft reads no {}: only an EnCodec can be exported as its file.'),
    'mmaudio': Foreign((MMAudio, MPMelVAE), MMAUDIO, _write_mmaudio, load_model, 'vocoder.',
                       'MMAudio reads no {}: only its network (solver=mmaudio/...) and its mel VAE '
                       '(solver=compression/mel_vae_16k|44k) can be exported as its files.'),
}


def export(reference: str, out: Path | None = None, *, which: str | None = None, only: str | None = None,
           sigma_rel: float | None = None, force: bool = False) -> Path:
    """Export the model of an XP and return the folder, which is whole or not there.

    Args:
        reference (str): `//sig/SIG`, the folder of an XP, or one of its checkpoints.
        out (Path or None): the folder to make; None: `export` in the folder of the XP.
        which (str or None): the weights, as for `load_model`.
        only (str or None): one of `FORMATS`: write the file that others read, and the card, alone.
        sigma_rel (float or None): instead, the post-hoc average of this relative width at the checkpoint.
        force (bool): replace the folder if it exists.
    Raises:
        UserError: no such XP, the folder exists, or the model does not fit the format.
    """
    checkpoint = find_checkpoint(reference)
    if not (checkpoint.path / 'COMMIT').exists():
        raise UserError(f'{reference} is no XP: it was exported or published before.')
    folder = _xp_folder(checkpoint.path)
    out = folder / 'export' if out is None else out
    if out.exists() and not force:
        raise UserError(f'{out} exists already: name another folder with --out, or replace this one with --force.')
    model = load_model(checkpoint.path, which=which)
    if only and not isinstance(model, FORMATS[only].models):
        raise UserError(FORMATS[only].words.format(type(model).__name__))
    if sigma_rel is not None:
        ema = PostHocEMA.of_snapshots({'model': model}, checkpoint.state.get('ema') or {}, folder / 'ema')
        model.load_state_dict(ema.synthesize(sigma_rel)['model'])
    with _replacing(out) as new:
        _write(new, model, checkpoint, only)
        (new / 'README.md').write_text(card(model, checkpoint, folder), encoding='utf-8')
        check(new, model)
        for path in new.iterdir():
            fsync_file(path)
        fsync_dir(new)
    return out


def _xp_folder(checkpoint: Path) -> Path:
    """The folder of the XP that a checkpoint belongs to."""
    return checkpoint.parent.parent if checkpoint.parent.name == 'checkpoints' else checkpoint.parent


@contextmanager
def _replacing(out: Path) -> tp.Iterator[Path]:
    """A new folder beside `out` that takes its place at the end, or is gone after an error."""
    new, old = (out.with_name(f'.{out.name}.{os.getpid()}.{kind}') for kind in ('new', 'old'))
    new.mkdir(parents=True)
    try:
        yield new
        if out.exists():
            out.rename(old)
        new.rename(out)
        fsync_dir(out.parent)
    finally:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)


def _write(folder: Path, model: nn.Module, checkpoint: Checkpoint, only: str | None) -> None:
    if not only:
        build_cfg = tp.cast(dict[str, tp.Any], model.build_cfg)
        write_exported(folder, model.state_dict(), build_cfg, config=checkpoint.config, sig=checkpoint.state.get('sig'),
                       update=checkpoint.update, facts=(checkpoint.state.get('objects') or {}).get('facts'))
    if only or isinstance(model, EncodecModel):  # beside our own file where it is small
        FORMATS[only or 'audiocraft'].write(model, folder)


def check(folder: Path, model: nn.Module) -> None:
    """Load each file that was written and compare its weights with those of the model.

    Raises:
        UserError: they differ.
    """
    if is_exported(folder):
        _compare('model.safetensors', model, load_model(folder))
    for foreign in FORMATS.values():
        if (folder / foreign.file).exists():
            _compare(foreign.file, model, foreign.read(folder / foreign.file), foreign.left_out)


def _compare(name: str, model: nn.Module, loaded: nn.Module, left_out: str | None = None) -> None:
    ours, theirs = model.state_dict(), loaded.state_dict()
    wrong = sorted(ours.keys() ^ theirs.keys())
    wrong += [key for key in ours if key in theirs and not torch.equal(ours[key].to(theirs[key].dtype), theirs[key])]
    wrong = [key for key in wrong if left_out is None or not key.startswith(left_out)]
    if wrong:
        raise UserError(f'{name}, loaded again, differs from the model in {", ".join(wrong[:4])}: nothing is exported.')
