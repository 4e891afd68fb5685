import logging
import os
from pathlib import Path

import pytest

from audiocraft import environment, weights
from audiocraft.environment import AudioCraftEnvironment as Environment
from audiocraft.utils.errors import UserError


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in environment._VARIABLES.values():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(environment, 'detect_cluster', lambda: 'default')
    Environment.reset()
    yield
    Environment.reset()


@pytest.fixture
def team_file(tmp_path, monkeypatch):
    def write(text):
        path = tmp_path / 'team.yaml'
        path.write_text(text)
        monkeypatch.setenv('AUDIOCRAFT_CONFIG', str(path))
        Environment.reset()
        return path
    return write


def test_defaults(monkeypatch):
    monkeypatch.setenv('USER', 'someone')
    assert Environment.get_team() == 'default'
    assert Environment.get_cluster() == 'default'
    assert Environment.get_dora_dir() == Path('/tmp/audiocraft_someone')
    assert Environment.get_slurm_partitions() is None
    assert Environment.get_slurm_exclude() is None


def test_user_unset(monkeypatch):
    for name in ('USER', 'LOGNAME', 'LNAME', 'USERNAME'):
        monkeypatch.delenv(name, raising=False)
    assert Environment.get_dora_dir().name.startswith('audiocraft_')
    assert 'USER' not in os.environ
    Environment.reset()

    def nobody():
        raise KeyError('uid not found')
    monkeypatch.setattr(environment.getpass, 'getuser', nobody)
    assert Environment.get_dora_dir() == Path(f'/tmp/audiocraft_uid{os.getuid()}')


@pytest.mark.parametrize('cluster', ['default', 'fair', 'aws', 'darwin', 'rsc'])
def test_labs_works_anywhere(monkeypatch, caplog, cluster):
    monkeypatch.setenv('AUDIOCRAFT_TEAM', 'labs')
    monkeypatch.setattr(environment, 'detect_cluster', lambda: cluster)
    with caplog.at_level(logging.WARNING):
        assert Environment.get_dora_dir().is_absolute()
    assert Environment.get_cluster() == ('default' if cluster == 'rsc' else cluster)
    assert ('rsc' in caplog.text) == (cluster == 'rsc')


def test_labs_on_its_cluster(monkeypatch):
    monkeypatch.setenv('AUDIOCRAFT_TEAM', 'labs')
    monkeypatch.setenv('AUDIOCRAFT_CLUSTER', 'fair')
    assert Environment.get_slurm_partitions(['team', 'global']) == 'labs,shared'
    assert Environment.get_slurm_partitions() == 'shared'
    assert Environment.apply_dataset_mappers('/fsx/datasets/a/b.wav') == '/datasets/a/b.wav'
    assert Environment.apply_dataset_mappers('/other/fsx/datasets/b.wav') == '/other/fsx/datasets/b.wav'


@pytest.mark.parametrize('name, value, words', [
    ('AUDIOCRAFT_TEAM', 'nobody', ['nobody', 'default, labs']),
    ('AUDIOCRAFT_CLUSTER', 'moon', ['moon', 'darwin, default']),
    ('AUDIOCRAFT_CONFIG', '/nowhere/team.yaml', ['/nowhere/team.yaml']),
])
def test_unknown_names_are_one_clear_line(monkeypatch, name, value, words):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        Environment.instance()
    message = str(caught.value)
    assert '\n' not in message and name in message
    assert all(word in message for word in words)


def test_empty_variables_count_as_unset(monkeypatch):
    for name in environment._VARIABLES.values():
        monkeypatch.setenv(name, '')
    assert (Environment.get_team(), Environment.get_cluster()) == ('default', 'default')


def test_variables_override_folders(monkeypatch, tmp_path):
    monkeypatch.setenv('AUDIOCRAFT_DORA_DIR', str(tmp_path / 'xps'))
    monkeypatch.setenv('AUDIOCRAFT_REFERENCE_DIR', str(tmp_path))
    assert Environment.get_dora_dir() == tmp_path / 'xps'
    assert Environment.resolve_reference_path('//reference/a/b') == tmp_path / 'a' / 'b'
    assert Environment.resolve_reference_path('//reference') == tmp_path
    assert Environment.resolve_reference_path('//referencefoo') == Path('//referencefoo')
    assert Environment.resolve_reference_path('/reference/a') == Path('/reference/a')


