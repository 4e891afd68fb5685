"""Codecs in the file that AudioCraft publishes: `compression_state_dict.bin`, read and written.

It is a `torch.save` of plain data: `best_state` (the weights), `xp.cfg` (the config, as yaml text with interpolations),
`version` and `exported`; or, in place of the weights, `pretrained`, the name of a codec that is published elsewhere.
"""

import inspect
import logging
import typing as tp
from pathlib import Path

import torch

from ... import __version__
from ...environment import resolve_path
from ...modules.norm_conv import rename_weight_norm
from ...modules.seanet import SEANetEncoder
from ...utils.checkpoint import State
from ...utils.config import build, from_yaml, locate, to_yaml
from ...utils.errors import UserError
from ..encodec import EncodecModel
from .files import Pickled, load_strict, read_file
from .transformers import load_encodec

logger = logging.getLogger(__name__)

FILE = 'compression_state_dict.bin'
_RVQ = 'audiocraft.quantization.rvq.ResidualVectorQuantizer'
_GAUSSIAN = 'audiocraft.quantization.gaussian.GaussianBottleneck'
# Where a config leaves something out, AudioCraft has other defaults than we.
SEANET_DEFAULTS = {'n_residual_layers': 3}
# Given to encoder and decoder by the model itself.
_OF_MODEL = ('dimension', 'channels', 'causal')
_OF_DECODER = {'trim_right_ratio': 1., 'final_activation': None, 'final_activation_params': None}
# What AudioCraft's quantizer is given; it takes nothing else.
_OF_RVQ = ('n_q', 'q_dropout', 'bins', 'decay', 'kmeans_init', 'kmeans_iters', 'threshold_ema_dead_code',
           'orthogonal_reg_weight')


def read_package(path: Path) -> dict[str, tp.Any]:
    """The content of an exported file, read without running code.

    Raises:
        UserError: it is missing, damaged, or a checkpoint of a training, which holds pickled objects.
    """
    path = path / FILE if path.is_dir() else path
    try:
        package = read_file(path)
    except Pickled as error:
        raise UserError(f'{error} AudioCraft writes such a file while it trains (checkpoint.th): export it there '
                        f'(export_encodec in its utils/export.py) and give the file that this makes ({FILE}).'
                        ) from error
    if not isinstance(package, dict) or not ({'best_state', 'xp.cfg'} <= package.keys() or 'pretrained' in package):
        found = ', '.join(map(str, package)) if isinstance(package, dict) else type(package).__name__
        raise UserError(f'{path} is no codec of AudioCraft: "best_state" and "xp.cfg", or "pretrained", were expected '
                        f'in it, it has {found}.')
    return package


def _chosen(cfg: dict[str, tp.Any], arguments: tp.Iterable[str], where: str) -> dict[str, tp.Any]:
    """The keys of a config that are arguments of ours; the others are named in the log."""
    arguments = set(arguments)
    ignored = sorted(cfg.keys() - arguments)
    if ignored:
        logger.info('Ignored in the config of the codec: %s', ', '.join(f'{where}.{key}' for key in ignored))
    return {key: value for key, value in cfg.items() if key in arguments}


def _arguments(kind: type) -> dict[str, tp.Any]:
    """The arguments of a constructor with their defaults (None where there is none)."""
    parameters = inspect.signature(kind).parameters.values()
    return {p.name: None if p.default is p.empty else p.default for p in parameters}


def _quantizer_node(cfg: dict[str, tp.Any], input_dimension: int, dimension: int) -> dict[str, tp.Any]:
    kind = cfg['encodec'].get('quantizer', 'rvq')
    if kind == 'rvq':
        chosen = _chosen(cfg.get('rvq') or {}, _arguments(locate(_RVQ)), 'rvq')
        return {'_target_': _RVQ, **chosen, 'dimension': dimension}
    if kind == 'no_quant' and input_dimension == 2 * dimension:
        return {'_target_': _GAUSSIAN, 'dimension': dimension}
    raise UserError(f'A codec with quantizer "{kind}", {input_dimension} channels from the encoder and {dimension} to '
                    'the decoder cannot be built: "rvq" was expected, or "no_quant" with twice as many from the '
                    'encoder, mean and scale.')


def model_node(cfg: dict[str, tp.Any]) -> dict[str, tp.Any]:
    """The node from which `build` makes the codec that a config of AudioCraft describes (interpolations resolved)."""
    if cfg.get('compression_model', 'encodec') != 'encodec' or not {'encodec', 'seanet'} <= cfg.keys():
        raise UserError(f'This config describes no EnCodec (compression_model: {cfg.get("compression_model")}): the '
                        'keys "encodec" and "seanet" were expected.')
    seanet, encodec = {'dimension': 128, **SEANET_DEFAULTS, **cfg['seanet']}, cfg['encodec']
    only = {name: dict(seanet.pop(name, None) or {}) for name in ('encoder', 'decoder')}
    dims = {name: only[name].pop('dimension', seanet['dimension']) for name in only}
    shared = _arguments(SEANetEncoder).keys() - set(_OF_MODEL)
    node = _chosen({key: value for key, value in seanet.items() if key not in _OF_MODEL}, shared, 'seanet')
    node['encoder'] = _chosen(only['encoder'], shared, 'seanet.encoder')
    node['decoder'] = _chosen(only['decoder'], shared | _OF_DECODER.keys(), 'seanet.decoder')
    return {'_target_': 'audiocraft.models.encodec.EncodecModel', 'sample_rate': encodec['sample_rate'],
            'channels': encodec.get('channels', 1), 'causal': encodec.get('causal', False),
            'renormalize': encodec.get('renormalize', False), 'seanet': node,
            'quantizer': _quantizer_node(cfg, dims['encoder'], dims['decoder'])}


