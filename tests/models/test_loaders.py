"""A compression model is loaded from whatever it is stored in."""

import json
from pathlib import Path

import pytest
import torch

from audiocraft import weights
from audiocraft.cli import dispatch
from audiocraft.models.encodec import EncodecModel
from audiocraft.models.exported import write_exported
from audiocraft.models.loaders import find_checkpoint, is_published, load_compression_model, load_model
from audiocraft.models.published.audiocraft import export_audiocraft
from audiocraft.utils.checkpoint import save_checkpoint
from audiocraft.utils.config import build
from audiocraft.utils.errors import UserError

from .codecs import random_codec
from .test_bigvgan import V1
from .test_bigvgan import tiny as tiny_vocoder
from .test_mp_mel_vae import TINY as VAE
from .test_published import assert_same, save_as_transformers


@pytest.fixture
def model() -> EncodecModel:
    return random_codec()


@pytest.fixture
def stored(model: EncodecModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """References to the model: as an XP, an export, an AudioCraft file, a folder of transformers, and by name."""
    monkeypatch.setenv('AUDIOCRAFT_WEIGHTS', str(tmp_path / 'weights'))
    xp, export, file = tmp_path / 'xp', tmp_path / 'export', tmp_path / 'audiocraft'
    save_checkpoint(xp / 'checkpoints', 7, models={'model': model.state_dict()},
                    state={'models': {'model': model.build_cfg}})
    for folder in (export, file, tmp_path / 'weights'):
        folder.mkdir()
    write_exported(export, model.state_dict(), model.build_cfg, config='seed: 1\n', update=7)  # type: ignore[arg-type]
    export_audiocraft(model, file)
    hf = save_as_transformers(model, tmp_path / 'weights' / 'encodec_24khz')
    return {'XP': str(xp), 'export': str(export), 'its weights': str(export / 'model.safetensors'),
            'AudioCraft folder': str(file), 'AudioCraft file': str(file / 'compression_state_dict.bin'),
            'transformers': str(hf), 'its safetensors': str(hf / 'model.safetensors'),
            'name': '//pretrained/encodec_24khz', 'repository': '//pretrained/facebook/encodec_24khz'}


def test_load_compression_model(stored: dict[str, str], model: EncodecModel) -> None:
    for reference in stored.values():
        loaded = load_compression_model(reference)
        assert isinstance(loaded, EncodecModel) and not loaded.training
        assert_same(model, loaded)


def test_find_checkpoint_gives_weights_and_how_to_build(stored: dict[str, str], model: EncodecModel) -> None:
    for reference in stored.values():
        checkpoint = find_checkpoint(reference)
        assert checkpoint.models['model'].keys() == model.state_dict().keys()
        assert checkpoint.state['models']['model']['_target_'].endswith('EncodecModel')
    assert find_checkpoint(stored['export']).config == 'seed: 1\n'
    published = {kind for kind, reference in stored.items() if '//' not in reference and is_published(Path(reference))}
    assert published == {'AudioCraft folder', 'AudioCraft file', 'transformers', 'its safetensors'}


def test_export_keeps_fp32_and_integers(model: EncodecModel, tmp_path: Path) -> None:
    write_exported(tmp_path, {'a': torch.ones(2, dtype=torch.bfloat16), 'n': torch.tensor(3)}, {'_target_': 'x'})
    state = find_checkpoint(tmp_path).models['model']
    assert state['a'].dtype == torch.float32 and state['n'].dtype == torch.int64


def test_exports_that_are_refused(stored: dict[str, str]) -> None:
    folder = Path(stored['export'])
    description = json.loads((folder / 'model.json').read_text())
    (folder / 'model.json').write_text(json.dumps(description | {'format': 99}))
    with pytest.raises(UserError, match='newer version'):
        load_model(folder)
    (folder / 'model.json').write_text(json.dumps(description | {'build': {'_target_': 'torch.nn.Linear'}}))
    with pytest.raises(UserError, match='Refusing'):
        load_model(folder)
    (folder / 'model.json').write_text('{}')
    with pytest.raises(UserError, match='does not describe'):
        load_model(folder)
    (folder / 'model.json').write_text(json.dumps(description))
    (folder / 'model.safetensors').write_bytes((folder / 'model.safetensors').read_bytes()[:-5])
    with pytest.raises(UserError, match='Cannot read the weights'):
        load_model(folder)


def test_what_is_not_there_is_said_with_where_it_was_looked_for(tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('AUDIOCRAFT_WEIGHTS', str(tmp_path / 'w'))
    monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path / 'hub'))
    with pytest.raises(UserError, match='w/encodec_48khz or .*hub/models--facebook--encodec_48khz.*config.json beside'):
        load_compression_model('//pretrained/encodec_48khz')
    with pytest.raises(UserError, match='//pretrained/facebook/encodec_48khz'):
        load_compression_model('facebook/encodec_48khz')


def test_weights_without_their_config_are_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('AUDIOCRAFT_WEIGHTS', str(tmp_path))
    monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path / 'hub'))
    folder = tmp_path / 'encodec_32khz'
    folder.mkdir()
    (folder / 'pytorch_model.bin').write_bytes(b'x')
    with pytest.raises(UserError, match='config.json'):
        weights.find('encodec_32khz')
    (folder / 'config.json').write_text('{}')
    assert weights.find('facebook/encodec_32khz') == folder / 'pytorch_model.bin'


def test_fetch_brings_the_config_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    monkeypatch.setenv('AUDIOCRAFT_WEIGHTS', str(tmp_path))
    asked: list[str] = []

    def opener(address: str) -> io.BytesIO:
        asked.append(address.rpartition('/')[2])
        return io.BytesIO(b'{}')
    path = weights.fetch('encodec_32khz', opener)
    assert asked == ['config.json', 'model.safetensors'] and path == tmp_path / 'encodec_32khz' / 'model.safetensors'
    assert weights.fetch('encodec_32khz', opener) == path and len(asked) == 2


@pytest.mark.parametrize('imported', [False, True])
def test_published_codec_and_vocoder_of_mmaudio(imported: bool, tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """As files in MMAudio's own layout, and as what `import_weights` makes of them."""
    monkeypatch.setenv('AUDIOCRAFT_WEIGHTS', str(tmp_path))
    monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path / 'hub'))
    (tmp_path / 'ext_weights').mkdir()
    codec, vocoder = build(VAE), tiny_vocoder(**{**V1, 'n_mels': 80})
    torch.save(codec.state_dict(), tmp_path / 'ext_weights' / 'v1-16.pth')
    torch.save({'generator': vocoder.state_dict(), 'steps': 3}, tmp_path / 'ext_weights' / 'best_netG.pt')
    names = {'mmaudio/vae_16k': load_compression_model, 'mmaudio/bigvgan_16k': load_model}
    for name, load in names.items():
        assert not imported or dispatch.main(['import_weights', name]) == 0
        loaded = load(f'//pretrained/{name}')
        assert not loaded.training
        found = find_checkpoint(f'//pretrained/{name}')
        assert found.path.name == ('model.safetensors' if imported else weights.entry(name).file)
        assert found.models['model'].keys() == loaded.state_dict().keys()
        assert found.state['models']['model'] == loaded.build_cfg and found.state['objects'] == {}
    latents = torch.rand(1, 4, 8)
    assert torch.equal(load_compression_model('//pretrained/mmaudio/vae_16k').decode_mel(latents),
                       codec.eval().decode_mel(latents))
    with pytest.raises(UserError, match='BigVGAN, not a compression model'):
        load_compression_model('//pretrained/mmaudio/bigvgan_16k')
