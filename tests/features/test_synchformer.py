"""The visual encoder of Synchformer as an extractor, its layers against others, and the whole network."""

import typing as tp
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from audiocraft.features.base import frame_views
from audiocraft.features.nets.synchformer import SpectrogramBlock, SyncBlock, SynchformerNetwork
from audiocraft.features.nets.synchformer_visual import EPS, ClassPool, DividedAttention
from audiocraft.features.synchformer import SAMPLES, Synchformer, SyncNetwork, count_segments, cut
from audiocraft.utils.checkpoint import write_tensors
from audiocraft.utils.config import build, rebuild
from audiocraft.utils.errors import UserError

TINY: dict[str, tp.Any] = dict(dim=12, depth=2, num_heads=2)
WHOLE: dict[str, tp.Any] = dict(visual=dict(TINY, size=32), audio=TINY, dim=16, depth=1, num_heads=2)


def tiny(**options: tp.Any) -> Synchformer:
    """Random weights, 2 x 2 patches."""
    return Synchformer(**{'weights': None, 'size': 32, 'network': TINY, **options})


def film(count: int, height: int = 32, width: int = 32, seed: int = 0) -> torch.Tensor:
    """Noise, uint8 `[T, 3, height, width]`."""
    draws = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), generator=draws, dtype=torch.uint8)


def save(path: Path) -> dict[str, torch.Tensor]:
    """Write a file of weights of the whole network."""
    torch.manual_seed(1)
    state = SynchformerNetwork(**WHOLE).state_dict()
    torch.save(state, path)
    return state


@pytest.mark.parametrize('duration, frames, features', [
    (8., 200, 192), (10., 248, 240), (4.8, 120, 112), (0.64, 16, 8), (0.95, 16, 8), (0.96, 24, 16)])
def test_lengths(duration: float, frames: int, features: int) -> None:
    extractor = tiny()
    assert extractor.frames_needed(duration) == frames
    assert extractor.spec(duration) == {'sync_features': ((features, 12), torch.float32)}


def test_too_short_says_so() -> None:
    with pytest.raises(UserError, match='0.5 s is too short.*16 frames'):
        tiny().spec(0.5)
    with pytest.raises(UserError, match='only 15'):
        tiny()(film(15)[None])


def test_features_are_those_of_the_segments() -> None:
    extractor, frames = tiny(segments=2), film(43)
    found = extractor(frames[None])['sync_features'][0]
    assert found.shape == (4 * 8, 12), '43 frames hold four segments'
    for i in range(4):
        segment = frames[8 * i:8 * i + 16].float() / 127.5 - 1
        torch.testing.assert_close(found[8 * i:8 * i + 8], extractor.vfeat_extractor(segment[None])[0])


def test_an_item_does_not_depend_on_its_batch() -> None:
    extractor, one, other = tiny(), film(40), film(40, seed=1)
    batch = extractor(extractor.collate([one, other]))['sync_features']
    assert torch.equal(batch[1], extractor(other[None])['sync_features'][0])
    assert not torch.allclose(batch[0], batch[1], atol=1e-2)


def test_random_weights_are_always_the_same() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, other = tiny(), tiny()
    assert torch.equal(before, torch.get_rng_state())
    assert one.identity()['weights_sha256'] == other.identity()['weights_sha256']
    assert not any(parameter.requires_grad for parameter in one.parameters())


@pytest.mark.parametrize('dtype, autocast', [('bfloat16', False), ('bfloat16', True), ('float32', True)])
def test_half_precision_is_close(dtype: str, autocast: bool) -> None:
    exact = tiny()(film(24)[None])['sync_features']
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
        rounded = tiny(dtype=dtype)(film(24)[None])['sync_features']
    assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)
    assert (exact - rounded).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize('options, words', [({'dtype': 'half'}, 'dtype'), ({'segments': 0}, 'segments')])
