"""The mel VAEs that MMAudio publishes: `v1-16.pth` and `v1-44.pth`, plain state dicts, or the same as safetensors."""

import re
import typing as tp
from pathlib import Path

from ...modules.mel import MEL_16K, MEL_44K
from ...utils.checkpoint import State
from ...utils.config import build
from ...utils.errors import UserError
from ..mp_mel_vae import MPMelVAE
from .files import Undrawn, load_strict, read_state, shapes_of

# What no file says: the front ends, by their number of mel bands, and the vocoders that belong to them.
FRONT_ENDS: dict[int, dict[str, tp.Any]] = {
    80: {**MEL_16K, 'statistics': 'mmaudio_16k', 'vocoder': '//pretrained/mmaudio/bigvgan_16k'},
    128: {**MEL_44K, 'statistics': 'mmaudio_44k', 'vocoder': '//pretrained/bigvgan_v2_44khz'},
}
_MARKS = {'data_mean', 'data_std', 'decoder.conv_in.weight', 'decoder.mid.attn_1.qkv.weight'}


def reference(sample_rate: int) -> str:
    """The name of the published mel VAE of a sample rate."""
    return f'//pretrained/mmaudio/vae_{sample_rate // 1000}k'


def reads(path: Path) -> bool:
    """Whether a file, whatever its name, holds a mel VAE as MMAudio publishes it."""
    return _MARKS <= shapes_of(path).keys()


def model_node(state: State) -> dict[str, tp.Any]:
    """The node from which `build` makes the model of a state dict; its dims are read off the shapes.

    Raises:
        UserError: its number of mel bands is that of neither published model, so that its front end is unknown.
    """
    n_mels = state['data_mean'].shape[1]
    if n_mels not in FRONT_ENDS:
        raise UserError(f'The mel VAE has {n_mels} mel bands; those that MMAudio publishes have '
                        f'{" or ".join(map(str, FRONT_ENDS))}. Load a model of your own by its XP or export.')
    width = state['decoder.conv_out.weight'].shape[1]
    blocks = [re.match(r'decoder\.up\.(\d+)\.block\.(\d+)\.conv2\.weight', name) for name in state]
    levels = sorted({int(match[1]) for match in blocks if match})
    return {'_target_': 'audiocraft.models.mp_mel_vae.MPMelVAE', **FRONT_ENDS[n_mels],
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
    return load_strict(model, state, path).eval()
