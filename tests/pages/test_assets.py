import os

import pytest

from audiocraft.pages import assets


@pytest.mark.parametrize('name', ['../../etc/passwd', 'a/b', 'é "x"', '.hidden', '', 'x' * 500, '<script>', 'a\x00b'])
def test_odd_ids_become_safe_names(name):
    safe = assets.safe_name(name)
    assert 0 < len(safe) <= 80 and all(c.isascii() and (c.isalnum() or c in '_-') for c in safe)


def test_plain_ids_stay_and_ids_that_differ_only_in_odd_characters_stay_apart():
    assert assets.safe_name('Clip_0001-a') == 'Clip_0001-a'
    assert len({assets.safe_name(name) for name in ('a/b', 'a:b', 'a-b', 'a b')}) == 4


@pytest.mark.parametrize('link', [False, True])
def test_place_replaces_and_leaves_nothing_else(tmp_path, link):
    source, target = tmp_path / 'a.wav', tmp_path / 'out' / 'b.wav'
    source.write_bytes(b'new')
    for _ in range(2):  # the second time with a hard link both names are one file already
        assets.place(source, target, link=link)
        assert target.read_bytes() == b'new' and os.listdir(target.parent) == ['b.wav']
    assert source.samefile(target) == link


def test_place_copies_where_links_are_refused(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError('no links here')
    monkeypatch.setattr(os, 'link', refuse)
    (tmp_path / 'a').write_bytes(b'x')
    assets.place(tmp_path / 'a', tmp_path / 'b', link=True)
    assert (tmp_path / 'b').read_bytes() == b'x' and not (tmp_path / 'b').samefile(tmp_path / 'a')


def test_remove_others(tmp_path):
    for name in ('keep/a', 'keep/b', 'old/c'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assets.remove_others(tmp_path, {tmp_path / 'keep' / 'a'})
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob('*'))] == ['keep', 'keep/a']
