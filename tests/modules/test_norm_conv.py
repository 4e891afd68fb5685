"""Convolutions with normalisation: all spellings of weight normalisation load, by name and in value."""

import copy
import warnings

import pytest
import torch
from torch import nn

from audiocraft.modules.norm_conv import (
    PAIRS,
    NormConv1d,
    NormConv2d,
    NormConvTranspose1d,
    has_weight_norm,
    remove_weight_norm,
    rename_weight_norm,
)

CLASSES = [(NormConv1d, (3, 4, 5), (2, 3, 9)), (NormConv2d, (3, 4, (2, 3)), (2, 3, 6, 7)),
           (NormConvTranspose1d, (3, 4, 4, 2), (2, 3, 9))]
SPELLINGS = ('legacy', 'parametrizations', 'fused')


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def legacy(cls, args, norm='weight_norm'):
    """A convolution with one of torch's older normalisations, and its state dict as a child of that name."""
    norm_conv = cls(*args)
    (name, conv), _ = norm_conv.named_children()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        conv = getattr(torch.nn.utils, norm)(conv)
    for parameter in conv.parameters():
        nn.init.normal_(parameter)
    return conv.eval(), {f'{name}.{key}': value.detach() for key, value in conv.state_dict().items()}


class Nested(nn.Module):
    """A convolution further down, beside keys that look a little like its own."""

    def __init__(self, cls, args):
        super().__init__()
        self.inner = nn.ModuleList([cls(*args, norm='weight_norm'), nn.Linear(2, 3), nn.LSTM(2, 2)])


