"""The mel VAEs that MMAudio publishes: `v1-16.pth` and `v1-44.pth`, plain state dicts, or the same as safetensors."""

import re
import typing as tp
from pathlib import Path

import torch

from ...utils.checkpoint import State, write_tensors
from ...utils.config import build
from ...utils.errors import UserError
from ..mp_mel_vae import MPMelVAE
from .files import Undrawn, read_state, shapes_of

# What no file says: the front ends, by their number of mel bands, and the vocoders that belong to them.
_FRONT_ENDS: dict[int, dict[str, tp.Any]] = {
    80: {'sample_rate': 16_000, 'n_fft': 1024, 'hop': 256, 'fmin': 0., 'fmax': 8000., 'log': 'log10',
         'statistics': 'mmaudio_16k', 'vocoder': '//pretrained/mmaudio/bigvgan_16k'},
    128: {'sample_rate': 44_100, 'n_fft': 2048, 'hop': 512, 'fmin': 0., 'fmax': 22_050., 'log': 'ln',
          'statistics': 'mmaudio_44k', 'vocoder': '//pretrained/bigvgan_v2_44khz'},
}
_MARKS = {'data_mean', 'data_std', 'decoder.conv_in.weight', 'decoder.mid.attn_1.qkv.weight'}


def reads(path: Path) -> bool:
    """Whether a file, whatever its name, holds a mel VAE as MMAudio publishes it."""
    return _MARKS <= shapes_of(path).keys()


def model_node(state: State) -> dict[str, tp.Any]:
    """The node from which `build` makes the model of a state dict; its dims are read off the shapes.

    Raises:
        UserError: its number of mel bands is that of neither published model, so that its front end is unknown.
    """
    n_mels = state['data_mean'].shape[1]
    if n_mels not in _FRONT_ENDS:
        raise UserError(f'The mel VAE has {n_mels} mel bands; those that MMAudio publishes have '
                        f'{" or ".join(map(str, _FRONT_ENDS))}. Load a model of your own by its XP or export.')
    width = state['decoder.conv_out.weight'].shape[1]
    blocks = [re.match(r'decoder\.up\.(\d+)\.block\.(\d+)\.conv2\.weight', name) for name in state]
    levels = sorted({int(match[1]) for match in blocks if match})
    return {'_target_': 'audiocraft.models.mp_mel_vae.MPMelVAE', **_FRONT_ENDS[n_mels], 'n_mels': n_mels,
            'latent_dim': state['decoder.conv_in.weight'].shape[1], 'width': width,
            'multipliers': [state[f'decoder.up.{i}.block.0.conv2.weight'].shape[0] // width for i in levels],
            'depth': max(int(match[2]) for match in blocks if match)}


def load(path: str | Path, **changes: tp.Any) -> MPMelVAE:
    """Load a published mel VAE, in evaluation mode.

    Args:
        path (str or Path): the file.
        changes: other arguments of `MPMelVAE`, for instance `vocoder=None` for Griffin-Lim.
    Raises:
        UserError: it is damaged or no mel VAE, or parts are missing (the encoder of a file that was made for
            generation only).
    """
    state = read_state(path)
    if not _MARKS <= state.keys():
        raise UserError(f'{path} is no mel VAE of MMAudio: a state dict with {", ".join(sorted(_MARKS))} was expected.')
    with Undrawn():
        model = build({**model_node(state), **changes})
    names = model.state_dict().keys()
    for problem, wrong in (('lacks', names - state.keys()), ('holds unknown', state.keys() - names)):
        if wrong:
            listed = ', '.join(sorted(wrong)[:5]) + (', ...' if len(wrong) > 5 else '')
            raise UserError(f'{path} {problem} {listed} ({len(wrong)} names). Give the whole published file '
                            '(python -m audiocraft weights list).')
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise UserError(f'{path}: the shapes are not those of a mel VAE of MMAudio: {error}') from error
    return model.eval()


def save(model: MPMelVAE, path: str | Path) -> None:
    """Write a mel VAE as MMAudio publishes it, without its vocoder: as safetensors, or else by `torch.save`."""
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()
             if not name.startswith('vocoder.')}
    if Path(path).suffix == '.safetensors':
        write_tensors(Path(path), state)
    else:
        torch.save(state, path)