def test_wrong_options(options: dict[str, tp.Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        tiny(**options)


def test_frames_are_cut_to_the_square_in_the_middle() -> None:
    extractor, frames = tiny(), film(2, 32, 64)
    assert torch.equal(extractor.prepare(frames), frames[..., 16:48])
    assert torch.equal(extractor.reduce(frames[..., 16:48]), frames[..., 16:48])
    assert extractor.prepare(film(2, 48, 90)).shape == (2, 3, 32, 32)
    assert frame_views([extractor])[25.](frames[:1]).shape == (1, 3, 32, 32), 'done while a video is decoded'


def test_only_its_part_of_the_file_is_loaded(tmp_path: Path) -> None:
    state = save(tmp_path / 'weights.pth')
    node = {'_target_': 'audiocraft.features.synchformer.Synchformer', 'weights': str(tmp_path / 'weights.pth'),
            'size': 32, 'network': TINY}
    extractor = build(node)
    assert list(extractor.state_dict()) == [key for key in state if key.startswith('vfeat_extractor.')]
    assert all(torch.equal(value, state[key]) for key, value in extractor.state_dict().items())
    write_tensors(tmp_path / 'model.safetensors', state)
    assert build({**node, 'weights': str(tmp_path / 'model.safetensors')}).identity()['weights_sha256'] == \
        extractor.identity()['weights_sha256']
    again = rebuild(extractor.build_cfg)
    assert again.identity() == extractor.identity()


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / 'weights.pth'
    one = {'vfeat_extractor.norm.bias': torch.zeros(12)}
    cases = [(one, 'does not fit VisualEncoder: it lacks blocks'), ({'model': {}}, 'no weights'),
             ({'hook': print}, 'pickled objects')]
    for content, words in cases:
        torch.save(content, path)
        with pytest.raises(UserError, match=words):
            tiny(weights=str(path))
    path.write_bytes(b'nothing')
    with pytest.raises(UserError, match='weights.pth'):
        tiny(weights=str(path))


def test_missing_weights_say_where_they_belong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ('AUDIOCRAFT_WEIGHTS', 'HF_HUB_CACHE'):
        monkeypatch.setenv(name, str(tmp_path))
    with pytest.raises(UserError, match='synchformer_state_dict.pth'):
        Synchformer()


# -- layers -------------------------------------------------------------------------------------------------------


def reference_layer(eps: float) -> nn.TransformerEncoderLayer:
    """PyTorch's own pre-norm layer with random weights."""
    torch.manual_seed(2)
    layer = nn.TransformerEncoderLayer(12, 2, 48, 0., 'gelu', eps, batch_first=True, norm_first=True)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer.eval()


@torch.no_grad()
def test_pool_is_the_first_output_of_a_layer() -> None:
    layer, pool = reference_layer(EPS), ClassPool(dim=12, num_heads=2, hidden=48)
    pool.load_state_dict({**layer.state_dict(), 'cls_token': pool.cls_token})
    x = torch.randn(3, 7, 12)
    torch.testing.assert_close(pool(x), layer(torch.cat([pool.cls_token.expand(3, 1, 12), x], 1))[:, 0])


def renamed(state: dict[str, torch.Tensor], qkv: tuple[str, str, str], others: dict[str, str]) -> dict[str, tp.Any]:
    """Weights of PyTorch's layer under other names."""
    found = {f'{name}.{kind}': part for kind in ('weight', 'bias')
             for name, part in zip(qkv, state[f'self_attn.in_proj_{kind}'].chunk(3))}
    return found | {f'{new}.{kind}': state[f'{old}.{kind}']
                    for old, new in others.items() for kind in ('weight', 'bias')}


@torch.no_grad()
def test_layers_are_pre_norm_transformer_layers() -> None:
    x, sizes = torch.randn(2, 5, 12), dict(dim=12, num_heads=2, hidden=48)
    layer = reference_layer(1e-12)
    block: nn.Module = SpectrogramBlock(**sizes, eps=1e-12)
    names = {'self_attn.out_proj': 'attention.output.dense', 'linear1': 'intermediate.dense', 'linear2': 'output.dense',
             'norm1': 'layernorm_before', 'norm2': 'layernorm_after'}
    attention = 'attention.attention.'
    qkv = (f'{attention}query', f'{attention}key', f'{attention}value')
    block.load_state_dict(renamed(layer.state_dict(), qkv, names))
    torch.testing.assert_close(block(x), layer(x))
    layer, block = reference_layer(1e-5), SyncBlock(**sizes)
    names = {'self_attn.out_proj': 'attn.proj', 'linear1': 'mlp.0', 'linear2': 'mlp.2', 'norm1': 'ln1', 'norm2': 'ln2'}
    block.load_state_dict(renamed(layer.state_dict(), ('attn.query', 'attn.key', 'attn.value'), names))
    torch.testing.assert_close(block(x), layer(x))


@torch.no_grad()
@pytest.mark.parametrize('over', ['space', 'time'])
def test_divided_attention_is_attention_with_a_mask(over: str) -> None:
    frames, places = 3, 4
    attention = DividedAttention(dim=8, num_heads=2, over=over)
    x = torch.randn(2, 1 + frames * places, 8)
    time, place = torch.arange(frames * places) // places, torch.arange(frames * places) % places
    group = time if over == 'space' else place
    mask = torch.ones(len(group) + 1, len(group) + 1, dtype=torch.bool)
    mask[1:, 1:] = group[:, None] == group
    q, k, v = attention.qkv(x).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    expected = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(x, frames), attention.proj(expected))


# -- the whole network --------------------------------------------------------------------------------------------


def test_segments_of_sound_and_pictures_go_together() -> None:
    assert count_segments(200, 16) == count_segments(8 * 16_000, SAMPLES) == 24
    assert count_segments(120, 16) == count_segments(round(4.8 * 16_000), SAMPLES) == 14
    assert count_segments(15, 16) == 0 and count_segments(0, 16) == 0
    assert torch.equal(cut(torch.arange(9), 4, 'numbers')[:, 0], torch.tensor([0, 2, 4]))


def test_features_and_logits(tmp_path: Path) -> None:
    save(tmp_path / 'weights.pth')
    sync = SyncNetwork(weights=tmp_path / 'weights.pth', device='cpu', network=WHOLE)
    video = sync.video_features(film(120, 40, 50))
    wav = 0.1 * torch.randn(76_800, generator=torch.Generator().manual_seed(0))
    audio = sync.audio_features(wav)
    assert video.shape == (14, 8, 12) and audio.shape == (14, 6, 12)
    torch.testing.assert_close(sync.audio_features(wav[5120:15_360])[0], audio[1], rtol=1e-4, atol=1e-5)
    both = sync.offset_logits(torch.stack([video, video]), torch.stack([audio, audio.flip(0)]))
    assert both.shape == (2, 21) and not torch.allclose(both[0], both[1])
    network = weakref.ref(sync.network)
    sync.release()
    assert network() is None
    torch.testing.assert_close(sync.offset_logits(video[None], audio[None])[0], both[0])


def test_columns_of_the_spectrogram_are_the_times() -> None:
    torch.manual_seed(0)
    audio = SynchformerNetwork(**WHOLE).afeat_extractor
    mel = torch.randn(2, 128, 66)
    tokens = audio.ast.embeddings(mel)
    assert tokens.shape == (2, 2 + 12 * 6, 12)
    mel[:, :, 56:] += 1.  # only the last of the six columns of patches sees these frames
    changed = (audio.ast.embeddings(mel) - tokens)[:, 2:].unflatten(1, (12, 6)).abs().amax((0, 1, 3)) > 1e-6
    assert changed.tolist() == [False] * 5 + [True]
    assert audio(mel).shape == (2, 6, 12)
