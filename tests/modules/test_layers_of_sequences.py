"""Layers: shapes, and properties that the recorded numbers do not show."""

import pytest
import torch

from audiocraft.modules.attention import SelfAttention
from audiocraft.modules.conv import ChannelLastConv1d, upsample_nearest
from audiocraft.modules.embeddings import TimestepEmbedder
from audiocraft.modules.joint_blocks import FusedBlock
from audiocraft.modules.mlp import MLP, ConvMLP, gated_width
from audiocraft.modules.norm import RMSNorm
from audiocraft.modules.rope import rotate, rotations
from audiocraft.modules.sequence import latent_length, segments_length, sequence_lengths


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize('length', [9, 80])
@pytest.mark.parametrize('options', [
    dict(kernel_size=1), dict(kernel_size=7, padding=3), dict(kernel_size=3, stride=2, dilation=2, groups=2),
    dict(kernel_size=3, padding='same', bias=False)])
def test_conv_is_conv1d_of_the_transpose(length, options):
    conv, x = ChannelLastConv1d(6, 4, **options), torch.randn(2, length, 6)
    expected = torch.nn.Conv1d.forward(conv, x.mT).mT
    torch.testing.assert_close(conv(x), expected)


def test_upsample_takes_the_nearest():
    x = torch.arange(3.).view(1, 3, 1)
    assert upsample_nearest(x, 6).flatten().tolist() == [0, 0, 1, 1, 2, 2]
    assert upsample_nearest(x, 5).flatten().tolist() == [0, 0, 1, 2, 2]


@pytest.mark.parametrize('hidden, width', [(64, 256), (384, 256), (386, 512), (448 * 4, 1280), (896 * 4, 2560)])
def test_gated_width(hidden, width):
    assert gated_width(hidden) == width


@pytest.mark.parametrize('module', [MLP(8, 32), ConvMLP(8, 32, kernel_size=3), ConvMLP(8, 32, kernel_size=7)])
def test_mlps_keep_the_shape_and_have_no_bias(module):
    assert module(torch.randn(2, 5, 8)).shape == (2, 5, 8)
    assert all(name.endswith('weight') for name, _ in module.named_parameters())


def test_rms_norm_in_half_precision():
    norm, x = RMSNorm(8), torch.randn(3, 8)
    torch.testing.assert_close(norm(x), torch.nn.functional.rms_norm(x, (8,)))
    assert norm(x.bfloat16()).dtype == torch.bfloat16
    assert norm(torch.full((1, 8), 1e-6)).max() < 0.01  # the epsilon is not negligible for tiny inputs


def test_rotation_depends_on_distance_only():
    q, k = torch.randn(2, 1, 1, 1, 8).expand(2, 1, 1, 20, 8)
    rot = rotations(20, 8)
    scores = (rotate(q, rot) @ rotate(k, rot).mT)[0, 0]
    torch.testing.assert_close(scores.diagonal(3), scores[0, 3].expand(17), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rotate(q, rot).norm(dim=-1), q.norm(dim=-1))


def test_rotation_for_the_compiler(monkeypatch):
    x, rot = torch.randn(2, 3, 5, 8), rotations(5, 8)
    expected = rotate(x, rot)
    monkeypatch.setattr(torch.compiler, 'is_compiling', lambda: True)
    torch.testing.assert_close(rotate(x, rot), expected)


def test_scaled_rotations_share_a_time_axis():
    torch.testing.assert_close(rotations(4, 8, scale=3.), rotations(12, 8)[:, ::3])


def test_attention_without_positions_does_not_know_the_order():
    attention, x = SelfAttention(8, 2), torch.randn(1, 6, 8)
    order = torch.randperm(6)
    torch.testing.assert_close(attention(x[:, order]), attention(x)[:, order])
    rot = rotations(6, 4)
    assert not torch.allclose(attention(x[:, order], rot), attention(x, rot)[:, order])


def test_sinusoids_begin_with_cosines():
    embedder = TimestepEmbedder(4, frequency_dim=6)
    assert embedder.sinusoids(torch.zeros(1)).tolist() == [[1, 1, 1, 0, 0, 0]]
    assert 'freqs' not in embedder.state_dict()


def test_closed_gates_leave_the_input():
    block = FusedBlock(8, 2, kernel_size=3)
    torch.nn.init.zeros_(block.adaLN_modulation[1].weight)
    torch.nn.init.zeros_(block.adaLN_modulation[1].bias)
    x = torch.randn(2, 5, 8)
    assert torch.equal(block(x, torch.randn(2, 1, 8)), x)


def test_lengths_of_eight_seconds():
    short, full = sequence_lengths(8., 16000, hop=256), sequence_lengths(8., 44100, hop=512)
    assert (short.latent, short.clip, short.sync, short.samples) == (250, 64, 192, 128000)
    assert (full.latent, full.clip, full.sync, full.samples) == (345, 64, 192, 353280)
    assert latent_length(4., 16000, hop=256) == 125 and segments_length(0.64) == 8
