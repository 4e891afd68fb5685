"""Convolutions with a choice of normalisation, and the spellings of weight normalisation in state dicts.

Weight normalisation (Salimans and Kingma, 2016, equation 2) writes a weight as `g * v / ||v||`. State dicts have it as
`weight_g` and `weight_v` (`legacy`), as `parametrizations.weight.original0` and `original1` (`parametrizations`, what
our modules save), or multiplied out as `weight` (`fused`). Our convolutions load all three.
"""

import typing as tp

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

NORMS = ('none', 'weight_norm', 'spectral_norm', 'time_group_norm')
Spelling = tp.Literal['legacy', 'parametrizations', 'fused']
State = dict[str, torch.Tensor]

# The names of g and v, after the name of the module.
PAIRS = {
    'legacy': ('weight_g', 'weight_v'),
    'parametrizations': ('parametrizations.weight.original0', 'parametrizations.weight.original1'),
}
# Spectral normalisation as older files spell it; its `weight_v` is a vector and never comes with a `weight_g`.
SPECTRAL = {
    'weight_orig': 'parametrizations.weight.original',
    'weight_u': 'parametrizations.weight.0._u',
    'weight_v': 'parametrizations.weight.0._v',
}


def _fuse(g: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """`g * v / ||v||`, the norm over all dims along which g has a single element."""
    dims = [dim for dim, size in enumerate(g.shape) if size == 1]
    return v * (g / torch.linalg.vector_norm(v, dim=dims, keepdim=True))


def _split(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """g and v of a weight, with one norm for each element of the first dim."""
    g = torch.linalg.vector_norm(weight, dim=list(range(1, weight.dim())), keepdim=True)
    # A row of zeros has no direction: any v serves, but a v of zero would make the weight NaN.
    return g, torch.where(g == 0, torch.ones_like(weight), weight)


def _pairs(state: tp.Mapping[str, torch.Tensor]) -> tp.Iterator[tuple[str, str, str]]:
    """Of each weight normalisation in a state dict: the prefix of its module, and its names of g and v."""
    for key in state:
        for name_g, name_v in PAIRS.values():
            prefix = key.removesuffix(name_g)
            if prefix != key and prefix + name_v in state:
                yield prefix, name_g, name_v


def rename_weight_norm(state: tp.Mapping[str, torch.Tensor], to: Spelling) -> State:
    """A copy of a state dict with every weight normalisation in it spelled as `to`.

    Args:
        state: of any module; keys that do not belong to a weight normalisation are kept.
        to (str): `legacy`, `parametrizations` or `fused`. What is fused already stays so, as nothing tells which
            weights were normalised: load it into a model that has the normalisation, and take its state dict.
    """
    if to not in (*PAIRS, 'fused'):
        raise ValueError(f'spelling {to!r} is unknown, expected legacy, parametrizations or fused')
    renamed = dict(state)
    for prefix, name_g, name_v in _pairs(state):
        g, v = renamed.pop(prefix + name_g), renamed.pop(prefix + name_v)
        if to == 'fused':
            renamed[f'{prefix}weight'] = _fuse(g, v)
        else:
            renamed.update({prefix + name: part for name, part in zip(PAIRS[to], (g, v))})
    return renamed


def has_weight_norm(module: nn.Module) -> bool:
    """Whether the weight of this very module is normalised."""
    lists = getattr(module, 'parametrizations', None)
    return isinstance(lists, nn.ModuleDict) and 'weight' in lists and hasattr(lists['weight'], 'original1')


def remove_weight_norm(module: nn.Module) -> nn.Module:
    """Multiply all weight normalisations in a module out, in place, so that no forward pass has to; return it.

    For inference: the result can be trained on, but no longer has the normalisation.
    """
    for child in module.modules():
        if has_weight_norm(child):
            _remove_weight_norm(child)
    return module


def _remove_weight_norm(conv: tp.Any) -> None:
    # Not `parametrize.remove_parametrizations`: it takes `weight` from the class of the module, which its deep copies
    # share, so that they break.
    trained = any(part.requires_grad for part in conv.parametrizations.parameters())
    weight = nn.Parameter(conv.weight.detach().clone(), requires_grad=trained)
    conv.__class__ = parametrize.type_before_parametrizations(conv)
    del conv.parametrizations
    conv.weight = weight


def _adapt_state(module: nn.Module, state: State, prefix: str, *_: tp.Any) -> None:
    """Before a convolution loads its part of a state dict: spell the weight as the module does."""
    own = {key.removeprefix(prefix): state.pop(key) for key in list(state) if key.startswith(prefix)}
    if has_weight_norm(module):
        own = rename_weight_norm(own, 'parametrizations')
        if 'weight' in own:
            own |= dict(zip(PAIRS['parametrizations'], _split(own.pop('weight'))))
    else:
        own = rename_weight_norm(own, 'fused')
        if parametrize.is_parametrized(module, 'weight'):
            own = {SPECTRAL.get(name, name): value for name, value in own.items()}
    state.update({prefix + name: value for name, value in own.items()})


ConvT = tp.TypeVar('ConvT', bound=nn.Module)


def _normalized(conv: ConvT, channels: int, norm: str, norm_kwargs: dict[str, tp.Any] | None,
                causal: bool) -> tuple[ConvT, nn.Module]:
    """A convolution with its weight normalised if `norm` says so, and the module that follows it."""
    options = norm_kwargs or {}
    after: nn.Module = nn.Identity()
    if norm == 'weight_norm':
        weight_norm(conv, **options)
    elif norm == 'spectral_norm':
        spectral_norm(conv, **options)
    elif norm == 'time_group_norm':
        if causal:
            raise ValueError('time_group_norm averages over the whole time, which a causal model cannot: '
                             'choose the norm weight_norm, spectral_norm or none, or causal=False')
        after = nn.GroupNorm(1, channels, **options)
    elif norm != 'none':
        raise ValueError(f'norm {norm!r} is unknown, expected one of {", ".join(NORMS)}')
    conv.register_load_state_dict_pre_hook(_adapt_state)
    return conv, after


class NormConv1d(nn.Module):
    """`nn.Conv1d` as the child `conv`, followed by the child `norm`.

    Args:
        norm (str): `none`, `weight_norm` and `spectral_norm` of the weight, or `time_group_norm`, which normalises
            each item of the output over channels and time.
        norm_kwargs (dict or None): further arguments of the normalisation.
        causal (bool): that the output may not depend on later input, so that a norm over time is a ValueError.
        *args, **kwargs: those of `nn.Conv1d`.
    """

    def __init__(self, *args: tp.Any, norm: str = 'none', norm_kwargs: dict[str, tp.Any] | None = None,
                 causal: bool = False, **kwargs: tp.Any):
        super().__init__()
        conv = nn.Conv1d(*args, **kwargs)
        self.conv, self.norm = _normalized(conv, conv.out_channels, norm, norm_kwargs, causal)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, C_in, T]` to `[B, C_out, T']`."""
        return self.norm(self.conv(x))


class NormConv2d(nn.Module):
    """`nn.Conv2d` as the child `conv`, followed by the child `norm`; see `NormConv1d`."""

    def __init__(self, *args: tp.Any, norm: str = 'none', norm_kwargs: dict[str, tp.Any] | None = None,
                 causal: bool = False, **kwargs: tp.Any):
        super().__init__()
        conv = nn.Conv2d(*args, **kwargs)
        self.conv, self.norm = _normalized(conv, conv.out_channels, norm, norm_kwargs, causal)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, C_in, H, W]` to `[B, C_out, H', W']`."""
        return self.norm(self.conv(x))


class NormConvTranspose1d(nn.Module):
    """`nn.ConvTranspose1d` as the child `convtr`, followed by the child `norm`; see `NormConv1d`.

    Its weight is normalised for each input channel, which is the first dim.
    """

    def __init__(self, *args: tp.Any, norm: str = 'none', norm_kwargs: dict[str, tp.Any] | None = None,
                 causal: bool = False, **kwargs: tp.Any):
        super().__init__()
        convtr = nn.ConvTranspose1d(*args, **kwargs)
        self.convtr, self.norm = _normalized(convtr, convtr.out_channels, norm, norm_kwargs, causal)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, C_in, T]` to `[B, C_out, T']`."""
        return self.norm(self.convtr(x))
