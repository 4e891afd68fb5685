"""Which clips long audio files are cut into."""

from pathlib import Path

import pytest

from audiocraft.data.manifest import read_table
from audiocraft.features.inputs import list_clips
from audiocraft.features.partition import clip_bounds, partition_clips
from audiocraft.utils.errors import UserError

from .media import make_audio


@pytest.mark.parametrize('samples, rate, expected', [
    (809, 100, []), (810, 100, [(0, 810)]), (1619, 100, [(0, 810)]), (1620, 100, [(0, 810), (810, 1620)]),
    (3000, 100, [(0, 810), (1095, 1905), (2190, 3000)]),
])
def test_bounds(samples: int, rate: int, expected: list) -> None:
    assert clip_bounds(samples, rate, 8.1, 5) == expected


def test_long_files_give_the_most_clips_without_overlap() -> None:
    bounds = clip_bounds(100_000, 100, 8.1, 5)
    assert len(bounds) == 5 and bounds[0][0] == 0 and 100_000 - 4 <= bounds[-1][1] <= 100_000
    assert all(end <= start for (_, end), (start, _) in zip(bounds, bounds[1:]))


def test_parts_concatenate_to_the_whole(tmp_path: Path) -> None:
    for name, seconds in (('c', 2.5), ('a', 1.), ('b', 0.4), ('d', 3.1)):
        make_audio(tmp_path / 'audio' / f'{name}.wav', 0, seconds, 8000)
    (tmp_path / 'audio' / 'a.txt').write_text('not audio')
    (tmp_path / 'audio' / 'bad.wav').write_bytes(b'not audio either')
    options = dict(clip_seconds=0.5, max_clips=3)
    whole = read_table(partition_clips(tmp_path / 'audio', tmp_path / 'all.tsv', **options))
    assert [row['id'] for row in whole] == ['a_0', 'a_1', 'c_0', 'c_1', 'c_2', 'd_0', 'd_1', 'd_2']
    parts = [row for start, end in ((0, 1), (1, 4), (4, -1))
             for row in read_table(partition_clips(tmp_path / 'audio', tmp_path / 'part.csv', start, end, **options))]
    assert parts == whole
    assert (tmp_path / 'part.csv').read_text().startswith('id,name,start_sample,end_sample')


def test_messages(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='not a folder'):
        partition_clips(tmp_path / 'nowhere', tmp_path / 'x.tsv')
    with pytest.raises(UserError, match='no audio file'):
        partition_clips(tmp_path, tmp_path / 'x.tsv')
    make_audio(tmp_path / 'a.wav', 0, 1.)
    with pytest.raises(UserError, match='start 3 and end -1 are not a part of the 1 files'):
        partition_clips(tmp_path, tmp_path / 'x.tsv', 3)
    for wrong in ({'clip_seconds': 0.}, {'clip_seconds': float('nan')}, {'max_clips': 0}):
        with pytest.raises(UserError, match='expected more than 0'):
            partition_clips(tmp_path, tmp_path / 'x.tsv', **wrong)


def test_of_one_name_the_first_is_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Extraction reads that one only, and finds it whatever the letters of its suffix."""
    for name, seconds in (('a.wav', 3.), ('a.flac', 2.), ('b.WAV', 1.)):
        make_audio(tmp_path / 'audio' / name, 0, seconds, 8000)
    table = partition_clips(tmp_path / 'audio', tmp_path / 'x.tsv', clip_seconds=0.8)
    assert [row['id'] for row in read_table(table)] == ['a_0', 'a_1', 'b_0']
    assert 'a.wav: duplicate: a.flac has the same name' in caplog.text
    paths = [item.path and item.path.name for item in list_clips(tmp_path / 'audio', table)]
    assert paths == ['a.flac', 'a.flac', 'b.WAV']
