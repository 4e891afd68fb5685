"""Pieces of audio: which one is a function of a number; they are what their file holds there, or an error in words."""

import logging
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audiocraft.data.audio import write_audio
from audiocraft.data.audio_dataset import AudioDataset, unique_ids
from audiocraft.data.audio_manifest import AudioMeta, find_audio, write_manifest
from audiocraft.data.media import MediaError
from audiocraft.data.video import write_video
from audiocraft.utils.errors import UserError

from .ramps import RATE, write_ramps


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return write_ramps(tmp_path_factory.mktemp('audio'))


def make(source, **options) -> AudioDataset:
    return AudioDataset(source, **{**dict(sample_rate=RATE, channels=1, segment=0.25, num_samples=20), **options})


def metas(*durations: float, **other) -> list[AudioMeta]:
    return [AudioMeta(f'/nowhere/{i}.wav', duration, RATE, **other) for i, duration in enumerate(durations)]


def draws(dataset: AudioDataset, passes: int = 1) -> list[int]:
    return [dataset.plan(index, epoch).file for epoch in range(passes) for index in range(len(dataset))]


def test_an_item_is_a_function_of_its_number(folder: Path) -> None:
    dataset = make(folder)
    first = [dataset.plan(index) for index in range(20)]
    assert first == [make(folder).plan(index) for index in range(20)]
    assert first != [dataset.plan(index, 1) for index in range(20)], 'each pass has other pieces'
    assert first != [make(folder, shuffle_seed=1).plan(index) for index in range(20)]
    still = make(folder, shuffle=False)
    assert first == [still.plan(index, 7) for index in range(20)], 'the same pieces in each pass'
    with pytest.raises(IndexError):
        dataset.plan(20)


def test_pieces_are_what_the_file_holds_there(folder: Path) -> None:
    dataset = make(folder, align=50)
    starts = set()
    for index in range(20):
        file, (wav, info) = dataset.item(index)
        start = round(float(wav[0, 0] - file / 10) * 20_000)
        assert start % 50 == 0 and info.seek * RATE == pytest.approx(start) and info.meta is dataset.metas[file]
        inside = file / 10 + (start + torch.arange(info.n_frames)) / 20_000
        torch.testing.assert_close(wav[0, :info.n_frames], inside)
        assert not wav[0, info.n_frames:].any() and wav.shape == (1, 250) and info.total_frames == 250
        starts.add(start)
    assert len(starts) > 5, 'the places are random'


def test_how_much_of_a_piece_lies_inside(folder: Path) -> None:
    for ratio in (0.2, 1.):
        dataset = make(folder, min_segment_ratio=ratio, num_samples=300)
        shortest = min(dataset.plan(index).n_frames for index in range(300))
        assert ratio * 250 <= shortest <= ratio * 250 + 10, 'up to the end of the file, but not beyond'
    short = make(folder, min_segment_ratio=0., pad=False, num_samples=50)
    lengths = {short.item(index)[1].audio.shape[-1] for index in range(50)}
    assert min(lengths) < 200 and max(lengths) == 250, 'without pad, shorter ones stay short'


def test_files_are_drawn_by_length_and_weight() -> None:
    files = [AudioMeta('a', 1., RATE), AudioMeta('b', 3., RATE), AudioMeta('c', 1., RATE, weight=4.),
             AudioMeta('d', 9., RATE, weight=0.)]
    for fast in (False, True):
        for lengths, weights, expected in [(True, True, [1, 3, 4, 0]), (True, False, [1, 3, 1, 9]),
                                           (False, True, [1, 1, 4, 0]), (False, False, [1, 1, 1, 1])]:
            dataset = make(files, sample_on_duration=lengths, sample_on_weight=weights, num_samples=2000,
                           fast_draws=fast)
            counts = torch.bincount(torch.tensor(draws(dataset)), minlength=4) / 2000
            expected = torch.tensor(expected) / sum(expected)
            assert (counts - expected).abs().max() < 0.04 and not counts[expected == 0].any()
    with pytest.raises(UserError, match='weights of all its 2 files are 0'):
        make(metas(1., 2., weight=0.))


