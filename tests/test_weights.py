"""The registry of external weights: what is in it, and where it finds them."""

import hashlib
from pathlib import Path

import pytest

from audiocraft import weights
from audiocraft.utils.errors import UserError

NAMES = {'mmaudio/small_16k': 'mmaudio_small_16k.pth', 'mmaudio/small_44k': 'mmaudio_small_44k.pth',
         'mmaudio/medium_44k': 'mmaudio_medium_44k.pth', 'mmaudio/large_44k': 'mmaudio_large_44k.pth',
         'mmaudio/large_44k_v2': 'mmaudio_large_44k_v2.pth', 'mmaudio/vae_16k': 'v1-16.pth',
         'mmaudio/vae_44k': 'v1-44.pth', 'mmaudio/bigvgan_16k': 'best_netG.pt',
         'mmaudio/empty_string': 'empty_string.pth', 'bigvgan_v2_44khz': 'bigvgan_generator.pt',
         'synchformer': 'synchformer_state_dict.pth', 'clip_dfn5b': 'open_clip_pytorch_model.bin',
         'panns_cnn14_16k': 'Cnn14_16k_mAP=0.438.pth', 'vggish': 'vggish-10086976.pth',
         'passt': 'passt-s-f128-p16-s10-ap.476-swa.pt',
         'clap_laion': 'music_speech_audioset_epoch_15_esc_89.98.pt', 'clap_ms': 'CLAP_weights_2023.pth',
         'imagebind': 'imagebind_huge.pth'}
OF_MMAUDIO = {'mmaudio/small_16k': 'weights', 'mmaudio/vae_16k': 'ext_weights', 'mmaudio/bigvgan_16k': 'ext_weights',
              'synchformer': 'ext_weights', 'mmaudio/empty_string': 'ext_weights'}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv('AUDIOCRAFT_WEIGHTS', str(tmp_path))
    monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path / 'hub'))
    return tmp_path


def put(path: Path, content: bytes = b'x') -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_names_files_and_licences() -> None:
    entries = {entry.name: entry for entry in weights.entries()}
    assert len(entries) == len(weights.entries())
    assert {name: entries[name].file for name in NAMES} == NAMES
    assert all(entry.licence and entry.used_by and entry.source for entry in entries.values())
    for name, file in NAMES.items():
        assert weights.entry_of_file(file) is entries[name], 'a file says what it is'
    assert weights.entry_of_file('model.safetensors') is None, 'several are called so'
    assert entries['mmaudio/small_16k'].source == \
        'https://huggingface.co/hkchengrex/MMAudio/resolve/main/weights/mmaudio_small_16k.pth'


@pytest.mark.parametrize('name', OF_MMAUDIO)
@pytest.mark.parametrize('given', ['.', 'weights', 'ext_weights'])
def test_the_checkout_of_mmaudio_and_its_folders(name: str, given: str, home: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(home / 'checkout' / OF_MMAUDIO[name] / NAMES[name])
    monkeypatch.setenv('AUDIOCRAFT_WEIGHTS', str(home / 'checkout' / given))
    assert weights.find(name).resolve() == path.resolve()


def test_what_goes_first(home: Path) -> None:
    hub = home / 'hub' / 'models--hkchengrex--MMAudio' / 'snapshots' / 'a' / 'ext_weights' / 'v1-16.pth'
    for path in (hub, home / 'ext_weights' / 'v1-16.pth', home / 'mmaudio' / 'vae_16k' / 'v1-16.pth'):
        put(path)
        assert weights.find('mmaudio/vae_16k') == weights.find_original('mmaudio/vae_16k') == path
    converted = put(home / 'mmaudio' / 'vae_16k' / 'model.safetensors')
    assert weights.find('mmaudio/vae_16k') == converted
    assert weights.find_original('mmaudio/vae_16k') == path
    assert weights.find('mmaudio/vae_16k', hub) == hub, 'the path in a config'


def test_what_is_missing_is_said_with_every_place(home: Path) -> None:
    with pytest.raises(UserError, match=rf'(?s)not in {home}/mmaudio/vae_44k, {home}/ext_weights/v1-44.pth or '
                                        r'.*models--hkchengrex--MMAudio.*weights fetch mmaudio/vae_44k.*CC-BY-NC 4.0'):
        weights.find('mmaudio/vae_44k')
    put(home / 'bigvgan_v2_44khz' / 'model.safetensors')
    with pytest.raises(UserError, match='with config.json beside it'):
        weights.find('bigvgan_v2_44khz')
    put(home / 'bigvgan_v2_44khz' / 'config.json')
    assert weights.find('bigvgan_v2_44khz').name == 'model.safetensors'


def test_names_of_ones_own(home: Path) -> None:
    path = put(home / 'mine' / 'net.v1' / 'model.safetensors')
    assert weights.find('mine/net.v1') == path
    for wrong in ('mine', 'mine/net.v1/', 'mine//net.v1', 'mine/../mine/net.v1', str(home / 'mine' / 'net.v1')):
        with pytest.raises(UserError, match='registry'):
            weights.find(wrong)


def test_a_digest_may_be_given_by_its_first_digits(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(b'good').hexdigest()
    path = put(home / 'x' / 'x.pth', b'good')
    for given, fits in ((digest, True), (digest[:8], True), (digest[1:9], False)):
        monkeypatch.setattr(weights, '_ENTRIES', [weights.Entry('x', 'x.pth', f'sha256:{given}', 'MIT', 'a test')])
        if fits:
            assert weights.verify('x') == path
        else:
            with pytest.raises(UserError, match=f'sha256 is {digest}'):
                weights.verify('x')
