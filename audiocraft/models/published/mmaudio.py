"""The published networks of MMAudio: `mmaudio_*.pth`, or what `import_weights` made of one.

The file holds the weights alone. Everything else follows from their shapes, but for what is the same for all of them:
clips of 8 seconds, and the extractors and codecs that made the data.
"""

import typing as tp
from pathlib import Path

import torch
from torch import nn

from ...environment import resolve_path
from ...modules.sequence import SequenceLengths, sequence_lengths
from ...utils.checkpoint import State
from ...utils.config import build
from ...utils.errors import UserError
from ..mmaudio import NON_PERSISTENT, MMAudio
from . import mel_vae
from .files import Shapes, Undrawn, load_strict, read_file, read_state, shapes_of

DURATION = 8.  # seconds that the networks were trained on
HOP = {end['sample_rate']: end['hop'] for end in mel_vae.FRONT_ENDS.values()}  # samples per frame of the spectrogram
GUIDANCE = 4.5
_FEATURES = 'audiocraft.features'
_SIGNS = {'audio_input_proj.0.weight', 'clip_input_proj.0.weight', 'sync_input_proj.0.weight',
          'final_layer.conv.weight', 't_embed.mlp.0.weight', 'latent_mean', 'empty_string_feat', 'empty_clip_feat',
          'empty_sync_feat', 'joint_blocks.0.latent_block.attn.q_norm.weight'}


def reads(path: Path) -> bool:
    """Whether a file holds the weights of such a network, whatever its name."""
    return _SIGNS <= shapes_of(path).keys()


def _count(shapes: Shapes, blocks: str) -> int:
    return len({name.split('.')[1] for name in shapes if name.startswith(f'{blocks}.')})


def sample_rate_of(latent_dim: int) -> int:
    """The rate of the audio behind latents of this dim: 44.1 kHz for the published 40, else 16 kHz."""
    return 44_100 if latent_dim == 40 else 16_000


def lengths_of(sample_rate: int, duration: float = DURATION) -> SequenceLengths:
    """The lengths of the sequences of a clip."""
    return sequence_lengths(duration, sample_rate, hop=HOP[sample_rate])


def model_node(shapes: Shapes) -> dict[str, tp.Any]:
    """The node from which `build` makes the network whose weights have these shapes, for clips of 8 seconds."""
    hidden_dim, latent_dim = shapes['audio_input_proj.0.weight'][:2]
    fused_depth = _count(shapes, 'fused_blocks')
    lengths = lengths_of(sample_rate_of(latent_dim))
    text_seq_len, text_dim = shapes['empty_string_feat']
    return {'_target_': 'audiocraft.models.mmaudio.MMAudio', 'latent_dim': latent_dim, 'hidden_dim': hidden_dim,
            'clip_dim': shapes['empty_clip_feat'][-1], 'sync_dim': shapes['empty_sync_feat'][-1], 'text_dim': text_dim,
            'depth': _count(shapes, 'joint_blocks') + fused_depth, 'fused_depth': fused_depth,
            'num_heads': hidden_dim // shapes['joint_blocks.0.latent_block.attn.q_norm.weight'][0],
            'latent_seq_len': lengths.latent, 'clip_seq_len': lengths.clip, 'sync_seq_len': lengths.sync,
            'text_seq_len': text_seq_len, 'v2': any(name.startswith('clip_input_proj.2.') for name in shapes)}


def network_state(state: State) -> State:
    """The weights without the tables that old files hold as well, in fp32."""
    return {key: value.float() for key, value in state.items() if key not in NON_PERSISTENT}


def load(path: str | Path) -> MMAudio:
    """Load a published network, in evaluation mode.

    Args:
        path (str or Path): its weights, or a checkpoint of a training by MMAudio, whose weights are taken.
    Raises:
        UserError: it cannot be read, or is another model.
    """
    path = Path(path)
    if not reads(path):
        raise UserError(f'{path} is no network of MMAudio: weights such as {", ".join(sorted(_SIGNS)[:3])} were '
                        'expected in it.')
    node = model_node(shapes_of(path))
    with Undrawn():
        model: MMAudio = build(node)
    return load_strict(model, network_state(read_state(path)), path, assign=True).eval()


def _extractor(target: str, weights: str, consumes: str, key: str, fps: float | None = None) -> dict[str, tp.Any]:
    return {'build_cfg': {'_target_': f'{_FEATURES}.{target}', 'weights': f'//pretrained/{weights}'},
            'consumes': consumes, 'fps': fps, 'keys': [key]}


def published_facts(sample_rate: int) -> dict[str, tp.Any]:
    """What the facts of MMAudio's own stores would say, if they had a facts file.

    Args:
        sample_rate (int): of the audio, 16000 or 44100.
    Raises:
        UserError: another rate.
    """
    if sample_rate not in HOP:
        raise UserError(f'MMAudio has codecs for {" and ".join(map(str, HOP))} Hz, not for {sample_rate} Hz.')
    return {'sample_rate': sample_rate, 'frame_rate': sample_rate / HOP[sample_rate] / 2, 'channels': 1,
            'duration': DURATION, 'codec': mel_vae.reference(sample_rate),
            'extractors': {'image': _extractor('clip.ClipImage', 'clip_dfn5b', 'frames', 'clip_features', 8.),
                           'motion': _extractor('synchformer.Synchformer', 'synchformer', 'frames', 'sync_features',
                                                25.),
                           'text': _extractor('clip.ClipText', 'clip_dfn5b', 'text', 'text_features')}}


def describe(model: nn.Module) -> tuple[dict[str, tp.Any], dict[str, tp.Any]]:
    """What the checkpoint of an XP would hold beside the weights: its objects, and what counts of its config."""
    assert isinstance(model, MMAudio)
    facts = published_facts(sample_rate_of(model.latent_dim))
    return {'facts': facts}, {'codec': facts['codec'], 'sampling': {'guidance': GUIDANCE}}


def empty_string(path_or_name: str | Path = '//pretrained/mmaudio/empty_string') -> torch.Tensor:
    """The features `[N_text, D]` of the empty text, as MMAudio's training keeps them.

    Args:
        path_or_name (str or Path): `empty_string.pth`, which holds `[1, N_text, D]`, or what `import_weights` made of
            it.
    Raises:
        UserError: it is not there, or is something else.
    """
    path = resolve_path(path_or_name)
    content = read_file(path)
    content = next(iter(content.values()), None) if path.suffix == '.safetensors' else content
    if not isinstance(content, torch.Tensor) or content.dim() not in (2, 3) or content.shape[:-2].numel() != 1:
        found = tuple(content.shape) if isinstance(content, torch.Tensor) else type(content).__name__
        raise UserError(f'{path}: a tensor of shape (1, tokens, dim) was expected, the features of the empty text; '
                        f'found {found}.')
    return content.reshape(content.shape[-2:]).float().clone()