def test_permutation_takes_each_file_once() -> None:
    options = dict(permutation_on_files=True, sample_on_duration=False, sample_on_weight=False, num_samples=4)
    seen = draws(make(metas(*[1.] * 6), **options), passes=3)
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6)) and seen[:6] != seen[6:]
    with pytest.raises(UserError, match='sample_on_duration'):
        make(metas(1.), permutation_on_files=True)


def test_lengths_that_are_wanted() -> None:
    dataset = make(metas(0., 1., 2., 3., 4.), min_audio_duration=2., max_audio_duration=3.)
    assert [meta.duration for meta in dataset.metas] == [2., 3.]
    with pytest.raises(UserError, match='none of its 2 files is 5 to inf s long'):
        make(metas(1., 2.), min_audio_duration=5.)


def test_each_file_once_from_its_beginning(folder: Path) -> None:
    dataset = make(folder, sequential=True, segment=1.5, num_samples=None)
    pieces = [dataset.item(index) for index in range(len(dataset))]
    assert [file for file, _ in pieces] == [0, 1, 2, 3, 4]
    assert [piece.info.n_frames for _, piece in pieces] == [1000, 1500, 1000, 1500, 1000]
    torch.testing.assert_close(pieces[0][1].audio[0, :1000], torch.arange(1000) / 20_000)
    assert len(make(folder, sequential=True, num_samples=2)) == 2


def test_whole_files(folder: Path) -> None:
    dataset = make(folder, segment=None)
    assert [dataset[index].shape[-1] for index in range(len(dataset))] == [1000, 2000, 1000, 2000, 1000]
    assert len(list(iter(dataset))) == 5, 'a data set for a torch DataLoader, too'


@pytest.mark.parametrize('rate', [RATE, 800, 1600])
def test_from_memory_as_from_disk(folder: Path, rate: int) -> None:
    cached, uncached = make(folder, sample_rate=rate, cache_bytes=1 << 20), make(folder, sample_rate=rate)
    assert cached.cached and not uncached.cached
    assert not make(folder, cache_bytes=1000).cached, 'all or nothing'
    for index in range(20):
        (_, a), (_, b) = cached.item(index), uncached.item(index)
        room = 40 if rate != RATE else 0  # the filter sees silence, or the sample at the edge, beyond a piece
        stop = min(a.info.n_frames, b.info.n_frames) - room
        torch.testing.assert_close(a.audio[:, room:stop], b.audio[:, room:stop], atol=2e-4, rtol=0)
        assert abs(a.info.n_frames - b.info.n_frames) <= 1


def test_rates_divide_seldom_and_no_sample_is_missing(tmp_path: Path) -> None:
    write_audio(tmp_path / 'a.wav', torch.full((1, 44_100), 0.5), 44_100)
    for rate in (32_000, 16_000, 22_050, 48_000, 44_101):
        for segment in (0.1, 0.123, 1 / 3):
            piece = make(tmp_path, sample_rate=rate, segment=segment).item(3)[1]
            assert piece.audio.shape[-1] == piece.info.n_frames == int(segment * rate + 1e-6)
            torch.testing.assert_close(piece.audio, torch.full_like(piece.audio, 0.5), atol=2e-3, rtol=0)


