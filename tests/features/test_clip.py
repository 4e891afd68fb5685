"""The towers of CLIP at tiny sizes, with random weights: files, memory, and independence of neighbours."""

import subprocess
import sys
import typing as tp
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from audiocraft.data.store import Store
from audiocraft.data.video import read_video
from audiocraft.environment import CONFIG_ROOT
from audiocraft.features.clip import ClipImage, ClipText
from audiocraft.features.extract import extract
from audiocraft.utils.config import build, rebuild
from audiocraft.utils.errors import UserError

from .media import codec, make_videos

TINY: dict[str, tp.Any] = {
    'embed_dim': 8, 'quick_gelu': True,
    'vision_cfg': {'image_size': 28, 'layers': 1, 'width': 16, 'head_width': 8, 'patch_size': 14},
    'text_cfg': {'context_length': 77, 'vocab_size': 49408, 'width': 8, 'heads': 2, 'layers': 1}}


def image(**arguments: tp.Any) -> ClipImage:
    return build({'_target_': 'audiocraft.features.clip.ClipImage',
                  **{'model': TINY, 'weights': None, 'size': 34, **arguments}})


def text(**arguments: tp.Any) -> ClipText:
    return build({'_target_': 'audiocraft.features.clip.ClipText', **{'model': TINY, 'weights': None, **arguments}})


def frames(count: int = 5, height: int = 45, width: int = 80) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope='module')
def whole() -> dict[str, torch.Tensor]:
    """The state dict of both towers, with other weights than the random ones."""
    generator = torch.Generator().manual_seed(1)
    state = image().clip.state_dict() | text().clip.state_dict()
    return {key: value + 0.1 * torch.randn(value.shape, generator=generator) for key, value in state.items()}


def test_features_of_frames() -> None:
    model = image(batch=2)
    prepared = model.prepare(frames())
    assert prepared.shape == (5, 3, 34, 34) and prepared.dtype == torch.uint8
    assert torch.equal(model.prepare(model.reduce(frames())), prepared)
    features = model(model.collate([prepared, prepared.flip(0)]))['clip_features']
    assert features.shape[1:] == (5, 8) and model.spec(8.)['clip_features'] == ((64, 8), torch.float32)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(2, 5))
    assert torch.equal(features[:1], model(prepared[None])['clip_features']), 'not a matter of the neighbours'
    torch.testing.assert_close(features, image(batch=16)(model.collate([prepared, prepared.flip(0)]))['clip_features'])
    assert (features[0, 0] - features[0, 1]).abs().max() > 1e-4


def test_the_last_pixels_fall_out_of_the_stride() -> None:
    model, pictures = image(), frames(2, 34, 34)
    changed = pictures.clone()
    changed[..., 28:], changed[..., 28:, :] = 0, 0
    assert torch.equal(model(pictures[None])['clip_features'], model(changed[None])['clip_features'])
    changed[..., 27] = 255
    assert not torch.equal(model(pictures[None])['clip_features'], model(changed[None])['clip_features'])
    with pytest.raises(UserError, match='size 42: .* expected 28 to 41'):
        image(size=42)


def test_features_of_texts() -> None:
    model = text()
    tokens = model.collate([model.prepare(caption) for caption in ('a dog', 'a cat', '')])
    assert tokens.shape == (3, 77) and tokens[0, 0] == 49406
    features = model(tokens)['text_features']
    assert features.shape[1:] == model.spec(8.)['text_features'][0] == (77, 8)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(3, 77))
    assert torch.equal(features[0, :2], features[1, :2]), 'a position sees those before it only'
    assert (features[0, 2:] - features[1, 2:]).abs().amax(-1).min() > 0, 'and those after the end are kept'


@pytest.mark.parametrize('form', ['safetensors', 'torch', 'old', 'nested'])
def test_files_of_weights(whole: dict[str, torch.Tensor], tmp_path: Path, form: str) -> None:
    path = tmp_path / ('clip.safetensors' if form == 'safetensors' else 'clip.bin')
    if form == 'safetensors':
        save_file(whole, path)
    else:
        nested = {'state_dict': {f'module.{key}': value for key, value in whole.items()}, 'epoch': 3}
        torch.save(nested if form == 'nested' else whole, path, _use_new_zipfile_serialization=form != 'old')
    for model in (image(weights=str(path)), text(weights=str(path))):
        state = model.clip.state_dict()
        assert all(torch.equal(value, whole[key]) for key, value in state.items())
        assert {key.startswith('visual.') for key in state} == {isinstance(model, ClipImage)}, 'the other tower is gone'
        assert not any(parameter.requires_grad or parameter.is_meta for parameter in model.parameters())
        assert not model.training


