"""Batches of audio: a function of their number, whatever the threads and processes and where a run is resumed."""

import itertools
import logging
import threading
from pathlib import Path

import pytest
import torch

from audiocraft.data.audio import write_audio
from audiocraft.data.audio_dataset import AudioBatch, AudioDataset
from audiocraft.data.audio_loader import AudioLoader
from audiocraft.utils.errors import UserError

from .ramps import RATE, write_ramps


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return write_ramps(tmp_path_factory.mktemp('audio'))


def make(folder: Path, dataset: dict | None = None, **options) -> AudioLoader:
    settings = dict(sample_rate=RATE, channels=1, segment=0.25, num_samples=6)
    data = AudioDataset(folder, **{**settings, **(dataset or {})})
    return AudioLoader(data, **{**dict(batch_size=4, infinite=True, threads=0), **options})


def take(loader: AudioLoader, count: int, start: int = 0) -> list[AudioBatch]:
    return list(itertools.islice(loader.iterate(start), count))


def same(a: list[AudioBatch], b: list[AudioBatch]) -> bool:
    return len(a) == len(b) and all(x.ids == y.ids and torch.equal(x.audio, y.audio) and x.infos == y.infos
                                    and torch.equal(x.lengths, y.lengths) for x, y in zip(a, b))


def test_a_batch_is_a_function_of_its_number(folder: Path) -> None:
    whole = take(make(folder), 8)
    assert same(whole, take(make(folder), 8))
    assert not same(whole, take(make(folder, {'shuffle_seed': 1}), 8))
    assert same(whole[5:], take(make(folder), 3, start=5)), 'a run that is resumed at batch 5'
    for threads in (1, 3):
        assert same(whole, take(make(folder, threads=threads), 8)), 'threads change nothing'
    assert whole[0].audio.shape == (4, 1, 250) and len(make(folder)) == 2
    items = [info for batch in whole for info in batch.infos]
    again = make(folder).dataset
    assert items == [again.item(place % 6, place // 6)[1].info for place in range(32)], 'across the ends of passes'


def test_processes_share_the_global_batch(folder: Path) -> None:
    whole = take(make(folder, batch_size=5), 4)
    parts = [take(make(folder, batch_size=5, rank=rank, world_size=2), 4) for rank in range(2)]
    for batch, left, right in zip(whole, *parts):
        assert (len(left), len(right)) == (2, 3) and batch.ids == left.ids + right.ids
        assert torch.equal(batch.audio, torch.cat([left.audio, right.audio]))


def test_each_file_once(folder: Path) -> None:
    loader = make(folder, {'sequential': True, 'segment': 1.5, 'num_samples': None}, batch_size=2, infinite=False)
    for _ in range(2):
        assert [batch.ids for batch in loader] == [['0', '1'], ['2', '3'], ['4']] and len(loader) == 3
    assert next(iter(loader)).lengths.tolist() == [1000, 1500]
    last = list(make(folder, {'sequential': True}, batch_size=4, infinite=False, rank=0, world_size=2))
    assert [len(batch) for batch in last] == [2, 1] and last[1].ids == ['4']
    other = make(folder, {'sequential': True}, batch_size=4, infinite=False, rank=1, world_size=2)
    assert [batch.part.padding for batch in other] == [False, False], 'of one item, the last process has it'
    assert last[1].part.padding, 'and the first one repeats it, so that both make the same steps'
    assert loader.batch(7).audio.shape == (0, 1, 1500)


def test_whole_files_are_filled_up_to_the_longest(folder: Path) -> None:
    (batch,) = take(make(folder, {'segment': None}, batch_size=5, infinite=False), 9)
    assert batch.audio.shape == (5, 1, 2000) and batch.lengths.tolist() == [1000, 2000, 1000, 2000, 1000]
    assert {info.total_frames for info in batch.infos} == {2000} and not batch.audio[0, 0, 1000:].any()


def test_batches_can_be_cut_and_moved(folder: Path) -> None:
    (batch,) = take(make(folder), 1)
    part = batch.slice(1, 3).to('cpu')
    assert len(part) == 2 and part.ids == batch.ids[1:3] and part.infos == batch.infos[1:3]
    assert torch.equal(part.audio, batch.audio[1:3]) and torch.equal(part.lengths, batch.lengths[1:3])
    assert AudioBatch(['a'], torch.zeros(1, 1, 7)).lengths.tolist() == [7]


def test_what_could_not_be_read_is_told_at_the_end_of_a_pass(tmp_path: Path, caplog) -> None:
    for name in ('a', 'b', 'c'):
        write_audio(tmp_path / f'{name}.wav', torch.ones(1, 2000) * 0.1, RATE)
    loader = make(tmp_path, batch_size=3, threads=1, ahead=1)
    (tmp_path / 'b.wav').unlink()
    with caplog.at_level(logging.WARNING):
        batches = take(loader, 5)
    assert 'b' not in {name for batch in batches for name in batch.ids}
    assert loader.failures == {str(tmp_path / 'b.wav'): sum(loader.failures.values())} and loader.failures
    summaries = [record.getMessage() for record in caplog.records if 'so far' in record.getMessage()]
    assert len(summaries) == 2 and '1 of 3 files could not be read so far' in summaries[0]


@pytest.mark.parametrize('threads', [0, 2])
def test_errors_come_through(tmp_path: Path, threads: int) -> None:
    write_audio(tmp_path / 'a.wav', torch.ones(1, 2000) * 0.1, RATE)
    loader = make(tmp_path, {'sequential': True}, infinite=False, threads=threads)
    (tmp_path / 'a.wav').write_bytes(b'x')
    with pytest.raises(UserError, match='a.wav: unreadable'):
        list(loader)


def test_threads_end_with_the_iteration(folder: Path) -> None:
    batches = make(folder, threads=2).iterate()
    next(batches)
    assert any(thread.name.startswith('audio') for thread in threading.enumerate())
    batches.close()
    for thread in threading.enumerate():
        if thread.name.startswith('audio'):
            thread.join(5)
    assert not any(thread.name.startswith('audio') for thread in threading.enumerate())


def test_places_in_files_and_wrong_arguments(folder: Path) -> None:
    loader = make(folder)
    assert [path.name for path in loader.files] == [f'{f}.wav' for f in range(5)] and loader.durations[1] == 2.
    assert float(loader.segment(1, 1.)[0, 0]) == pytest.approx(0.1 + 1750 / 20_000, abs=1e-4)
    for options in ({'batch_size': 0}, {'rank': 2, 'world_size': 2}):
        with pytest.raises(ValueError):
            make(folder, **options)