def test_channels_and_sound_of_videos(tmp_path: Path) -> None:
    stereo = torch.stack([torch.full((4000,), 0.2), torch.full((4000,), 0.4)])
    write_audio(tmp_path / 'a.flac', stereo, 2 * RATE)
    pictures = torch.zeros(20, 3, 32, 32, dtype=torch.uint8)
    write_video(tmp_path / 'b.mp4', pictures, 10., torch.randn(1, 32_000).clamp(-1, 1) * 0.2, 16_000)
    write_video(tmp_path / 'mute.mp4', pictures, 10.)
    dataset = make(tmp_path, segment=0.5)
    assert [path.name for path in dataset.files] == ['a.flac', 'b.mp4'], 'one without sound is left out'
    torch.testing.assert_close(dataset.segment_at(0, 0.5), torch.full((1, 500), 0.3), atol=1e-3, rtol=0)
    assert dataset.segment_at(1, 1.).std() > 0.01
    assert make(tmp_path, channels=2).segment_at(1, 0.).shape == (2, 250)
    with pytest.raises(MediaError, match='a.flac: channels: 2 channels cannot become 3'):
        make(tmp_path, channels=3).segment_at(0, 0.)


def broken(folder: Path) -> dict[str, str]:
    """Write files that cannot be used in training, with good headers or in a manifest; return their reasons."""
    folder.mkdir(exist_ok=True)
    noise = torch.randn(1, 2 * RATE).clamp(-1, 1) * 0.1
    write_audio(folder / 'gone.wav', noise, RATE)
    soundfile.write(folder / 'nan.wav', np.full(2 * RATE, np.nan), RATE, subtype='FLOAT')
    write_audio(folder / 'damaged.flac', noise, RATE)
    write_audio(folder / 'shorter.wav', noise, RATE)
    return {'gone.wav': 'missing', 'nan.wav': 'not finite', 'damaged.flac': 'unreadable', 'shorter.wav': 'too short'}


@pytest.fixture
def partly(tmp_path: Path) -> Path:
    """A manifest with one good file and four that went bad after it was made."""
    broken(tmp_path / 'x')
    write_audio(tmp_path / 'x' / 'good.wav', torch.full((1, 2 * RATE), 0.25), RATE)
    path = write_manifest(tmp_path / 'm.jsonl', find_audio(tmp_path / 'x').metas)
    (tmp_path / 'x' / 'gone.wav').write_bytes(b'')
    content = (tmp_path / 'x' / 'damaged.flac').read_bytes()
    (tmp_path / 'x' / 'damaged.flac').write_bytes(content[:300] + bytes(len(content) - 300))
    write_audio(tmp_path / 'x' / 'shorter.wav', torch.randn(1, 10), RATE)
    return path


@pytest.mark.parametrize('cache_bytes', [0, 1 << 20])
def test_the_next_draw_stands_in_for_what_cannot_be_read(partly: Path, caplog, cache_bytes: int) -> None:
    def dataset() -> AudioDataset:
        return make(partly, num_samples=60, max_read_retry=100, cache_bytes=cache_bytes, min_segment_ratio=1.)

    first = dataset()
    with caplog.at_level(logging.WARNING):
        pieces = [first.item(index)[1] for index in range(60)]
    assert all(Path(piece.info.meta.path).name == 'good.wav' and bool((piece.audio == 0.25).all()) for piece in pieces)
    names = {Path(path).name: count for path, count in first.failures.items()}
    assert set(names) == {'gone.wav', 'nan.wav', 'damaged.flac', 'shorter.wav'} and min(names.values()) > 5
    for name, word in [('gone.wav', 'empty'), ('nan.wav', 'not finite'), ('damaged.flac', 'unreadable'),
                       ('shorter.wav', 'too short')]:
        assert caplog.text.count(name) == 1 and f'{name}: {word}' in caplog.text, 'named once'
    # The piece is the next draw of the item's own generator, however many were read before it.
    alone = dataset()
    for index in (7, 31):
        wanted = next(plan for plan in alone.draws(index) if alone.metas[plan.file].path.endswith('good.wav'))
        assert alone.item(index)[1].info.seek == pieces[index].info.seek == wanted.seek


def test_a_look_at_the_middles_of_files(folder: Path, partly: Path) -> None:
    assert [round(float(wav[0, 0]), 3) for wav in make(folder).spread(3)] == [
        round(f / 10 + (500 * (1 + f % 2) - 125) / 20_000, 3) for f in range(5)]
    assert len(list(make(folder).spread(2))) == 3, 'every second file'
    dataset = make(partly)
    assert len(list(dataset.spread(100))) == 1 and len(dataset.failures) == 4
    with pytest.raises(UserError, match='damaged'):
        list(make(partly, sequential=True).spread(100))


