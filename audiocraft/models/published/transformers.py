"""EnCodec as the `transformers` library stores it: a folder with `config.json` and the weights.

Read without that library: the config says how to build the model, and the weights have other names for the same layers.
"""

import json
import logging
import math
import re
import typing as tp
from pathlib import Path

from ...utils.config import build
from ...utils.errors import UserError
from ..encodec import EncodecModel
from .files import load_strict, read_state

logger = logging.getLogger(__name__)

CONFIG = 'config.json'
WEIGHTS = ('model.safetensors', 'pytorch_model.bin')

# What a `config.json` leaves out: the defaults of that library.
DEFAULTS: dict[str, tp.Any] = {
    'target_bandwidths': [1.5, 3., 6., 12., 24.], 'sampling_rate': 24_000, 'audio_channels': 1, 'normalize': False,
    'chunk_length_s': None, 'hidden_size': 128, 'codebook_size': 1024, 'codebook_dim': None, 'use_causal_conv': True,
    'num_filters': 32, 'num_residual_layers': 1, 'upsampling_ratios': [8, 5, 4, 2], 'norm_type': 'weight_norm',
    'kernel_size': 7, 'last_kernel_size': 7, 'residual_kernel_size': 3, 'dilation_growth_rate': 2,
    'pad_mode': 'reflect', 'compress': 2, 'num_lstm_layers': 2, 'trim_right_ratio': 1., 'use_conv_shortcut': True,
}
# Their names for our arguments of the convolutional networks.
_SEANET = {
    'num_filters': 'n_filters', 'num_residual_layers': 'n_residual_layers', 'upsampling_ratios': 'ratios',
    'norm_type': 'norm', 'kernel_size': 'kernel_size', 'last_kernel_size': 'last_kernel_size',
    'residual_kernel_size': 'residual_kernel_size', 'dilation_growth_rate': 'dilation_base', 'pad_mode': 'pad_mode',
    'compress': 'compress', 'num_lstm_layers': 'lstm',
}


def is_encodec_folder(folder: Path) -> bool:
    """Whether a folder holds an EnCodec of `transformers`."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get('model_type') == 'encodec'


def num_codebooks(config: dict[str, tp.Any], bandwidth: float) -> int:
    """How many codebooks make up a bandwidth in kilobits per second."""
    frame_rate = math.ceil(config['sampling_rate'] / math.prod(config['upsampling_ratios']))
    return max(1, int(1000 * bandwidth // (frame_rate * math.ceil(math.log2(config['codebook_size'])))))


def model_node(config: tp.Mapping[str, tp.Any]) -> dict[str, tp.Any]:
    """The node from which `build` makes the model of a `config.json`."""
    cfg = {**DEFAULTS, **config}
    if cfg['codebook_dim'] not in (None, cfg['hidden_size']):
        raise UserError(f'codebook_dim is {cfg["codebook_dim"]} and hidden_size {cfg["hidden_size"]}: an EnCodec whose '
                        'codebooks have a dimension of their own cannot be read.')
    seanet = {ours: cfg[theirs] for theirs, ours in _SEANET.items()}
    seanet['true_skip'] = not cfg['use_conv_shortcut']
    # It counts for causal models only, and only those accept another value.
    seanet['decoder'] = {'trim_right_ratio': cfg['trim_right_ratio'] if cfg['use_causal_conv'] else 1.}
    quantizer = {'_target_': 'audiocraft.quantization.rvq.ResidualVectorQuantizer', 'dimension': cfg['hidden_size'],
                 'n_q': num_codebooks(cfg, cfg['target_bandwidths'][-1]), 'bins': cfg['codebook_size'],
                 'q_dropout': len(cfg['target_bandwidths']) > 1}
    return {'_target_': 'audiocraft.models.encodec.EncodecModel', 'sample_rate': cfg['sampling_rate'],
            'channels': cfg['audio_channels'], 'causal': cfg['use_causal_conv'], 'renormalize': cfg['normalize'],
            'seanet': seanet, 'quantizer': quantizer}


def _transposed(names: tp.Iterable[str]) -> set[str]:
    """The layers of the decoder that are transposed convolutions: all bare ones but the first and the last."""
    numbers = {int(match[1]) for name in names if (match := re.match(r'decoder\.layers\.(\d+)\.conv\.', name))}
    return {f'decoder.model.{number}' for number in numbers - {min(numbers, default=0), max(numbers, default=0)}}


def native_names(names: tp.Iterable[str]) -> dict[str, str]:
    """From their name of each weight to ours; `names` are those of a whole model."""
    names = list(names)
    transposed = _transposed(names)
    renamed = {}
    for name in names:
        ours = re.sub(r'^(encoder|decoder)\.layers\.', r'\1.model.', name)
        match = re.fullmatch(r'((?:encoder|decoder)\.model\..*?)\.(conv|norm)\.(.*)', ours)
        if match:
            kind = 'convtr' if match[1] in transposed else 'conv'
            inner = kind if match[2] == 'conv' else 'norm'
            ours = f'{match[1]}.{kind}.{inner}.{match[3]}'
        ours = re.sub(r'^quantizer\.layers\.(\d+)\.codebook\.', r'quantizer.vq.layers.\1._codebook.', ours)
        renamed[name] = ours
    return renamed


def _weights_file(folder: Path) -> Path:
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise UserError(f'{folder} has a {CONFIG}, but no weights: {" or ".join(WEIGHTS)} was expected beside it.')
    return found


def load_encodec(folder: str | Path) -> EncodecModel:
    """Load an EnCodec that `transformers` saved, in evaluation mode.

    All codebooks of the last (the largest) of its `target_bandwidths` are in use. Audio is encoded whole: the chunks of
    `chunk_length_s`, into which that library cuts it, are left to the caller.

    Args:
        folder (str or Path): it holds `config.json` and `model.safetensors` or `pytorch_model.bin`.
    Raises:
        UserError: something is missing, is no EnCodec, or does not fit together.
    """
    folder = Path(folder)
    if not is_encodec_folder(folder):
        raise UserError(f'{folder / CONFIG} is not the config of an EnCodec of transformers (model_type "encodec").')
    config = {**DEFAULTS, **json.loads((folder / CONFIG).read_text(encoding='utf-8'))}
    path = _weights_file(folder)
    theirs = read_state(path)
    names = native_names(theirs)
    if config['chunk_length_s'] is not None:
        logger.info('%s: made for chunks of %s s; here audio is encoded whole.', folder, config['chunk_length_s'])
    model = build(model_node(config))
    return load_strict(model, {names[name]: tensor for name, tensor in theirs.items()}, path).eval()
