"""Batches of segments: a function of (seed, number), from memory or from disk, whatever the processes."""

from pathlib import Path

import pytest
import torch

from audiocraft.data.audio import write_audio
from audiocraft.data.audio_dataset import AudioSegments, list_media
from audiocraft.data.manifest import write_table
from audiocraft.data.video import write_video
from audiocraft.utils.errors import UserError

RATE = 1000


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """Ramps: the value at sample i of file f is f / 10 + i / 20000, so that a segment tells where it was cut."""
    folder = tmp_path_factory.mktemp('audio')
    for f in range(5):
        ramp = f / 10 + torch.arange(RATE * (1 + f % 2)) / 20_000
        write_audio(folder / f'{f}.wav', ramp[None], RATE, subtype='FLOAT')
    (folder / 'notes.txt').write_text('not audio')
    return folder


def make(folder: Path, **options) -> AudioSegments:
    settings = dict(sample_rate=RATE, segment=0.25, batch_size=4, seed=3, random=True, threads=0)
    return AudioSegments(folder, **{**settings, **options})


def take(loader: AudioSegments, count: int, start: int = 0) -> list:
    return [batch for batch, _ in zip(loader.iterate(start), range(count))]


def same(a: list, b: list) -> bool:
    return len(a) == len(b) and all(x.ids == y.ids and torch.equal(x.audio, y.audio) for x, y in zip(a, b))


def test_batches_are_a_function_of_seed_and_number(folder: Path) -> None:
    whole = take(make(folder), 8)
    assert same(whole, take(make(folder), 8)) and not same(whole, take(make(folder, seed=4), 8))
    assert same(whole[5:], take(make(folder), 3, start=5)), 'a run that is resumed at batch 5'
    assert same(whole, take(make(folder, threads=2), 8)), 'threads change nothing'
    assert whole[0].audio.shape == (4, 1, 250)


def test_segments_are_pieces_of_their_file(folder: Path) -> None:
    starts = set()
    for batch in take(make(folder, align=50), 6):
        for name, wav in zip(batch.ids, batch.audio[:, 0]):
            start = round(float(wav[0] - int(name) / 10) * 20_000)
            assert start % 50 == 0 and 0 <= start <= 1750
            torch.testing.assert_close(wav, int(name) / 10 + (start + torch.arange(250)) / 20_000)
            starts.add(start)
    assert len(starts) > 5, 'the places are random'


def test_each_pass_sees_every_file_once(folder: Path) -> None:
    ids = [name for batch in take(make(folder, batch_size=5), 3) for name in batch.ids]
    for i in range(3):
        assert sorted(ids[5 * i:5 * i + 5]) == list('01234')


def test_processes_share_the_global_batch(folder: Path) -> None:
    whole = take(make(folder), 4)
    parts = [take(make(folder, rank=rank, world_size=2), 4) for rank in range(2)]
    for batch, left, right in zip(whole, *parts):
        assert batch.ids == left.ids + right.ids
        assert torch.equal(batch.audio, torch.cat([left.audio, right.audio]))


def test_from_disk_as_from_memory(folder: Path) -> None:
    cached, uncached = make(folder), make(folder, cache_bytes=0)
    assert cached.cached and not uncached.cached
    for a, b in zip(take(cached, 4), take(uncached, 4)):
        assert a.ids == b.ids
        torch.testing.assert_close(a.audio, b.audio, atol=1 / 20_000 + 1e-6, rtol=0)  # rounding: one sample
    assert same(take(uncached, 4), take(make(folder, cache_bytes=0, threads=2), 4))


def test_without_random_each_file_from_its_beginning(folder: Path) -> None:
    loader = make(folder, random=False, segment=1.5, batch_size=2)
    batches = list(loader)
    assert [batch.ids for batch in batches] == [['0', '1'], ['2', '3'], ['4']] and len(loader) == 3
    first = batches[0].audio[0, 0]
    torch.testing.assert_close(first[:1000], torch.arange(1000) / 20_000)
    assert not first[1000:].any(), 'a short file is filled with silence'
    assert len(list(make(folder, random=False, limit=2))) == 1


def test_rates_channels_and_sound_of_videos(tmp_path: Path) -> None:
    stereo = torch.stack([torch.full((4000,), 0.2), torch.full((4000,), 0.4)])
    write_audio(tmp_path / 'a.flac', stereo, 2 * RATE)
    pictures = torch.zeros(20, 3, 32, 32, dtype=torch.uint8)
    write_video(tmp_path / 'b.mp4', pictures, 10., torch.randn(1, 32_000).clamp(-1, 1) * 0.2, 16_000)
    write_video(tmp_path / 'mute.mp4', pictures, 10.)
    loader = make(tmp_path, segment=0.5)
    assert [path.name for path in loader.files] == ['a.flac', 'b.mp4'], 'one without sound is left out'
    torch.testing.assert_close(loader.segment(0, 0.5), torch.full((1, 500), 0.3), atol=1e-3, rtol=0)
    assert loader.segment(1, 1.).std() > 0.01
    assert make(tmp_path, channels=2).segment(0, 0.).shape == (2, 250)


def test_a_manifest_names_files(folder: Path, tmp_path: Path) -> None:
    write_table(tmp_path / 'list.tsv', [{'path': folder / '3.wav'}, {'path': folder / '1.wav'}], ['path'])
    assert [path.stem for path in list_media(tmp_path / 'list.tsv')] == ['3', '1']


def test_messages(tmp_path: Path) -> None:
    for path, message in ((tmp_path, 'no media file'), (tmp_path / 'nowhere', 'no such folder')):
        with pytest.raises(UserError, match=message):
            make(path)
    (tmp_path / 'a.wav').write_bytes(b'nonsense')
    with pytest.raises(UserError, match='none of its 1 media files'):
        make(tmp_path)


def test_batches_can_be_cut(folder: Path) -> None:
    batch = make(folder).batch(0)
    part = batch.slice(1, 3)
    assert len(part) == 2 and part.ids == batch.ids[1:3] and torch.equal(part.audio, batch.audio[1:3])