def test_an_item_is_given_up(partly: Path) -> None:
    files = [meta for meta in find_audio(partly.parent / 'x').metas if not meta.path.endswith('good.wav')]
    with pytest.raises(UserError, match=r'item 0 of pass 0 .*\(3 draws\)'):
        make(files, max_read_retry=3).item(0)


def test_outside_of_training_a_broken_file_is_an_error(partly: Path) -> None:
    dataset = make(partly, sequential=True)
    for index, meta in enumerate(dataset.metas):
        if meta.path.endswith('good.wav'):
            assert bool((dataset.item(index)[1].audio == 0.25).all())
        else:
            with pytest.raises(UserError, match=Path(meta.path).name):
                dataset.item(index)
    assert not dataset.failures


def test_odd_files(tmp_path: Path) -> None:
    rates = {'one.wav': (1, 1, RATE), 'many.wav': (8, 2000, RATE), 'fast.wav': (1, 96_000, 192_000)}
    for name, (channels, samples, rate) in rates.items():
        write_audio(tmp_path / name, torch.full((channels, samples), 0.5), rate, subtype='FLOAT')
    dataset = make(tmp_path, sequential=True)
    fast, many, one = (dataset.item(index)[1] for index in range(3))
    for piece in (fast, many):
        torch.testing.assert_close(piece.audio, torch.full((1, 250), 0.5), atol=1e-3, rtol=0)
    assert one.info.n_frames == 1 and one.audio[0, 0] == 0.5 and not one.audio[0, 1:].any()
    with pytest.raises(MediaError, match='one.wav: too short'):
        make([meta for meta in dataset.metas if 'one' in meta.path], sequential=True, sample_rate=500).item(0)
    assert make(tmp_path, channels=2, sequential=True).item(1)[1].audio.shape == (2, 250)
    assert many.info.channels == 1 and bool((make(tmp_path, channels=8, sequential=True).item(1)[1].audio == 0.5).all())


def test_the_end_of_lossy_files_may_be_a_little_early(tmp_path: Path) -> None:
    write_audio(tmp_path / 'a.wav', torch.full((1, 2000), 0.25), RATE)
    for claimed, fine in [(2.04, True), (2.2, False)]:
        dataset = make([AudioMeta(str(tmp_path / 'a.wav'), claimed, RATE)], segment=None)
        if fine:
            assert dataset.item(0)[1].info.n_frames == 2000
        else:
            with pytest.raises(MediaError, match='its manifest is out of date'):
                dataset.item(0)


def test_it_travels_to_other_processes(folder: Path) -> None:
    dataset = make(folder, cache_bytes=1 << 20)
    here = dataset.item(3)[1]
    there = pickle.loads(pickle.dumps(dataset)).item(3)[1]
    assert here.info == there.info and torch.equal(here.audio, there.audio)


def test_names() -> None:
    assert unique_ids(['/x/a.wav', '/x/b.flac']) == ['a', 'b']
    assert unique_ids(['/x/p/a.wav', '/x/q/a.wav', '/x/q/b.wav']) == ['p-a', 'q-a', 'b']
    assert unique_ids(['/x/a.wav', '/x/a.flac', '/x/a-2.wav']) == ['a', 'a-3', 'a-2']
    names = unique_ids(['/x/p/a.wav', '/x/p-a.wav', '/x/a.wav', '/y/a.wav'])
    assert len(set(names)) == 4


def test_wrong_arguments(folder: Path) -> None:
    with pytest.raises(UserError, match='min_segment_ratio'):
        make(folder, min_segment_ratio=2.)
    assert math.isclose(float(make(folder).chances(True, True).sum()), 1., rel_tol=1e-6)
