"""Manifests: what they hold, what is wrong with them in words, and the command that makes them."""

import gzip
import json
import logging
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audiocraft.cli import dispatch
from audiocraft.data.audio import write_audio
from audiocraft.data.audio_manifest import (
    AudioMeta,
    find_audio,
    list_media,
    load_audio,
    read_info,
    read_manifest,
    write_manifest,
)
from audiocraft.data.check import check_path
from audiocraft.data.manifest import write_table
from audiocraft.data.video import write_video
from audiocraft.environment import AudioCraftEnvironment
from audiocraft.utils.errors import UserError

RATE = 8000


def tone(seconds: float = 1., channels: int = 1) -> torch.Tensor:
    return (torch.sin(torch.arange(int(seconds * RATE)) * 0.3) * 0.5).expand(channels, -1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Good files of several kinds, in folders, and some that are not."""
    root = tmp_path / 'music'
    write_audio(root / 'b.wav', tone(2.), RATE)
    write_audio(root / 'a' / 'c.flac', tone(1.5, 2), RATE)
    write_audio(root / 'a' / 'd.ogg', tone(1.), RATE)
    write_video(root / 'v.mp4', torch.zeros(10, 3, 32, 32, dtype=torch.uint8), 10., tone(1.), RATE)
    write_audio(root / '.hidden' / 'e.wav', tone(), RATE)
    (root / 'notes.txt').write_text('no media')
    (root / 'broken.wav').write_bytes(b'RIFF and nothing')
    (root / 'empty.flac').write_bytes(b'')
    soundfile.write(root / 'none.wav', np.zeros((0, 1)), RATE)
    return root


def names(metas) -> list[str]:
    return [Path(meta.path).name for meta in metas]


def lines(path: Path, *entries) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(entry if isinstance(entry, str) else json.dumps(entry) + '\n' for entry in entries))
    return path


def entry(path='a.wav', **other) -> dict:
    return {'path': path, 'duration': 1., 'sample_rate': RATE, **other}


def test_finds_files_and_tells_which_are_broken(folder: Path) -> None:
    found = find_audio(folder)
    assert names(found.metas) == ['c.flac', 'd.ogg', 'b.wav', 'v.mp4'], 'by path, and nothing hidden'
    assert [meta.duration for meta in found.metas] == pytest.approx([1.5, 1., 2., 1.], abs=0.03)
    assert sorted(error.path.name for error in found.broken) == ['broken.wav', 'empty.flac', 'none.wav']
    assert find_audio(folder, workers=1).metas == found.metas


def test_decoding_finds_what_headers_hide(tmp_path: Path) -> None:
    write_audio(tmp_path / 'good.wav', tone(2.), RATE)
    soundfile.write(tmp_path / 'nan.wav', np.array([0., np.nan]), RATE, subtype='FLOAT')
    write_audio(tmp_path / 'cut.flac', torch.randn(1, 40_000) * 0.1, RATE)
    content = (tmp_path / 'cut.flac').read_bytes()
    (tmp_path / 'cut.flac').write_bytes(content[:len(content) // 2] + bytes(len(content) // 2))
    assert len(find_audio(tmp_path).metas) == 3, 'the headers are fine'
    found = find_audio(tmp_path, complete=True)
    assert names(found.metas) == ['good.wav'] and found.metas[0].duration == 2.
    assert {error.path.name: error.reason for error in found.broken} == {'nan.wav': 'not finite',
                                                                         'cut.flac': 'unreadable'}


def test_a_folder_that_contains_itself(tmp_path: Path) -> None:
    write_audio(tmp_path / 'a.wav', tone(), RATE)
    (tmp_path / 'again').symlink_to(tmp_path)
    assert len(list_media(tmp_path)) == 1


@pytest.mark.parametrize('name', ['m.jsonl', 'm.jsonl.gz', 'folder'])
def test_written_and_read(folder: Path, tmp_path: Path, name: str) -> None:
    metas = [AudioMeta(meta.path, meta.duration, meta.sample_rate, weight=0.5, amplitude=1.,
                       info_path=str(folder / 'x.json')) for meta in find_audio(folder).metas]
    path = write_manifest(tmp_path / name, metas)
    assert path.name == ('data.jsonl' if name == 'folder' else name)
    assert read_manifest(path) == read_manifest(tmp_path / name) == load_audio(path) == metas
    before = path.read_bytes()
    assert write_manifest(tmp_path / name, metas).read_bytes() == before, 'the same bytes each time'


def test_paths_are_relative_to_the_manifest(folder: Path, tmp_path: Path, monkeypatch) -> None:
    metas = find_audio(folder).metas
    inside, outside = write_manifest(tmp_path / 'm.jsonl', metas), write_manifest(tmp_path / 'x' / 'm.jsonl', metas)
    resolved = write_manifest(tmp_path / 'r.jsonl', metas, resolve=True)
    assert '"path": "music/a/c.flac"' in inside.read_text() and str(folder) not in inside.read_text()
    assert outside.read_text() == resolved.read_text() and str(folder) in outside.read_text()
    moved = tmp_path / 'moved'
    moved.mkdir()
    folder.rename(moved / 'music')
    inside.rename(moved / 'm.jsonl')
    monkeypatch.chdir(moved)
    assert names(read_manifest('m.jsonl')) == names(metas)
    with pytest.raises(UserError, match='4 of 4 files do not exist'):
        read_manifest(outside)


def test_relative_to_the_current_folder_as_in_manifests_of_audiocraft(folder: Path, monkeypatch) -> None:
    path = lines(folder.parent / 'egs' / 'data.jsonl', entry('music/b.wav', info_path='music/b.json'))
    monkeypatch.chdir(folder.parent)
    (meta,) = read_manifest(path.parent)
    assert Path(meta.path) == folder / 'b.wav' and Path(meta.info_path) == folder / 'b.json'
    monkeypatch.chdir('/')
    with pytest.raises(UserError, match='1 of 1 files do not exist'):
        read_manifest(path)


def test_missing_files_are_an_error_or_left_out(folder: Path, caplog) -> None:
    path = lines(folder / 'm.jsonl', entry('b.wav'), *(entry(f'gone{i}.wav') for i in range(7)))
    with pytest.raises(UserError) as caught:
        read_manifest(path)
    text = str(caught.value)
    assert '7 of 8 files' in text and 'gone4.wav' in text and 'gone5.wav' not in text and 'on_missing' in text
    with caplog.at_level(logging.WARNING):
        assert names(read_manifest(path, on_missing='skip')) == ['b.wav']
    assert '7 of 8 files do not exist' in caplog.text
    assert len(read_manifest(path, on_missing='ignore')) == 8
    with pytest.raises(UserError, match='7 of 7'):
        read_manifest(lines(folder / 'm.jsonl', *(entry(f'gone{i}.wav') for i in range(7))), on_missing='skip')


@pytest.mark.parametrize('line, word', [
    ('not json\n', 'not JSON'), ('[1]\n', 'found a list'), ('{"duration": 1, "sample_rate": 8000}\n', '"path"'),
    (entry(duration='1'), '"duration" should be a number'), (entry(duration=-1.), 'not negative'),
    ('{"path": "a", "duration": NaN, "sample_rate": 1}\n', '"duration"'), (entry(weight=-1), '"weight"'),
    (entry(path=3), '"path" should be text'), (entry(sample_rate=None), '"sample_rate" is missing'),
])
def test_broken_lines_are_named_by_number(tmp_path: Path, line, word: str) -> None:
    path = lines(tmp_path / 'm.jsonl', entry(), '\n', line)
    with pytest.raises(UserError, match=f'line 3: .*{word}'):
        read_manifest(path)


def test_what_is_no_manifest(tmp_path: Path) -> None:
    (tmp_path / 'empty.jsonl').touch()
    (tmp_path / 'torn.jsonl.gz').write_bytes(gzip.compress(b'{}' * 1000)[:20])
    (tmp_path / 'latin.jsonl').write_bytes(b'\xff\xfe')
    for name, word in [('empty.jsonl', 'no lines'), ('torn.jsonl.gz', 'not readable as compressed'),
                       ('latin.jsonl', 'not readable'), ('gone.jsonl', 'no such manifest'),
                       ('.', 'no manifest'), ('x.wav', 'no manifest')]:
        with pytest.raises(UserError, match=word):
            read_manifest(tmp_path / name)


def test_unknown_keys_are_ignored(folder: Path) -> None:
    (meta,) = read_manifest(lines(folder / 'm.jsonl', entry('b.wav', artist='x', weight=2)))
    assert meta == AudioMeta(str(folder / 'b.wav'), 1., RATE, weight=2)


def test_paths_are_mapped(folder: Path, tmp_path: Path, monkeypatch) -> None:
    team = tmp_path / 'team.yaml'
    team.write_text(f'default: {{dora_dir: {tmp_path}, dataset_mappers: {{"^/old/place": "{folder}"}}}}\n')
    monkeypatch.setenv('AUDIOCRAFT_CONFIG', str(team))
    AudioCraftEnvironment.reset()
    path = lines(tmp_path / 'm.jsonl', entry('/old/place/b.wav', info_path='/old/place/b.json'))
    table = tmp_path / 'm.tsv'
    write_table(table, [{'path': '/old/place/b.wav'}], ['path'])
    try:
        assert read_manifest(path)[0].path == load_audio(table)[0].path == str(folder / 'b.wav')
        assert read_manifest(path)[0].info_path == str(folder / 'b.json')
    finally:
        monkeypatch.undo()
        AudioCraftEnvironment.reset()


def test_folders_tables_and_manifests_load_alike(folder: Path, tmp_path: Path, caplog) -> None:
    table = tmp_path / 'list.tsv'
    write_table(table, [{'path': 'music/b.wav'}, {'path': folder / 'a' / 'c.flac'}, {'path': 'music/empty.flac'}],
                ['path'])
    with caplog.at_level(logging.WARNING):
        assert names(load_audio(table)) == ['b.wav', 'c.flac'], 'in the order of the table'
    assert 'empty.flac: empty' in caplog.text
    assert len(load_audio(folder)) == 4
    with pytest.raises(UserError, match='no such folder or manifest'):
        load_audio(tmp_path / 'nowhere')
    (tmp_path / 'bare').mkdir()
    with pytest.raises(UserError, match='holds no media file'):
        load_audio(tmp_path / 'bare')
    (tmp_path / 'bare' / 'a.wav').touch()
    with pytest.raises(UserError, match='none of its 1 media files'):
        load_audio(tmp_path / 'bare')


def test_what_is_known_of_a_file(tmp_path: Path) -> None:
    meta = AudioMeta(str(tmp_path / 'a.wav'), 1., RATE)
    assert read_info(meta) == {}
    (tmp_path / 'a.json').write_text('{"title": "x"}')
    assert read_info(meta) == {'title': 'x'}
    with zipfile.ZipFile(tmp_path / 'all.zip', 'w') as archive:
        archive.writestr('in/a.json', '{"title": "y"}')
    zipped = AudioMeta(meta.path, 1., RATE, info_path=f'{tmp_path}/all.zip:in/a.json')
    assert read_info(zipped) == {'title': 'y'}
    for info, content in [('gone.json', None), ('bad.json', '{'), ('list.json', '[]'), ('all.zip:no', None)]:
        if content is not None:
            (tmp_path / info).write_text(content)
        with pytest.raises(UserError, match=info):
            read_info(AudioMeta(meta.path, 1., RATE, info_path=str(tmp_path / info)))


def test_the_command(folder: Path, tmp_path: Path, capsys, caplog) -> None:
    out = tmp_path / 'm.jsonl.gz'
    with caplog.at_level(logging.WARNING):
        assert dispatch.main(['manifest', str(folder), str(out), '--workers', '2']) == 0
    assert '4 files, 0.00 hours; 3 broken files left out' in capsys.readouterr().out
    assert all(name in caplog.text for name in ('broken.wav', 'empty.flac', 'none.wav'))
    assert names(read_manifest(out)) == ['c.flac', 'd.ogg', 'b.wav', 'v.mp4']
    before = out.read_bytes()
    assert dispatch.main(['manifest', str(folder), str(out), '--complete']) == 0
    assert out.read_bytes() == before
    assert dispatch.main(['manifest', str(folder / '.hidden' / 'e.wav'), str(out)]) == 1
    assert dispatch.main(['manifest', str(tmp_path / 'nowhere'), str(out)]) == 1


def test_the_name_of_the_command_in_audiocraft(folder: Path, tmp_path: Path, monkeypatch) -> None:
    import runpy
    monkeypatch.setattr('sys.argv', ['audio_dataset', str(folder), str(tmp_path / 'm.jsonl')])
    monkeypatch.delitem(__import__('sys').modules, 'audiocraft.data.audio_dataset', raising=False)
    with pytest.raises(SystemExit) as caught:
        runpy.run_module('audiocraft.data.audio_dataset', run_name='__main__')
    assert not caught.value.code and len(read_manifest(tmp_path / 'm.jsonl')) == 4


def test_check_tells_every_problem(folder: Path, tmp_path: Path, capsys) -> None:
    good = write_manifest(tmp_path / 'good', find_audio(folder, complete=True).metas)
    assert check_path(good) == check_path(good.parent) == check_path(good, deep=True) == []
    bad = lines(folder / 'bad.jsonl', entry('b.wav'), entry('gone.wav'), 'x\n', entry('b.wav'))
    assert [f'line {n}' in problem for n, problem in zip((3, 2, 4), check_path(bad))] == [True] * 3
    assert 'there already in line 1' in check_path(bad)[2]
    wrong = lines(folder / 'wrong.jsonl', entry('b.wav', duration=5.), entry('broken.wav'))
    assert check_path(wrong) == []
    length, broken = check_path(wrong, deep=True)
    assert '2.000 s' in length and '5.000 s' in length and 'broken.wav: unreadable' in broken
    assert dispatch.main(['check', str(bad)]) == 1 and 'gone.wav' in capsys.readouterr().out
