"""`import_weights`: files of others become safetensors, once, and are found by their names."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from audiocraft import weights
from audiocraft.cli import dispatch
from audiocraft.environment import resolve_path
from audiocraft.models.published import mmaudio
from audiocraft.utils.errors import UserError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv('AUDIOCRAFT_WEIGHTS', str(tmp_path / 'home'))
    monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path / 'hub'))
    return tmp_path / 'home'


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


STATE = {'a': torch.arange(6.).view(2, 3), 'b': torch.rand(4).half(), 'n': torch.tensor(3)}


@pytest.mark.parametrize('key', ['generator', 'weights', 'state_dict', 'model', 'best_state', None])
def test_every_layout(key: str | None, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture) -> None:
    source = save(tmp_path / 'x.pt', STATE if key is None else {key: STATE, 'loss': np.float64(0.3), 'epoch': 3})
    assert dispatch.main(['import_weights', str(source), '--name', 'mine/x']) == 0
    target = resolve_path('//pretrained/mine/x')
    assert target == home / 'mine' / 'x' / 'model.safetensors'
    assert target.stat().st_mode == target.with_name(weights.RECORD).stat().st_mode, 'others may read it, too'
    loaded = load_file(target)
    assert loaded.keys() == STATE.keys() and all(torch.equal(loaded[name], STATE[name]) for name in STATE)
    assert loaded['b'].dtype == torch.float16
    out = capsys.readouterr().out
    assert sha256(source) in out and sha256(target) in out and 'licence: unknown' in out
    assert ('loss, epoch' in out) is (key is not None), 'what is left out is named'
    record = json.loads((target.parent / weights.RECORD).read_text())
    assert record['sha256'] == sha256(target) and record['source_sha256'] == sha256(source)
    assert sorted(path.name for path in target.parent.iterdir()) == ['model.safetensors', 'source.json']


def test_the_registry_knows_names_files_and_licences(home: Path, tmp_path: Path,
                                                     capsys: pytest.CaptureFixture) -> None:
    source = save(tmp_path / 'checkout' / 'v1-16.pth', STATE)
    assert dispatch.main(['import_weights', str(source)]) == 0
    target = home / 'mmaudio' / 'vae_16k' / 'model.safetensors'
    assert weights.find('mmaudio/vae_16k') == target
    out = capsys.readouterr().out
    assert 'CC-BY-NC 4.0' in out and '//pretrained/mmaudio/vae_16k' in out and 'expected 69f56803' in out
    save(home / 'mmaudio' / 'vae_16k' / 'v1-16.pth', STATE)
    assert weights.find('mmaudio/vae_16k') == target, 'goes before the file that it was made of'
    assert weights.find_original('mmaudio/vae_16k') == home / 'mmaudio' / 'vae_16k' / 'v1-16.pth'
    assert dispatch.main(['import_weights', 'mmaudio/vae_16k', '--force']) == 0
    assert json.loads((target.parent / weights.RECORD).read_text())['source'] == 'v1-16.pth'


def test_by_name_in_the_layout_of_mmaudio(home: Path) -> None:
    save(home / 'ext_weights' / 'empty_string.pth', torch.ones(1, 5, 3))
    assert weights.find('mmaudio/empty_string') == home / 'ext_weights' / 'empty_string.pth'
    assert dispatch.main(['import_weights', 'mmaudio/empty_string']) == 0
    assert weights.find('mmaudio/empty_string') == home / 'mmaudio' / 'empty_string' / 'model.safetensors'
    assert torch.equal(mmaudio.empty_string(), torch.ones(5, 3))


def test_verify_compares_with_the_record(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert dispatch.main(['import_weights', str(save(tmp_path / 'v1-16.pth', STATE))]) == 0
    assert dispatch.main(['weights', 'verify']) == 0 and 'mmaudio/vae_16k: ok' in capsys.readouterr().out
    path = weights.find('mmaudio/vae_16k')
    path.write_bytes(path.read_bytes()[:-1] + b'x')
    assert dispatch.main(['weights', 'verify', 'mmaudio/vae_16k']) == 1
    assert 'is not what was made of v1-16.pth' in capsys.readouterr().out
    assert dispatch.main(['weights', 'list']) == 0 and str(path) in capsys.readouterr().out


def test_a_config_beside_comes_along(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = save(tmp_path / 'theirs' / 'bigvgan_generator.pt', {'generator': STATE})
    assert dispatch.main(['import_weights', str(source)]) == 1
    assert 'config.json was expected beside it' in capsys.readouterr().err
    source.with_name('config.json').write_text('{"a": 1}')
    assert dispatch.main(['import_weights', str(source)]) == 0
    assert weights.find('bigvgan_v2_44khz').with_name('config.json').read_text() == '{"a": 1}'


def test_nothing_is_overwritten_unasked(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source, out = save(tmp_path / 'x.pt', STATE), tmp_path / 'out'
    assert dispatch.main(['import_weights', str(source), '--out', str(out)]) == 0
    assert not home.exists() and (out / 'model.safetensors').exists()
    before = sha256(out / 'model.safetensors')
    save(source, {'a': torch.zeros(3)})
    assert dispatch.main(['import_weights', str(source), '--out', str(out)]) == 1
    assert '--force' in capsys.readouterr().err and sha256(out / 'model.safetensors') == before
    assert dispatch.main(['import_weights', str(source), '--out', str(out), '--force']) == 0
    assert load_file(out / 'model.safetensors').keys() == {'a'}


def test_tied_and_cut_weights_stand_alone(tmp_path: Path) -> None:
    tied = torch.rand(4, 4)
    source = save(tmp_path / 'x.pt', {'a': tied, 'b': tied, 'c': tied.t(), 'd': tied[:2]})
    assert dispatch.main(['import_weights', str(source), '--out', str(tmp_path)]) == 0
    loaded = load_file(tmp_path / 'model.safetensors')
    for name, expected in {'a': tied, 'b': tied, 'c': tied.t(), 'd': tied[:2]}.items():
        assert torch.equal(loaded[name], expected), name


class Hostile:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path('/tmp/must-not-be-made'),)


@pytest.mark.parametrize('content, message', [
    ({'model': torch.nn.Linear(1, 1)}, 'holds pickled objects .*Linear'),
    ({**STATE, 'x': Hostile()}, 'holds pickled objects'),
    ({'a': torch.ones(2, device='meta')}, 'without values'), ([1, 2], 'holds no weights'),
    ({'a': 1}, 'holds no weights'),
    ({'best_state': STATE, 'xp.cfg': 'a: 1'}, 'is an export of AudioCraft')])
def test_what_is_refused(content: object, message: str, home: Path, tmp_path: Path) -> None:
    from audiocraft.cli import import_weights
    source = save(tmp_path / 'x.pt', content)
    with pytest.raises(UserError, match=message):
        import_weights.main(import_weights.parser().parse_args([str(source), '--name', 'x']))
    assert not home.exists() and not Path('/tmp/must-not-be-made').exists()


def test_sources_that_are_not_there(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source, empty = str(save(tmp_path / 'x.pt', STATE)), tmp_path / 'empty.pth'
    empty.touch()
    for arguments, message in [
            ([source], 'say with --name'), ([str(tmp_path)], 'is a folder'), ([str(empty)], '0 bytes'),
            (['nothing.pth'], 'no such file'), (['synchformer'], 'weights fetch'),
            ([source, '--name', '../x'], '--name ../x'), ([source, '--name', 'a//b'], '--name a//b')]:
        assert dispatch.main(['import_weights', *arguments]) == 1
        assert message in capsys.readouterr().err
    assert not home.exists()
