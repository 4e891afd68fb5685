"""SEANet: lengths, causality, names of its parameters, norms of its outer blocks."""

import copy
import math

import pytest
import torch

from audiocraft.modules.norm_conv import has_weight_norm, remove_weight_norm, rename_weight_norm
from audiocraft.modules.seanet import SEANetDecoder, SEANetEncoder

TINY = dict(dimension=6, n_filters=4, ratios=(3, 2), norm='weight_norm')
VARIANTS = [dict(), dict(lstm=2), dict(causal=True, pad_mode='constant'), dict(n_residual_layers=3, dilation_base=3),
            dict(activation='snake'), dict(true_skip=False, channels=2), dict(norm='spectral_norm'),
            dict(norm='time_group_norm', disable_norm_outer_blocks=1), dict(compress=1, activation='GELU')]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def build(**options):
    options = {**TINY, **options}
    return SEANetEncoder(**options).eval(), SEANetDecoder(**options).eval()


@pytest.mark.parametrize('options', VARIANTS)
def test_lengths_and_gradients(options):
    encoder, decoder = build(**options)
    channels = options.get('channels', 1)
    for length in (1, 5, 6, 13):
        latents = encoder(torch.randn(2, channels, length))
        assert latents.shape == (2, 6, math.ceil(length / encoder.hop_length))
        assert decoder(latents).shape == (2, channels, latents.shape[-1] * 6)
    decoder(encoder(torch.randn(2, channels, 30))).square().mean().backward()
    for name, parameter in [*encoder.named_parameters(), *decoder.named_parameters()]:
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize('lstm', [0, 2])
def test_causal_means_that_the_future_changes_nothing(lstm):
    encoder, decoder = build(causal=True, pad_mode='constant', lstm=lstm, n_residual_layers=2)
    x = torch.randn(1, 1, 60)
    changed = torch.cat([x[..., :30], torch.randn(1, 1, 30)], dim=-1)
    with torch.no_grad():
        latents, other = encoder(x), encoder(changed)
        torch.testing.assert_close(other[..., :5], latents[..., :5], rtol=0, atol=1e-6)
        assert not torch.allclose(other[..., 5], latents[..., 5], atol=1e-3)
        torch.testing.assert_close(encoder(x[..., :30]), latents[..., :5], rtol=0, atol=1e-6)
        audio, other = decoder(latents), decoder(torch.cat([latents[..., :5], torch.randn(1, 6, 5)], dim=-1))
        torch.testing.assert_close(other[..., :30], audio[..., :30], rtol=0, atol=1e-6)
        assert not torch.allclose(other[..., 30:36], audio[..., 30:36], atol=1e-3)
        torch.testing.assert_close(decoder(latents[..., :5]), audio[..., :30], rtol=0, atol=1e-6)


def test_without_causal_the_future_counts():
    encoder, decoder = build(pad_mode='constant')
    x = torch.randn(1, 1, 60)
    changed = torch.cat([x[..., :30], torch.randn(1, 1, 30)], dim=-1)
    assert not torch.allclose(encoder(changed)[..., 4], encoder(x)[..., 4], atol=1e-3)


def test_indices_are_part_of_the_names():
    encoder, decoder = build(ratios=(8, 5, 4, 2), lstm=2, true_skip=False)
    indices = {key.split('.')[0] for key in rename_weight_norm(encoder.model.state_dict(), 'fused')}
    assert indices == {'0', '1', '3', '4', '6', '7', '9', '10', '12', '13', '15'}
    keys = rename_weight_norm(decoder.state_dict(), 'legacy').keys()
    assert {'model.0.conv.conv.weight_g', 'model.1.lstm.weight_ih_l0', 'model.3.convtr.convtr.weight_v',
            'model.4.block.1.conv.conv.bias', 'model.4.block.3.conv.conv.weight_g', 'model.15.conv.conv.bias',
            'model.4.shortcut.conv.conv.weight_v'} <= keys
    strides = [layer.stride for layer in encoder.model if getattr(layer, 'stride', 1) > 1]
    assert strides == [2, 4, 5, 8]