@pytest.mark.parametrize('cls, args, shape', CLASSES)
@pytest.mark.parametrize('spelling', SPELLINGS)
@pytest.mark.parametrize('removed', [False, True])
def test_every_spelling_loads(cls, args, shape, spelling, removed):
    reference, state = legacy(cls, args)
    norm_conv = cls(*args, norm='weight_norm')
    if removed:
        remove_weight_norm(norm_conv)
    norm_conv.load_state_dict(rename_weight_norm(state, spelling), strict=True)
    x = torch.randn(shape)
    torch.testing.assert_close(norm_conv(x), reference(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('cls, args, shape', CLASSES)
@pytest.mark.parametrize('spelling', SPELLINGS)
def test_every_spelling_loads_in_depth_and_without_norm(cls, args, shape, spelling):
    module = Nested(cls, args)
    state = rename_weight_norm(module.state_dict(), spelling)
    keys = list(state)
    other = Nested(cls, args)
    other.load_state_dict(state, strict=True)
    x = torch.randn(shape)
    torch.testing.assert_close(other.inner[0](x), module.inner[0](x), rtol=1e-5, atol=1e-6)
    assert list(state) == keys, 'loading changed the given state dict'
    plain = cls(*args)
    part = {key.removeprefix('inner.0.'): value for key, value in state.items() if key.startswith('inner.0.')}
    plain.load_state_dict(part, strict=True)
    torch.testing.assert_close(plain(x), module.inner[0](x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('spelling', SPELLINGS)
@pytest.mark.parametrize('broken', ['lost', 'unknown', 'shape'])
def test_wrong_states_are_refused(spelling, broken):
    _, state = legacy(NormConv1d, (3, 4, 5))
    state = rename_weight_norm(state, spelling)
    key = next(name for name in state if 'bias' not in name)
    if broken == 'lost':
        del state[key]
    elif broken == 'unknown':
        state['conv.weight_u'] = torch.zeros(3)
    else:
        state[key] = torch.ones(5, 1, 1)
    with pytest.raises(RuntimeError, match='conv'):
        NormConv1d(3, 4, 5, norm='weight_norm').load_state_dict(state, strict=True)


@pytest.mark.parametrize('cls, args, shape', CLASSES)
def test_renaming_round_trips(cls, args, shape):
    module = Nested(cls, args)
    state = module.state_dict()
    older = rename_weight_norm(state, 'legacy')
    assert sum(key.endswith(('weight_g', 'weight_v')) for key in older) == 2
    assert not any('parametrizations' in key for key in older)
    back = rename_weight_norm(older, 'parametrizations')
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    fused = rename_weight_norm(state, 'fused')
    assert fused.keys() == rename_weight_norm(older, 'fused').keys()
    removed = remove_weight_norm(module).state_dict()
    assert fused.keys() == removed.keys()
    for key in fused:
        torch.testing.assert_close(fused[key], removed[key])
    assert rename_weight_norm(fused, 'legacy').keys() == fused.keys(), 'what is fused stays so'


def test_renaming_without_a_prefix_and_in_half_precision():
    _, state = legacy(NormConv1d, (3, 4, 5))
    bare = {key.removeprefix('conv.'): value.half() for key, value in state.items()}
    renamed = rename_weight_norm(bare, 'parametrizations')
    assert set(renamed) == {'bias', *PAIRS['parametrizations']}
    assert rename_weight_norm(bare, 'fused')['weight'].dtype == torch.float16


def test_unknown_spelling():
    with pytest.raises(ValueError, match="'new' is unknown, expected legacy, parametrizations or fused"):
        rename_weight_norm({}, 'new')


@pytest.mark.parametrize('cls, args, shape', CLASSES)
def test_remove_changes_nothing(cls, args, shape):
    norm_conv = cls(*args, norm='weight_norm')
    x, keys = torch.randn(shape), set(cls(*args).state_dict())
    expected = norm_conv(x)
    assert remove_weight_norm(norm_conv) is norm_conv
    assert not any(map(has_weight_norm, norm_conv.modules()))
    assert set(norm_conv.state_dict()) == keys
    torch.testing.assert_close(norm_conv(x), expected, rtol=1e-5, atol=1e-6)
    assert all(parameter.requires_grad for parameter in norm_conv.parameters())
    remove_weight_norm(norm_conv)
    frozen = cls(*args, norm='weight_norm').requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in remove_weight_norm(frozen).parameters())


@pytest.mark.parametrize('norm', ['none', 'weight_norm', 'spectral_norm', 'time_group_norm'])
def test_copies_are_independent_and_load(norm):
    norm_conv = NormConv1d(3, 4, 5, norm=norm).eval()
    twin, x = copy.deepcopy(norm_conv), torch.randn(2, 3, 9)
    torch.testing.assert_close(twin(x), norm_conv(x), rtol=0, atol=0)
    before = norm_conv(x)
    for parameter in twin.parameters():
        parameter.data.mul_(2).add_(1)
    torch.testing.assert_close(norm_conv(x), before, rtol=0, atol=0)
    twin.load_state_dict(rename_weight_norm(norm_conv.state_dict(), 'legacy'), strict=True)
    torch.testing.assert_close(twin(x), before, rtol=0, atol=0)


def test_removal_leaves_copies_as_they_are():
    norm_conv, x = NormConv1d(3, 4, 5, norm='weight_norm'), torch.randn(2, 3, 9)
    expected, twins = norm_conv(x), [copy.deepcopy(norm_conv) for _ in range(2)]
    remove_weight_norm(twins[0])
    for module in (norm_conv, twins[1], copy.deepcopy(norm_conv)):
        assert has_weight_norm(module.conv)
        torch.testing.assert_close(module(x), expected, rtol=0, atol=0)
    again = copy.deepcopy(twins[0])
    torch.testing.assert_close(again(x), expected, rtol=1e-5, atol=1e-6)
    assert type(again.conv) is nn.Conv1d
    assert list(map(id, again.parameters())) != list(map(id, twins[0].parameters()))


def test_zero_weights_stay_finite_and_learn():
    norm_conv = NormConv1d(2, 3, 1, norm='weight_norm')
    norm_conv.load_state_dict({'conv.weight': torch.zeros(3, 2, 1), 'conv.bias': torch.ones(3)})
    y = norm_conv(torch.randn(1, 2, 4))
    torch.testing.assert_close(y, torch.ones_like(y))
    y.sum().backward()
    grads = [parameter.grad for parameter in norm_conv.parameters()]
    assert all(grad.isfinite().all() for grad in grads) and any(grad.any() for grad in grads)


@pytest.mark.parametrize('cls, args, shape', CLASSES)
def test_spectral_norm_loads_what_older_files_have(cls, args, shape):
    reference, state = legacy(cls, args, 'spectral_norm')
    norm_conv = cls(*args, norm='spectral_norm').eval()
    norm_conv.load_state_dict(state, strict=True)
    x = torch.randn(shape)
    torch.testing.assert_close(norm_conv(x), reference(x), rtol=1e-5, atol=1e-5)
    other = cls(*args, norm='spectral_norm').eval()
    other.load_state_dict(norm_conv.state_dict(), strict=True)
    torch.testing.assert_close(other(x), norm_conv(x), rtol=0, atol=0)
    assert rename_weight_norm(state, 'parametrizations').keys() == state.keys(), 'its weight_v is of another kind'


@pytest.mark.parametrize('cls, args, shape', CLASSES)
def test_group_norm_is_over_the_whole_item(cls, args, shape):
    norm_conv = cls(*args, norm='time_group_norm', norm_kwargs={'eps': 1e-9})
    y = norm_conv(10 * torch.randn(shape)).flatten(1)
    torch.testing.assert_close(y.mean(dim=1), torch.zeros(len(y)), rtol=0, atol=1e-5)
    torch.testing.assert_close(y.var(dim=1, unbiased=False), torch.ones(len(y)), rtol=1e-4, atol=0)
    assert norm_conv.norm.eps == 1e-9


def test_wrong_norms_say_what_was_expected():
    with pytest.raises(ValueError, match="'layer_norm' is unknown, expected one of none, weight_norm, spectral_norm"):
        NormConv1d(1, 1, 1, norm='layer_norm')
    with pytest.raises(ValueError, match='time_group_norm averages over the whole time'):
        NormConv1d(1, 1, 1, norm='time_group_norm', causal=True)
