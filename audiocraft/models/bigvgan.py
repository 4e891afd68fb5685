"""BigVGAN: waveforms from log-mel spectrograms.

Lee et al., "BigVGAN: A Universal Neural Vocoder with Large-Scale Training", 2023 (arXiv:2206.04658), section 3: the
generator of HiFi-GAN (Kong et al., 2020) with snake activations that do not alias. Here is the generator, and what
reads the published ones: version 1 at 16 kHz (80 bands, hop 256) and version 2 at 44.1 kHz (128 bands, hop 512).
"""

import json
import logging
import math
import re
import typing as tp
from pathlib import Path

import torch
from torch import nn

from ..environment import resolve_path
from ..modules.alias_free import AliasFree, SnakeBeta
from ..modules.norm_conv import NormConv1d, NormConvTranspose1d, remove_weight_norm, rename_weight_norm
from ..utils.config import build, locate
from ..utils.errors import UserError
from .exported import is_exported
from .published.files import SUFFIXES, Undrawn, load_strict, read_state, shapes_of

logger = logging.getLogger(__name__)

ACTIVATIONS = ('snakebeta', 'snake')


def _conv(channels: int, out: int, kernel: int, *, norm: str, dilation: int = 1, bias: bool = True) -> nn.Conv1d:
    # Out of its container, because the published names have none; it loads every spelling of weight normalisation.
    return NormConv1d(channels, out, kernel, dilation=dilation, padding=(kernel * dilation - dilation) // 2, bias=bias,
                      norm=norm).conv


