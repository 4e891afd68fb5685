import pytest

from audiocraft.data.check import check_path
from audiocraft.data.manifest import caption_of, read_table, write_table
from audiocraft.utils.errors import UserError


def test_values_stay_text(tmp_path):
    path = tmp_path / 'a.tsv'
    path.write_text('id\tcaption\n00008004\tnull\n1e5\tNA\n')
    assert read_table(path) == [{'id': '00008004', 'caption': 'null'}, {'id': '1e5', 'caption': 'NA'}]


def test_commas_when_the_header_has_no_tab(tmp_path):
    path = tmp_path / 'a.tsv'
    path.write_bytes('\ufeffid,label\r\nx,"rain, ""heavy"""\r\n\r\ny,sea'.encode())
    assert [caption_of(row) for row in read_table(path)] == ['rain, "heavy"', 'sea']


def test_single_column(tmp_path):
    path = tmp_path / 'ids.tsv'
    path.write_text('id\na\nb\n')
    assert [row['id'] for row in read_table(path)] == ['a', 'b']


@pytest.mark.parametrize('name', ['a.tsv', 'a.csv'])
def test_what_is_written_is_read(tmp_path, name):
    rows = [{'id': 'a', 'caption': 'tab\there, "quoted"'}, {'id': '007', 'caption': ''}, {'id': 'c', 'caption': 'é\nü'}]
    write_table(tmp_path / name, rows, ['id', 'caption'])
    assert read_table(tmp_path / name) == rows
    assert (tmp_path / name).read_text().startswith('id\tcaption' if name.endswith('tsv') else 'id,caption')


@pytest.mark.parametrize('text, said', [
    ('', 'empty'),
    ('id\tcaption\na\n', 'line 2'),
    ('id\tcaption\na\tb\nc\td\te\n', 'line 3'),
    ('id\tcaption\na\t"never closed\nb\tx\n', 'never closed'),
    ('id\tid\na\tb\n', 'twice'),
    ('name\tcaption\na\tb\n', 'no column "id"'),
])
def test_refusals_name_file_and_line(tmp_path, text, said):
    path = tmp_path / 'bad.tsv'
    path.write_text(text)
    with pytest.raises(UserError, match='bad.tsv') as error:
        read_table(path, required=['id'])
    assert said in str(error.value)


def test_missing_and_binary(tmp_path):
    (tmp_path / 'bin.tsv').write_bytes(b'id\tcaption\n\xff\xfe\n')
    for name in ('bin.tsv', 'none.tsv', ''):
        with pytest.raises(UserError):
            read_table(tmp_path / name)


def test_check(tmp_path):
    good, bad, lines = tmp_path / 'good.tsv', tmp_path / 'clips.tsv', tmp_path / 'm.jsonl'
    good.write_text('id\tpath\na\tgood.tsv\n')
    bad.write_text('id\tpath\tstart_sample\tend_sample\na\tgone.wav\t5\t5\n')
    entry = '{"path": "%s", "duration": 1, "sample_rate": 8000}'
    lines.write_text('\n'.join([entry % 'good.tsv', entry % 'gone.wav', 'not json', '']))
    assert check_path(good) == []
    assert ['gone.wav' in problem for problem in check_path(bad)] == [True, False]
    assert ['line 3' in check_path(lines)[0], 'line 2' in check_path(lines)[1]] == [True, True]
    assert check_path(tmp_path / 'nothing.tsv') and check_path(tmp_path)
