"""What must not be read in logs and checkpoints."""

import pytest

from audiocraft.utils import secrets
from audiocraft.utils.secrets import hide, hide_config


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Two secrets, of which one begins the other, and things that are none."""
    for name in [name for name in secrets.os.environ if secrets._VARIABLE.search(name)]:
        monkeypatch.delenv(name)
    for name, value in {'HF_TOKEN': 'hf_abcdefgh', 'WANDB_API_KEY': 'hf_abcdefgh.more', 'MY_SECRET': 'short',
                        'db_Password': 'a(b)*c+d?e', 'SOME_PATH': '/usr/local/bin'}.items():
        monkeypatch.setenv(name, value)
    secrets.refresh()
    yield
    monkeypatch.undo()
    secrets.refresh()


@pytest.mark.parametrize('text, hidden', [
    ('push with hf_abcdefgh!', 'push with ***!'),
    ('https://me:hf_abcdefgh.more@host/x', 'https://me:***@host/x'),
    ('a(b)*c+d?e a(b)*c', '*** a(b)*c'),
    ('short /usr/local/bin', 'short /usr/local/bin'),
    ('dora run wandb.api_key=abc optim.lr=1', 'dora run wandb.api_key=*** optim.lr=1'),
    ('+hub.Access-Key=abc,next', '+hub.Access-Key=***,next'),
    ('https://host/x?access_token=abc&y=1', 'https://host/x?access_token=***&y=1'),
    ('{"password": "a \\"b\\" c", "lr": "x"}', '{"password": "***", "lr": "x"}'),
    ("{'apikey': 'abc', 'credentials': 'x'}", "{'apikey': '***', 'credentials': '***'}"),
    ('{"secret": 1234, "x": 1}', '{"secret": ***, "x": 1}'),
    ('PASSWORD="two words" go', 'PASSWORD="***" go'),
    ("passwd='two words' go", "passwd='***' go"),
    ('a.secret.b=x', 'a.secret.b=***'),
])
def test_hidden(text, hidden):
    assert hide(text) == hidden
    assert hide(hidden) == hidden


@pytest.mark.parametrize('text', [
    '', 'tokens=2048 max_tokens=16', 'tokenizer=bert', 'pad_token_id=50256 token=3', 'Unknown token: }', 'secret plan',
    'the password is never asked for', '"token": null, "secret": ""', 'use_api_key=true', 'password=', 'x = "token"',
    'Train | Epoch 1/3 | 12/100 | loss 0.5 | tokens 1e3',
])
def test_left_alone(text):
    assert hide(text) == text


def test_no_variables(monkeypatch):
    hide('')
    for name in ('HF_TOKEN', 'WANDB_API_KEY', 'db_Password'):
        monkeypatch.delenv(name)
    assert hide('hf_abcdefgh') == '***'  # the environment is read once
    secrets.refresh()
    assert secrets._values() is None and hide('hf_abcdefgh') == 'hf_abcdefgh'


def test_long_texts_take_no_time():
    for text in ('secret' * 20_000, 'a' * 200_000 + ' token', 'secret=' + '"' * 50_000, '"' + '\\' * 50_000 + ' passw',
                 'secret=' * 20_000, '.-' * 50_000 + 'secret'):
        assert len(hide(text)) <= len(text)


def test_configs():
    config = {
        'lr': 1e-3, 'api_key': 'abc', 'password': 12345, 'token': 'abc', 'seed': 2,
        'model': {'max_tokens': 16, 'tokenizer': 'bert', 'pad_token_id': 0, 'hub': {'credential': 'x', 'secret': None}},
        'secrets': {'a': 'x', 'deep': {'b': ['y', 3]}, 'on': True},
        'args': ['--key', 'hf_abcdefgh', 'api_key=abc'], 'path': '/x/hf_abcdefgh/y', 3: 'three',
    }
    before = repr(config)
    assert hide_config(config) == {
        'lr': 1e-3, 'api_key': '***', 'password': '***', 'token': '***', 'seed': 2,
        'model': {'max_tokens': 16, 'tokenizer': 'bert', 'pad_token_id': 0,
                  'hub': {'credential': '***', 'secret': None}},
        'secrets': {'a': '***', 'deep': {'b': ['***', '***']}, 'on': True},
        'args': ['--key', '***', 'api_key=***'], 'path': '/x/***/y', 3: 'three',
    }
    assert repr(config) == before