def test_files_that_do_not_fit(whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / 'clip.bin'
    torch.save({key: value for key, value in whole.items() if key != 'ln_final.bias'} | {'extra': torch.ones(1)}, path)
    with pytest.raises(UserError, match=r'clip.bin .* lacks ln_final.bias; it has besides extra'):
        text(weights=str(path))
    assert image(weights=str(path))  # whose tower is whole
    torch.save(whole | {'visual.proj': torch.ones(16, 9)}, path)
    with pytest.raises(UserError, match=r'visual.proj \[16, 9\] instead of \[16, 8\]'):
        image(weights=str(path))
    path.write_bytes(b'no weights')
    with pytest.raises(UserError, match='Cannot read .*clip.bin'):
        image(weights=str(path))
    (tmp_path / 'clip.safetensors').write_bytes(b'no weights')
    with pytest.raises(UserError, match='Cannot read .*clip.safetensors'):
        image(weights=str(tmp_path / 'clip.safetensors'))
    with pytest.raises(UserError, match='There is no file'):
        image(weights=str(tmp_path / 'none.bin'))


def test_models_that_are_refused() -> None:
    for name in ('ViT-H-15', 'hf-hub:someone/something'):
        with pytest.raises(UserError, match='has no model'):
            image(model=name)
    with pytest.raises(UserError, match='text_cfg.hf_model_name'):
        text(model={**TINY, 'text_cfg': {'hf_model_name': 'x'}})
    with pytest.raises(UserError, match='custom_text'):
        text(model={**TINY, 'custom_text': True})
    with pytest.raises(UserError, match='float16'):
        image(dtype='float16')


def test_identity(whole: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(whole, tmp_path / 'clip.safetensors')
    first, again, other = image(), image(), image(weights=str(tmp_path / 'clip.safetensors'))
    assert first.identity() == again.identity()
    assert first.identity()['weights_sha256'] != other.identity()['weights_sha256']
    monkeypatch.setattr('audiocraft.features.clip.weights_sha256', lambda module: 'hashed again')
    assert other.identity()['weights_sha256'] != 'hashed again'
    rebuilt = rebuild(other.identity()['build_cfg'])
    pictures = other.prepare(frames())[None]
    assert torch.equal(rebuilt(pictures)['clip_features'], other(pictures)['clip_features'])


def test_bfloat16_is_near(whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
    weights = str(tmp_path / 'clip.safetensors')
    save_file(whole, weights)
    for make, item in ((image, frames()), (text, 'a dog barks')):
        exact, rough = make(weights=weights), make(weights=weights, dtype='bfloat16')
        batch = exact.prepare(item)[None]
        (key, expected), (_, found) = *exact(batch).items(), *rough(batch).items()
        assert found.dtype == torch.float32 and rough.clip.state_dict()
        assert 0 < (found - expected).abs().max() < 0.05, key
        assert all(value.dtype == torch.bfloat16 for value in rough.clip.state_dict().values())


def test_autocast_changes_nothing() -> None:
    model, words = image(), text()
    pictures, tokens = model.prepare(frames())[None], words.prepare('a dog')[None]
    with torch.autocast('cpu', torch.bfloat16):
        inside = model(pictures) | words(tokens)
    outside = model(pictures) | words(tokens)
    assert all(torch.equal(inside[key], outside[key]) for key in outside)


def test_a_store_of_clip_features(tmp_path: Path) -> None:
    videos = make_videos(tmp_path / 'media', 2)
    models = {'image': image(fps=4.), 'text': text()}
    extract(data_dir=videos, output_dir=tmp_path / 'out', captions_tsv=tmp_path / 'captions.tsv', codec=codec(),
            extractors=models, duration=1., batch_size=2)
    store = Store(tmp_path / 'out')
    assert {key: store.keys[key][0] for key in ('clip_features', 'text_features')} == {
        'clip_features': (4, 8), 'text_features': (77, 8)}
    video = read_video(videos / 'v1.mp4', 4., 1., audio=False).frames[4.]
    expected = models['image'](models['image'].prepare(video)[None])['clip_features'][0]
    torch.testing.assert_close(store.tensors['clip_features'][1], expected)


@pytest.mark.parametrize('name', ['clip_image', 'clip_text'])
def test_the_configs_ask_for_the_published_weights(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = yaml.safe_load((CONFIG_ROOT / 'features' / f'{name}.yaml').read_text())
    monkeypatch.setenv('AUDIOCRAFT_WEIGHTS', str(tmp_path))
    monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path))
    with pytest.raises(UserError, match='clip_dfn5b'):
        build(node)


def test_without_open_clip_the_extra_is_named() -> None:
    code = ('import sys; sys.modules["open_clip"] = None\n'
            'from audiocraft.features.clip import ClipText\n'
            'from audiocraft.utils.errors import UserError\n'
            'try:\n    ClipText(weights=None)\n'
            'except UserError as error:\n    print(error)')
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert 'audiocraft[clip]' in out
