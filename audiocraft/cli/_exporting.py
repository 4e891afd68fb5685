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
from ..models.published.audiocraft import FILE, export_audiocraft, load_codec
from ..utils.checkpoint import Checkpoint
from ..utils.errors import UserError
from ..utils.files import fsync_dir, fsync_file
from ._card import card


def export(reference: str, out: Path | None = None, *, which: str | None = None, only_audiocraft: bool = False,
           force: bool = False) -> Path:
    """Export the model of an XP and return the folder, which is whole or not there.

    Args:
        reference (str): `//sig/SIG`, the folder of an XP, or one of its checkpoints.
        out (Path or None): the folder to make; None: `export` in the folder of the XP.
        which (str or None): the weights, as for `load_model`.
        only_audiocraft (bool): write the file that AudioCraft reads, and the card, alone.
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
    if only_audiocraft and not isinstance(model, EncodecModel):
        raise UserError(f'AudioCraft reads no {type(model).__name__}: only an EnCodec can be exported as its file.')
    with _replacing(out) as new:
        _write(new, model, checkpoint, only_audiocraft)
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


def _write(folder: Path, model: nn.Module, checkpoint: Checkpoint, only_audiocraft: bool) -> None:
    if not only_audiocraft:
        build_cfg = tp.cast(dict[str, tp.Any], model.build_cfg)
        write_exported(folder, model.state_dict(), build_cfg, config=checkpoint.config, sig=checkpoint.state.get('sig'),
                       update=checkpoint.update, facts=(checkpoint.state.get('objects') or {}).get('facts'))
    if isinstance(model, EncodecModel):
        export_audiocraft(model, folder)


def check(folder: Path, model: nn.Module) -> None:
    """Load each file that was written and compare its weights with those of the model.

    Raises:
        UserError: they differ.
    """
    if is_exported(folder):
        _compare('model.safetensors', model, load_model(folder))
    if (folder / FILE).exists():
        # AudioCraft's file has no room for our statistics of the latents.
        _compare(FILE, model, load_codec(folder / FILE), left_out='quantizer.latent_')


def _compare(name: str, model: nn.Module, loaded: nn.Module, left_out: str | None = None) -> None:
    ours, theirs = model.state_dict(), loaded.state_dict()
    wrong = sorted(ours.keys() ^ theirs.keys())
    wrong += [key for key in ours if key in theirs and not torch.equal(ours[key].to(theirs[key].dtype), theirs[key])]
    wrong = [key for key in wrong if left_out is None or not key.startswith(left_out)]
    if wrong:
        raise UserError(f'{name}, loaded again, differs from the model in {", ".join(wrong[:4])}: nothing is exported.')
