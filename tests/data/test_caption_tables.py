"""Lists of public data sets become tables of captions."""

import json
from pathlib import Path

import pytest

from audiocraft.cli import captions as command
from audiocraft.cli.dispatch import main
from audiocraft.data.caption_tables import KINDS, write_caption_tables
from audiocraft.data.manifest import read_table
from audiocraft.utils.errors import UserError

VGGSOUND = ('---g-f_I2yQ,1,people marching,test\n'
            '--0PQM4-hqg,30,waterfall burbling,train\n'
            '00000000007,120,"train whistling, far",train\n'
            '00000000007,120,"train whistling, far",train\n'
            'null_______,0,null,train\n')
AUDIOCAPS = ('audiocap_id,youtube_id,start_time,caption\n'
             '91139,r1nicOVtvkQ,130,"A woman talks nearby, as water pours"\n'
             '58146,00008004,0,NA\n'
             '58147,00008004,0,A dog\n')


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / 'vggsound.csv').write_text(VGGSOUND)
    (tmp_path / 'val.csv').write_text(AUDIOCAPS)
    folder = tmp_path / 'wavcaps'
    (folder / 'FreeSound').mkdir(parents=True)
    entries = [{'id': 180913, 'caption': 'Ein "Ton"\tüber ...'}, {'id': '00042', 'caption': 'null'}]
    (folder / 'FreeSound' / 'fsd.json').write_text(json.dumps({'num_captions_per_audio': 1, 'data': entries}))
    (folder / 'as.json').write_text(json.dumps({'data': [{'id': 'Yb0.Rx.wav', 'caption': 'Rain.'}]}))
    return tmp_path


def table(path: Path) -> list[tuple[str, str]]:
    return [tuple(row.values()) for row in read_table(path, required=['id'])]


def test_vggsound_by_split(source: Path, tmp_path: Path) -> None:
    found = write_caption_tables('vggsound', source / 'vggsound.csv', tmp_path / 'out')
    assert found == {tmp_path / 'out' / 'test.tsv': 1, tmp_path / 'out' / 'train.tsv': 3}
    assert table(tmp_path / 'out' / 'test.tsv') == [('---g-f_I2yQ_000001', 'people marching')]
    assert table(tmp_path / 'out' / 'train.tsv') == [
        ('--0PQM4-hqg_000030', 'waterfall burbling'), ('00000000007_000120', 'train whistling, far'),
        ('null________000000', 'null')]
    assert 'label' in read_table(tmp_path / 'out' / 'test.tsv')[0]


def test_one_table(source: Path, tmp_path: Path) -> None:
    write_caption_tables('vggsound', source / 'vggsound.csv', tmp_path / 'one.tsv', split='test')
    assert len(table(tmp_path / 'one.tsv')) == 1
    write_caption_tables('vggsound', source / 'vggsound.csv', tmp_path / 'all.csv', id_format='{youtube_id}-{start}')
    assert [id for id, _ in table(tmp_path / 'all.csv')][0] == '---g-f_I2yQ-1' and len(table(tmp_path / 'all.csv')) == 4


def test_ids_for_valid_do_not_depend_on_the_order(source: Path, tmp_path: Path) -> None:
    write_caption_tables('vggsound', source / 'vggsound.csv', tmp_path / 'a', valid=1)
    (source / 'turned.csv').write_text(''.join(reversed(VGGSOUND.splitlines(keepends=True))))
    write_caption_tables('vggsound', source / 'turned.csv', tmp_path / 'b', valid=1)
    assert table(tmp_path / 'a' / 'valid.tsv') == table(tmp_path / 'b' / 'valid.tsv')
    train = {id for id, _ in table(tmp_path / 'a' / 'train.tsv')}
    assert len(train) == 2 and table(tmp_path / 'a' / 'valid.tsv')[0][0] not in train


def test_audiocaps(source: Path, tmp_path: Path, caplog) -> None:
    with caplog.at_level('INFO'):
        write_caption_tables('audiocaps', source / 'val.csv', tmp_path / 'out')
    assert table(tmp_path / 'out' / 'val.tsv') == [
        ('r1nicOVtvkQ', 'A woman talks nearby, as water pours'), ('00008004', 'NA'), ('00008004', 'A dog')]
    assert '2 ids' in caplog.text and '1 ids have another one' in caplog.text


def test_wavcaps(source: Path, tmp_path: Path) -> None:
    write_caption_tables('wavcaps', source / 'wavcaps', tmp_path / 'out')
    assert table(tmp_path / 'out' / 'fsd.tsv') == [('180913', 'Ein "Ton"\tüber ...'), ('00042', 'null')]
    assert table(tmp_path / 'out' / 'as.tsv') == [('Yb0.Rx', 'Rain.')]


def test_the_command(source: Path, tmp_path: Path, capsys) -> None:
    assert set(command.KINDS) == set(KINDS)
    arguments = ['captions', '--kind', 'audiocaps', '--source', str(source / 'val.csv'), '--output_dir']
    assert main([*arguments, str(tmp_path / 'x.tsv')]) == 0 and len(table(tmp_path / 'x.tsv')) == 3
    assert main([*arguments, str(tmp_path / 'y'), '--split', 'train']) == 1
    assert 'no part "train"; its parts are val' in capsys.readouterr().err


@pytest.mark.parametrize('kind, name, message', [
    ('audiocaps', 'vggsound.csv', 'no column'), ('vggsound', 'val.csv', 'line 1: expected youtube_id'),
    ('wavcaps', 'val.csv', 'expected a json file of WavCaps'), ('vggsound', 'nowhere.csv', 'cannot be read'),
    ('esc50', 'val.csv', 'expected one of vggsound'), ('wavcaps', 'empty', 'no .json file')])
def test_messages(source: Path, tmp_path: Path, kind: str, name: str, message: str) -> None:
    (source / 'empty').mkdir()
    with pytest.raises(UserError, match=message):
        write_caption_tables(kind, source / name, tmp_path / 'out')


@pytest.mark.parametrize('options, message', [
    ({'id_format': '{video}'}, 'the fields are youtube_id, start'), ({'valid': 5}, 'cannot be held out'),
    ({'valid': -1}, 'cannot be held out')])
def test_messages_of_options(source: Path, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_caption_tables('vggsound', source / 'vggsound.csv', tmp_path / 'out', **options)


@pytest.mark.parametrize('content, message', [
    (b'a,1,caf\xe9,train\n', 'not utf-8'), (b'a,1,x,../train\n', '"../train" cannot be the name of a part')])
def test_lists_that_cannot_be_used(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / 'x.csv').write_bytes(content)
    with pytest.raises(UserError, match=message):
        write_caption_tables('vggsound', tmp_path / 'x.csv', tmp_path / 'in' / 'out')
    assert [path.name for path in tmp_path.iterdir()] == ['x.csv']


def test_a_caption_that_is_null(tmp_path: Path) -> None:
    (tmp_path / 'x.json').write_text('{"data": [{"id": 1, "caption": null}]}')
    write_caption_tables('wavcaps', tmp_path / 'x.json', tmp_path / 'x.tsv')
    assert table(tmp_path / 'x.tsv') == [('1', '')]