def test_missing_reference_folder(monkeypatch, tmp_path):
    monkeypatch.setenv('AUDIOCRAFT_REFERENCE_DIR', str(tmp_path / 'gone'))
    with pytest.raises(UserError, match='gone does not exist'):
        environment.resolve_path('//reference/x')


@pytest.mark.parametrize('text, word', [
    ('default: {dora_dirs: /x}', 'default.dora_dirs'),
    ('default: 3', 'one block for each cluster'),
    ('default: {dora_dir: "${oc.env:NOT_SET_ANYWHERE}"}', 'NOT_SET_ANYWHERE'),
    ('default: [', 'not a readable yaml'),
    ('other: {dora_dir: /x}', 'AUDIOCRAFT_CLUSTER'),
])
def test_broken_team_files(team_file, text, word):
    team_file(text)
    with pytest.raises(UserError, match=word) as caught:
        Environment.get_dora_dir()
    assert '\n' not in str(caught.value)


def test_dora_dir_not_set(team_file):
    team_file('default: {reference_dir: /tmp}')
    with pytest.raises(UserError, match='default.dora_dir'):
        Environment.get_dora_dir()


def test_warning_once_for_temporary_results(monkeypatch, caplog):
    with caplog.at_level(logging.WARNING):
        Environment.warn_if_temporary()
        Environment.warn_if_temporary()
    assert caplog.text.count('AUDIOCRAFT_DORA_DIR') == 1
    caplog.clear()
    monkeypatch.setenv('AUDIOCRAFT_DORA_DIR', '/tmp/chosen')
    Environment.reset()
    Environment.warn_if_temporary()
    assert not caplog.text


def test_resolve_path(monkeypatch, tmp_path):
    monkeypatch.setenv('AUDIOCRAFT_DORA_DIR', str(tmp_path))
    (tmp_path / 'xps' / '0a1b2c3d').mkdir(parents=True)
    assert environment.resolve_path('//sig/0a1b2c3d') == tmp_path / 'xps' / '0a1b2c3d'
    assert environment.resolve_path('//sig/0a1b2c3d/x/y') == tmp_path / 'xps' / '0a1b2c3d' / 'x' / 'y'
    assert environment.resolve_path('data/x') == Path('data/x')
    for wrong in ('//sig/ffffffff', '//sig/..', '//sig/', '//sigx/a', '//pretrained/nothing', '//other/x'):
        with pytest.raises(UserError):
            environment.resolve_path(wrong)


def test_weights_are_found_in_order(monkeypatch, tmp_path):
    monkeypatch.setenv('AUDIOCRAFT_WEIGHTS', str(tmp_path / 'weights'))
    monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path / 'hub'))
    name = 'mmaudio/vae_16k'
    with pytest.raises(UserError, match=f'weights fetch {name}'):
        weights.find(name)
    cached = tmp_path / 'hub' / 'models--hkchengrex--MMAudio' / 'snapshots' / 'abc' / 'ext_weights' / 'v1-16.pth'
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b'hub')
    assert weights.find(name) == cached
    home = tmp_path / 'weights' / name / 'v1-16.pth'
    home.parent.mkdir(parents=True)
    home.write_bytes(b'home')
    assert environment.resolve_path(f'//pretrained/{name}') == home
    own = tmp_path / 'own.pth'
    with pytest.raises(UserError, match='own.pth'):
        weights.find(name, own)
    own.touch()
    assert weights.find(name, own) == own
    with pytest.raises(UserError, match='md5'):
        weights.verify(name)


def test_weights_fetch_checks_what_it_gets(monkeypatch, tmp_path):
    import hashlib
    import io
    monkeypatch.setenv('AUDIOCRAFT_WEIGHTS', str(tmp_path))
    digest = hashlib.sha256(b'good').hexdigest()
    entry = weights.Entry('x', 'x.bin', f'sha256:{digest}', 'MIT', 'a test', url='https://example.invalid/x.bin')
    monkeypatch.setattr(weights, '_ENTRIES', [entry])
    with pytest.raises(UserError, match='sha256'):
        weights.fetch('x', lambda address: io.BytesIO(b'bad'))
    assert not list((tmp_path / 'x').iterdir())
    assert weights.fetch('x', lambda address: io.BytesIO(b'good')) == tmp_path / 'x' / 'x.bin'
    assert weights.verify('x').read_bytes() == b'good'
    with pytest.raises(RuntimeError, match='may not use the network'):
        (tmp_path / 'x' / 'x.bin').unlink()
        import socket
        socket.create_connection(('192.0.2.1', 80), timeout=1)