class AMPBlock(nn.Module):
    """Residual block of dilated convolutions with periodic activations, `[B, C, T]` to the same shape.

    Args:
        channels (int): C.
        kernel (int): of all its convolutions; odd.
        dilations (list of int): one residual branch for each, of a dilated convolution and a plain one.
        activation (function): makes an activation.
        norm (str): `weight_norm` or `none`.
    """

    def __init__(self, channels: int, kernel: int, dilations: tp.Sequence[int],
                 activation: tp.Callable[[], nn.Module], norm: str):
        super().__init__()
        self.convs1 = nn.ModuleList(_conv(channels, channels, kernel, dilation=dilation, norm=norm)
                                    for dilation in dilations)
        self.convs2 = nn.ModuleList(_conv(channels, channels, kernel, norm=norm) for _ in dilations)
        self.activations = nn.ModuleList(activation() for _ in range(2 * len(dilations)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index, (conv1, conv2) in enumerate(zip(self.convs1, self.convs2)):
            first, second = self.activations[2 * index], self.activations[2 * index + 1]
            x = x + conv2(second(conv1(first(x))))
        return x


class BigVGAN(nn.Module):
    """Log-mel spectrogram `[B, n_mels, T]` to waveform `[B, 1, T * hop]` in [-1, 1].

    Loads state dicts with weight normalisation in either spelling, and without it. For inference it is of no use: see
    `remove_weight_norm`.

    Args:
        n_mels (int): mel bands.
        upsample_rates (list of int): factors of the rate, stage by stage; `hop` is their product.
        upsample_kernel_sizes (list of int): of the transposed convolution of each stage; as even or odd as its rate.
        initial_channels (int): channels before the first stage; each stage halves them.
        resblock_kernel_sizes (list of int): a stage is the mean of one block for each of these.
        resblock_dilation_sizes (list of lists of int): dilations of each of the blocks.
        activation (str): `snakebeta` or `snake`, where beta is alpha.
        snake_logscale (bool): the activations keep the logarithm of their alpha and beta.
        use_tanh_at_final (bool): tanh at the end; otherwise the samples are clamped.
        use_bias_at_final (bool): the last convolution has a bias.
        weight_norm (bool): the convolutions are weight-normalised, as they are while it trains.
    """

    def __init__(self, *, n_mels: int = 80, upsample_rates: tp.Sequence[int] = (4, 4, 2, 2, 2, 2),
                 upsample_kernel_sizes: tp.Sequence[int] = (8, 8, 4, 4, 4, 4), initial_channels: int = 1536,
                 resblock_kernel_sizes: tp.Sequence[int] = (3, 7, 11),
                 resblock_dilation_sizes: tp.Sequence[tp.Sequence[int]] = ((1, 3, 5), (1, 3, 5), (1, 3, 5)),
                 activation: str = 'snakebeta', snake_logscale: bool = True, use_tanh_at_final: bool = True,
                 use_bias_at_final: bool = True, weight_norm: bool = True):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f'activation {activation!r} is unknown, expected one of {", ".join(ACTIVATIONS)}')
        norm = 'weight_norm' if weight_norm else 'none'
        self.n_mels, self.hop = n_mels, math.prod(upsample_rates)
        self.use_tanh_at_final = use_tanh_at_final
        self.conv_pre = _conv(n_mels, initial_channels, 7, norm=norm)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        channels = initial_channels

        def act() -> nn.Module:
            return AliasFree(SnakeBeta(channels, log_scale=snake_logscale, tied=activation == 'snake'))

        for rate, kernel in zip(upsample_rates, upsample_kernel_sizes, strict=True):
            if kernel < rate or (kernel - rate) % 2:
                raise ValueError(f'a kernel of {kernel} cannot raise the rate by {rate}: the kernel must be the rate '
                                 'plus an even number')
            up = NormConvTranspose1d(channels, channels // 2, kernel, stride=rate, padding=(kernel - rate) // 2,
                                     norm=norm).convtr
            self.ups.append(nn.Sequential(up))
            channels //= 2
            self.resblocks.extend(AMPBlock(channels, size, dilations, act, norm) for size, dilations
                                  in zip(resblock_kernel_sizes, resblock_dilation_sizes, strict=True))
        self.activation_post = act()
        self.conv_post = _conv(channels, 1, 7, norm=norm, bias=use_bias_at_final)

    def remove_weight_norm(self) -> 'BigVGAN':
        """Multiply the weight normalisation out, in place, so that no forward pass has to; return the model."""
        remove_weight_norm(self)
        return self

    def forward(self, log_mel: torch.Tensor) -> torch.Tensor:
        x = self.conv_pre(log_mel)
        width = len(self.resblocks) // len(self.ups)
        for stage, up in enumerate(self.ups):
            x = up(x)
            blocks = self.resblocks[stage * width:(stage + 1) * width]
            total = blocks[0](x)
            for block in blocks[1:]:
                total = total + block(x)
            x = total / width
        x = self.conv_post(self.activation_post(x))
        return torch.tanh(x) if self.use_tanh_at_final else x.clamp(-1., 1.)


# What published files are called, in the folder that they come in, with a `config.json` beside them or not.
STEMS = ('bigvgan_generator', 'best_netG')
CONFIG = 'config.json'
# Arguments that the shapes of the weights tell, by their names in a `config.json`.
_IN_SHAPES = {
    'num_mels': 'n_mels', 'upsample_initial_channel': 'initial_channels',
    'upsample_kernel_sizes': 'upsample_kernel_sizes', 'resblock_kernel_sizes': 'resblock_kernel_sizes',
    'activation': 'activation', 'use_bias_at_final': 'use_bias_at_final',
}
# Those that they do not tell; a `config.json` leaves out what is true.
_IN_CONFIG = ('upsample_rates', 'resblock_dilation_sizes', 'snake_logscale', 'use_tanh_at_final')
_NEEDED = {'conv_pre.weight', 'ups.0.0.weight', 'resblocks.0.convs1.0.weight', 'resblocks.0.activations.0.act.alpha',
           'conv_post.weight'}


def _are_of_bigvgan(names: tp.Iterable[str]) -> bool:
    return _NEEDED <= {re.sub(r'\.(parametrizations\.weight\.original1|weight_v)$', '.weight', name) for name in names}


def _file(path: Path) -> Path | None:
    """The published file that a path means; None where it is an XP, one of its checkpoints or an export."""
    if is_exported(path):
        return None
    if path.is_file():
        return path if path.suffix in SUFFIXES else None
    files = (path / f'{stem}{suffix}' for stem in STEMS for suffix in SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def reads(path: str | Path) -> bool:
    """Whether a file, or the published file in a folder, is a BigVGAN, by the names of its weights."""
    file = _file(Path(path))
    try:
        return file is not None and _are_of_bigvgan(shapes_of(file))
    except UserError:
        return False


def arguments_in_shapes(state: tp.Mapping[str, torch.Tensor]) -> dict[str, tp.Any]:
    """The arguments of `BigVGAN` that the weights of one tell; weight normalisation must be multiplied out."""
    kernels = [state[f'ups.{stage}.0.weight'].shape[-1] for stage in _count(state, r'ups\.(\d+)\.0\.weight')]
    blocks = _count(state, r'resblocks\.(\d+)\.convs1\.0\.weight')
    sizes = [state[f'resblocks.{block}.convs1.0.weight'].shape[-1] for block in blocks[:len(blocks) // len(kernels)]]
    channels, n_mels, _ = state['conv_pre.weight'].shape
    return {'n_mels': n_mels, 'initial_channels': channels, 'upsample_kernel_sizes': kernels,
            'resblock_kernel_sizes': sizes, 'use_bias_at_final': 'conv_post.bias' in state,
            'activation': 'snakebeta' if 'activation_post.act.beta' in state else 'snake'}


def _count(state: tp.Iterable[str], pattern: str) -> range:
    return range(sum(re.fullmatch(pattern, name) is not None for name in state))


def arguments_of_published(state: tp.Mapping[str, torch.Tensor],
                           config: tp.Mapping[str, tp.Any] | None = None) -> dict[str, tp.Any]:
    """All arguments of `BigVGAN`, from its weights and the config that was published with them, if one was.

    Without a config they are taken as versions 1 and 2 are: kernels of twice the rate, dilations of 1, 3 and 5, and
    a tanh at the end where the last convolution has a bias.

    Raises:
        UserError: the config is that of other weights, or there is none and they are of neither version.
    """
    found = arguments_in_shapes(state)
    if config is None:
        depth = len(_count(state, r'resblocks\.0\.convs1\.\d+\.weight'))
        kernels = found['upsample_kernel_sizes']
        if depth != 3 or any(kernel % 2 for kernel in kernels):
            raise UserError(f'kernels of {kernels} and blocks of {depth} dilations are not those of a published model: '
                            f'the {CONFIG} of this one must lie beside it')
        return {**found, 'upsample_rates': [kernel // 2 for kernel in kernels],
                'resblock_dilation_sizes': [[1, 3, 5] for _ in found['resblock_kernel_sizes']],
                'snake_logscale': True, 'use_tanh_at_final': found['use_bias_at_final']}
    for theirs, ours in _IN_SHAPES.items():
        if config.get(theirs, found[ours]) != found[ours]:
            raise UserError(f'the {CONFIG} beside it has {theirs}: {config[theirs]}, the weights have {found[ours]}. '
                            'If it is the config of another model, move one of the two')
    return {**found, **{name: config.get(name, True) for name in _IN_CONFIG}}


def _config_beside(path: Path) -> dict[str, tp.Any] | None:
    """The `config.json` beside a file, None if there is none or it is that of something else."""
    file = path.parent / CONFIG
    try:
        config = json.loads(file.read_text(encoding='utf-8'))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f'Cannot read {file}: {error}') from error
    if isinstance(config, dict) and {'upsample_rates', 'resblock_dilation_sizes'} <= config.keys():
        return config
    logger.info('%s: is not about a BigVGAN, so not about %s.', file, path.name)
    return None


def _load_file(path: Path) -> BigVGAN:
    state = read_state(path)
    if not _are_of_bigvgan(state):
        found = ', '.join([*state][:5]) or 'none'
        raise UserError(f'{path} is no BigVGAN: weights named {", ".join(sorted(_NEEDED))} were expected in it, or '
                        f'under "generator" in it; it has {len(state)}: {found}{", ..." if len(state) > 5 else ""}.')
    fused = rename_weight_norm({name: value.float() for name, value in state.items()}, 'fused')
    try:
        arguments = arguments_of_published(fused, _config_beside(path))
        with Undrawn():
            model = build({'_target_': 'audiocraft.models.bigvgan.BigVGAN', 'weight_norm': False, **arguments})
    except (ValueError, TypeError, LookupError, RuntimeError) as error:
        raise UserError(f'{path} cannot be loaded: {error}') from error
    return load_strict(model, fused, path)


def load_vocoder(reference: str | Path, device: str | torch.device = 'cpu') -> nn.Module:
    """Load a trained vocoder for inference: in evaluation mode, with no weight normalisation and no gradients.

    Args:
        reference (str or Path): a published BigVGAN, as `//pretrained/NAME`, its file (`best_netG.pt`,
            `bigvgan_generator.pt`, or a `.safetensors` of the same weights) or the folder that holds one of these;
            or the XP, checkpoint or export of a vocoder, see `loaders.load_model`.
        device (str or torch.device): where to put it.
    Raises:
        UserError: there is no such file, XP or export, or what it holds is no vocoder.
    """
    path = resolve_path(reference)
    file = _file(path)
    # By name, because that file knows every published model, and so imports this one.
    model = _load_file(file) if file else locate('audiocraft.models.loaders.load_model')(reference)
    if not all(isinstance(getattr(model, name, None), int) for name in ('n_mels', 'hop')):
        raise UserError(f'{reference} is a {type(model).__name__}, not a vocoder, which has "n_mels" and "hop".')
    return remove_weight_norm(model).to(device).eval().requires_grad_(False)