def _published(name: str, path: Path) -> EncodecModel:
    """The codec that a file points to."""
    try:
        found = resolve_path(f'//pretrained/{name}')
    except UserError as error:
        raise UserError(f'{path} stands for the codec "{name}". {error}') from error
    return load_encodec(found if found.is_dir() else found.parent)


def load_codec(path: str | Path) -> EncodecModel:
    """Load a codec that AudioCraft exported, in evaluation mode.

    Args:
        path (str or Path): `compression_state_dict.bin`, whatever its name, or the folder that holds it.
    Raises:
        UserError: it cannot be read, is no EnCodec, or points to a codec that is not on this machine.
    """
    path = Path(path)
    package = read_package(path)
    if 'best_state' not in package:
        return _published(str(package['pretrained']), path)
    cfg, state = package['xp.cfg'], package['best_state']
    model = build(model_node(from_yaml(cfg) if isinstance(cfg, str) else cfg))
    # Within a training the best states are kept by module.
    return load_strict(model, state.get('model', state), path).eval()


def published_state(model: EncodecModel) -> State:
    """The weights under the names of the published files, in fp32.

    Those of a codec with codes have weight norm in its old spelling, those of a continuous one in the new spelling and
    without our statistics of the latents.
    """
    state = {key: value.detach() for key, value in model.state_dict().items()
             if model.is_discrete or not key.startswith('quantizer.')}
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    return rename_weight_norm(state, to='legacy' if model.is_discrete else 'parametrizations')


def _seanet_config(model: EncodecModel, given: dict[str, tp.Any]) -> dict[str, tp.Any]:
    """The block `seanet` of a config: every argument, with what belongs to one side apart."""
    seanet = {**_arguments(SEANetEncoder), **given}
    only = {name: dict(seanet.pop(name, None) or {}) for name in ('encoder', 'decoder')}
    seanet |= {'dimension': model.quantizer.dimension, 'channels': model.channels, 'causal': model.causal}
    if model.quantizer.input_dimension != model.quantizer.dimension:
        only['encoder']['dimension'] = model.quantizer.input_dimension
    seanet |= {key: seanet[key] or {} for key in ('activation_params', 'norm_params')}
    return {**seanet, 'encoder': only['encoder'], 'decoder': {**_OF_DECODER, **only['decoder']}}


def _rvq_config(node: dict[str, tp.Any]) -> dict[str, tp.Any]:
    """The block `rvq` of a config."""
    given = {**_arguments(locate(_RVQ)), **node}
    if given['codebook_dim'] not in (None, given['dimension']):
        raise UserError(f'AudioCraft has no codebooks of {given["codebook_dim"]} dimensions (codebook_dim) for latents '
                        f'of {given["dimension"]}.')
    return {key: given[key] for key in _OF_RVQ}


def published_config(model: EncodecModel) -> dict[str, tp.Any]:
    """The config from which AudioCraft builds this codec.

    Raises:
        UserError: the model was not made by `build`, so that its arguments are not known, or AudioCraft has no such
            codec.
    """
    node: dict[str, tp.Any] | None = getattr(model, 'build_cfg', None)
    if not node:
        raise UserError('Only a model that was built from a config can be exported: how it was made is not known.')
    kind, block = ('rvq', _rvq_config(node['quantizer'])) if model.is_discrete else ('no_quant', {})
    encodec = {'autoencoder': 'seanet', 'quantizer': kind, 'sample_rate': model.sample_rate, 'channels': model.channels,
               'causal': model.causal, 'renormalize': model.renormalize}
    return {'solver': 'compression', 'device': 'cpu', 'dtype': 'float32', 'sample_rate': model.sample_rate,
            'channels': model.channels, 'compression_model': 'encodec', 'encodec': encodec,
            'seanet': _seanet_config(model, node['seanet']), kind: block}


def export_audiocraft(model: EncodecModel, path: str | Path) -> Path:
    """Write a codec as AudioCraft exports it, and return the path of the file.

    Args:
        model (EncodecModel): made by `build`, as all models of solvers and loaders are.
        path (str or Path): the file, or an existing folder, in which it will be `compression_state_dict.bin`.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    state = {key: value.cpu() for key, value in published_state(model).items()}
    package = {'best_state': state, 'xp.cfg': to_yaml(published_config(model)),
               'version': __version__, 'exported': True}
    torch.save(package, path)
    return path
