"""Layers that pad their input: exact lengths, no sample lost, and no look into the future where none is allowed."""

import math

import pytest
import torch
import torch.nn.functional as F

from audiocraft.modules.streamable import (
    StreamableConv1d,
    StreamableConvTranspose1d,
    StreamableLSTM,
    extra_padding,
    pad1d,
    unpad1d,
)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def influence(layer, x):
    """`[T_out, T_in]`, whether an output frame depends on an input frame."""
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x).sum(dim=(0, 1)), x)
    return jacobian.abs().sum(dim=(1, 2)) > 0


@pytest.mark.parametrize('length', [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize('stride', [1, 2, 3, 5])
def test_extra_padding_completes_the_last_stride(length, stride):
    extra = extra_padding(length, stride)
    assert 0 <= extra < stride and (length + extra) % stride == 0


def test_padding_of_long_and_of_short_input():
    x = torch.arange(1., 6.).view(1, 1, 5)
    for mode in ('constant', 'reflect', 'replicate'):
        torch.testing.assert_close(pad1d(x, (4, 2), mode), F.pad(x, (4, 2), mode))
    assert pad1d(x[..., :2], (3, 3), 'reflect').flatten().tolist() == [0, 0, 2, 1, 2, 0, 0, 0]
    assert pad1d(x[..., :1], (2, 0), 'reflect').flatten().tolist() == [0, 0, 1]
    assert pad1d(x[..., :1], (0, 0), 'reflect').flatten().tolist() == [1]
    torch.testing.assert_close(unpad1d(pad1d(x, (4, 2)), (4, 2)), x)
    torch.testing.assert_close(unpad1d(x, (0, 0)), x)


@pytest.mark.parametrize('length', [1, 2, 7, 12, 13])
@pytest.mark.parametrize('kernel, stride, dilation', [(7, 1, 1), (3, 1, 4), (4, 2, 1), (10, 5, 1), (1, 1, 1),
                                                      (3, 2, 2)])
@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('pad_mode', ['constant', 'reflect', 'replicate'])
def test_conv_has_a_frame_for_each_stride(length, kernel, stride, dilation, causal, pad_mode):
    conv = StreamableConv1d(2, 3, kernel, stride, dilation, causal=causal, pad_mode=pad_mode)
    assert conv(torch.randn(2, 2, length)).shape == (2, 3, math.ceil(length / stride))


@pytest.mark.parametrize('kernel, stride, dilation', [(7, 1, 1), (3, 1, 4), (4, 2, 1), (10, 5, 1), (3, 2, 2)])
def test_conv_looks_where_it_may(kernel, stride, dilation):
    x = torch.randn(1, 2, 23)
    causal = StreamableConv1d(2, 3, kernel, stride, dilation, causal=True, pad_mode='constant')
    seen = influence(causal, x)
    frames, samples = torch.meshgrid(torch.arange(seen.shape[0]), torch.arange(23), indexing='ij')
    # A frame may see its own stride, and nothing later.
    assert not seen[samples >= (frames + 1) * stride].any()
    assert seen[samples == (frames + 1) * stride - 1].all()
    other = StreamableConv1d(2, 3, kernel, stride, dilation, causal=False, pad_mode='constant')
    assert influence(other, x)[samples >= (frames + 1) * stride].any()


def test_no_sample_is_lost():
    for causal in (False, True):
        conv = StreamableConv1d(1, 1, 10, 5, causal=causal, pad_mode='constant')
        assert influence(conv, torch.randn(1, 1, 23)).any(dim=0).all()


@pytest.mark.parametrize('kernel, stride', [(4, 2), (10, 5), (3, 3), (5, 2), (7, 1)])
@pytest.mark.parametrize('causal, ratio', [(False, 1.), (True, 1.), (True, 0.5), (True, 0.)])
def test_transposed_conv_has_whole_strides(kernel, stride, causal, ratio):
    conv = StreamableConvTranspose1d(3, 2, kernel, stride, causal=causal, trim_right_ratio=ratio)
    x = torch.randn(1, 3, 6)
    assert conv(x).shape == (1, 2, 6 * stride)
    seen = influence(conv, x)
    samples, frames = torch.meshgrid(torch.arange(6 * stride), torch.arange(6), indexing='ij')
    later = seen[samples < frames * stride].any()
    assert not later if causal and ratio == 1 else later == (kernel > stride)


def test_lstm():
    lstm, x = StreamableLSTM(4, 2), torch.randn(3, 4, 7)
    y = lstm(x)
    assert y.shape == x.shape
    torch.testing.assert_close(lstm(x[1:2]), y[1:2])
    torch.testing.assert_close(lstm(x[..., :5]), y[..., :5])
    lstm.skip = False
    torch.testing.assert_close(lstm(x) + x, y)
    assert len(lstm.state_dict()) == 8


def test_wrong_arguments_say_what_was_expected():
    with pytest.raises(ValueError, match="pad_mode 'zeros' is unknown, expected one of constant, reflect, replicate"):
        StreamableConv1d(1, 1, 3, pad_mode='zeros')
    with pytest.raises(ValueError, match='a kernel over 3 frames skips input at stride 4'):
        StreamableConv1d(1, 1, 3, 4)
    with pytest.raises(ValueError, match='a kernel of 3 leaves gaps at stride 4'):
        StreamableConvTranspose1d(1, 1, 3, 4)
    with pytest.raises(ValueError, match='trim_right_ratio is 0.5 with causal=False, expected 1, or with causal=True'):
        StreamableConvTranspose1d(1, 1, 4, 2, trim_right_ratio=0.5)
    with pytest.raises(ValueError, match='trim_right_ratio is 2'):
        StreamableConvTranspose1d(1, 1, 4, 2, causal=True, trim_right_ratio=2)