def normed(network):
    """For each layer of the row: whether its weights are normalised, None if it has none."""
    convs = [[child for child in layer.modules() if hasattr(child, 'kernel_size')] for layer in network.model]
    flags = [{has_weight_norm(conv) for conv in row} for row in convs if row]
    assert all(len(row) == 1 for row in flags)
    return ''.join('n' if row.pop() else '-' for row in flags)


@pytest.mark.parametrize('disabled, encoder, decoder', [
    # first | block, strided | block, strided | last; and the mirror image
    (0, 'nnnnnn', 'nnnnnn'), (1, '-nnnnn', 'nnnnn-'), (2, '---nnn', 'nnn---'), (3, '-----n', 'n-----'),
    (4, '------', '------')])
def test_outer_blocks_without_norm(disabled, encoder, decoder):
    networks = build(disable_norm_outer_blocks=disabled)
    assert list(map(normed, networks)) == [encoder, decoder]


@pytest.mark.parametrize('spelling', ['legacy', 'parametrizations', 'fused'])
@pytest.mark.parametrize('index', [0, 1], ids=['encoder', 'decoder'])
def test_every_spelling_loads_and_copies_work(spelling, index):
    network, other = build(lstm=1, activation='snake')[index], build(lstm=1, activation='snake')[index]
    x = torch.randn(2, (1, 6)[index], 24)
    expected = network(x)
    other.load_state_dict(rename_weight_norm(network.state_dict(), spelling), strict=True)
    torch.testing.assert_close(other(x), expected, rtol=1e-5, atol=1e-6)
    twin = remove_weight_norm(copy.deepcopy(network))
    torch.testing.assert_close(twin(x), expected, rtol=1e-5, atol=1e-6)
    assert not any(map(has_weight_norm, twin.modules())) and any(map(has_weight_norm, network.modules()))
    torch.testing.assert_close(network(x), expected, rtol=0, atol=0)
    twin.load_state_dict(rename_weight_norm(other.state_dict(), spelling), strict=True)
    torch.testing.assert_close(twin(x), expected, rtol=1e-5, atol=1e-6)


def test_final_activation():
    decoder = SEANetDecoder(**TINY, final_activation='Hardtanh', final_activation_params={'max_val': 0.5})
    with torch.no_grad():
        y = decoder(1000 * torch.randn(1, 6, 20))
    assert y.min() == -1 and y.max() == 0.5


@pytest.mark.parametrize('options, message', [
    (dict(norm='time_group_norm', causal=True), 'time_group_norm averages over the whole time'),
    (dict(norm='batch_norm'), "norm 'batch_norm' is unknown, expected one of none, weight_norm"),
    (dict(activation='elu'), "activation 'elu' is unknown, expected snake or one of torch.nn"),
    (dict(pad_mode='mirror'), "pad_mode 'mirror' is unknown, expected one of constant"),
    (dict(ratios=()), r'ratios are \[\], expected at least one stride'),
    (dict(ratios=(4, 0)), r'ratios are \[4, 0\]'),
    (dict(disable_norm_outer_blocks=5), 'disable_norm_outer_blocks is 5, but there are 4 blocks with 2 ratios'),
    (dict(compress=8), 'compress is 8, expected between 1 and n_filters, 4')])
@pytest.mark.parametrize('cls', [SEANetEncoder, SEANetDecoder])
def test_wrong_arguments_say_what_was_expected(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(**{**TINY, **options})


def test_wrong_arguments_of_the_decoder():
    with pytest.raises(ValueError, match='trim_right_ratio is 0.5 with causal=False'):
        SEANetDecoder(**TINY, trim_right_ratio=0.5)
    with pytest.raises(ValueError, match="activation 'clip' is unknown"):
        SEANetDecoder(**TINY, final_activation='clip')
    with pytest.raises(TypeError, match='filters'):
        SEANetDecoder(**TINY, filters=3)
