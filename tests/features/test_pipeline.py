"""Reading, computing and writing go on at the same time; texts are computed once; the store does not show any of it."""

import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from audiocraft.data.manifest import write_table
from audiocraft.data.store import Store
from audiocraft.data.store_writer import StoreWriter
from audiocraft.features import extract as extraction
from audiocraft.features.base import Extractor, Spec
from audiocraft.features.extract import extract
from audiocraft.features.pipeline import Behind, Outputs, Runner, ahead

from .media import codec, make_audio

PATIENCE = 60.


class Words(Extractor):
    """A text as the sum of random directions of its letters, by a network whose last bits are its own."""
    consumes = 'text'

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(256, 64), nn.Tanh(), nn.Linear(64, 16))
        self.passes: list[int] = []

    def spec(self, duration: float) -> Spec:
        return {'text_features': ((16,), torch.float32)}

    def prepare(self, item: str) -> torch.Tensor:
        return torch.bincount(torch.tensor([*item.encode(), 0]), minlength=256).float()

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        self.passes.append(len(batch))
        return {'text_features': self.net(batch)}


class Pass(Extractor):
    """Calls a function on each pass, and gives the sound's mean."""
    consumes = 'audio'

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def spec(self, duration: float) -> Spec:
        return {'level': ((1,), torch.float32)}

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        self.function()
        return {'level': batch.mean((1, 2))[:, None]}


def clips(folder: Path, count: int, captions: list[str]) -> dict[str, Path]:
    """A sound cut into clips, with captions by clip (each has a file of its own)."""
    for i in range(count):
        make_audio(folder / 'audio' / f'c{i}.wav', i, 0.3)
    rows = [{'id': f'c{i}', 'name': f'c{i}', 'start_sample': 0, 'end_sample': 4000} for i in range(count)]
    write_table(folder / 'clips.tsv', rows, ['id', 'name', 'start_sample', 'end_sample'])
    texts = [{'id': f'c{i}', 'caption': captions[i % len(captions)]} for i in range(count)]
    write_table(folder / 'captions.tsv', texts, ['id', 'caption'])
    return {'data_dir': folder / 'audio', 'clips_tsv': folder / 'clips.tsv', 'captions_tsv': folder / 'captions.tsv'}


def run(source: dict[str, Path], out: Path, extractors: dict[str, Extractor], **options) -> Store:
    extract(**source, output_dir=out, codec=codec(), extractors=extractors, duration=0.25, **options)
    return Store(out)


class Meeting:
    """One pass of each of three stages waits here until all three are in it."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(3, timeout=PATIENCE)
        self.counts = dict.fromkeys(('read', 'compute', 'write'), 0)

    def reach(self, stage: str, number: int) -> None:
        self.counts[stage] += 1
        if self.counts[stage] == number:
            self.barrier.wait()


def test_reading_computing_and_writing_overlap(tmp_path: Path, monkeypatch) -> None:
    """The 7th item is read while the 3rd batch is computed and the 2nd written; else the barrier breaks."""
    meeting = Meeting()
    load, write = extraction._load, StoreWriter.add
    monkeypatch.setattr(extraction, '_load', lambda *args: (meeting.reach('read', 7), load(*args))[1])
    monkeypatch.setattr(StoreWriter, 'add', lambda *args: (meeting.reach('write', 2), write(*args))[1])
    slow = Pass(lambda: meeting.reach('compute', 3))
    store = run(clips(tmp_path, 12, ['a']), tmp_path / 'out', {'slow': slow}, batch_size=1, num_workers=2)
    assert len(store) == 12 and not meeting.barrier.broken


def test_never_too_far_ahead() -> None:
    begun: list[int] = []
    results = ahead(lambda x: (begun.append(x), x)[1], range(100), threads=2, window=5)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    results.close()
    assert max(begun) < 3 + 5


def test_behind_keeps_the_order() -> None:
    done: list[int] = []
    with Behind(pending=2) as behind:
        for number in range(50):
            behind(done.append, number)
    assert done == list(range(50))


def test_what_goes_wrong_behind_is_raised() -> None:
    with pytest.raises(ZeroDivisionError), Behind() as behind:
        behind(lambda: 1 / 0)


def test_what_was_given_is_done_before_an_exception_leaves() -> None:
    done: list[int] = []
    with pytest.raises(KeyError), Behind() as behind:
        behind(done.append, 1)
        raise KeyError('x')
    assert done == [1]


def test_a_full_disk_ends_the_extraction(tmp_path: Path, monkeypatch) -> None:
    def full(*args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(StoreWriter, 'add', full)
    with pytest.raises(OSError, match='No space left'):
        run(clips(tmp_path, 4, ['a']), tmp_path / 'out', {}, batch_size=2)


def test_texts_are_computed_once(tmp_path: Path) -> None:
    source, words = clips(tmp_path, 12, ['a dog', 'a cat', 'rain']), Words()
    store = run(source, tmp_path / 'out', {'words': words}, batch_size=4)
    assert words.passes == [4], 'three texts, in one pass of the usual size'
    features = store.tensors['text_features']
    assert torch.equal(features[0], features[9]) and not torch.equal(features[0], features[1])
    with torch.no_grad():
        torch.testing.assert_close(features[1], words.net(words.prepare('a cat')), rtol=1e-5, atol=1e-6)


def test_a_text_has_the_same_bytes_whatever_was_computed_with_it(tmp_path: Path) -> None:
    """Resumed somewhere, forgotten in between, in other company: the same."""
    texts = [f'sound number {i}' for i in range(7)]
    source = clips(tmp_path, 12, texts)
    whole = run(source, tmp_path / 'whole', {'words': Words()}, batch_size=4).tensors['text_features'][:]
    runner = Runner({'words': Words()}, batch_size=4, texts=4)  # at most four are kept
    for first in (3, 0, 5, 2):
        chosen = [texts[i % 7] for i in range(first, first + 3)]
        items = [{'words': Words().prepare(text)} for text in chosen]
        found = runner(items, chosen).wait()['text_features']
        assert torch.equal(found, whole[first:first + 3])
    assert len(runner._known['words']) <= 4


def test_bfloat16_is_a_fact_of_the_store(tmp_path: Path) -> None:
    source = clips(tmp_path, 3, ['a dog'])
    full, mixed = (run(source, tmp_path / dtype, {'words': Words()}, dtype=dtype) for dtype in ('float32', 'bfloat16'))
    assert (full.facts['dtype'], mixed.facts['dtype']) == ('float32', 'bfloat16')
    for key in ('mean', 'text_features'):
        a, b = full.tensors[key][:], mixed.tensors[key][:]
        assert a.dtype == b.dtype == torch.float32
        assert not torch.equal(a, b) and float((a - b).norm() / a.norm()) < 0.03, key


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_gpu_gives_the_same_through_pinned_memory(tmp_path: Path) -> None:
    source = clips(tmp_path, 10, ['a dog', 'rain'])
    cpu = run(source, tmp_path / 'cpu', {'words': Words()}, batch_size=4)
    gpu = run(source, tmp_path / 'gpu', {'words': Words()}, batch_size=4, device='cuda')
    again = run(source, tmp_path / 'again', {'words': Words()}, batch_size=4, device='cuda')
    for key in ('mean', 'std', 'text_features'):
        torch.testing.assert_close(gpu.tensors[key][:], cpu.tensors[key][:], rtol=1e-2, atol=1e-2)
        assert torch.equal(gpu.tensors[key][:], again.tensors[key][:])


def test_outputs_are_float32_in_memory() -> None:
    found = Outputs({'a': torch.ones(2, dtype=torch.bfloat16), 'b': torch.ones(2, dtype=torch.int16)}).wait()
    assert (found['a'].dtype, found['b'].dtype) == (torch.float32, torch.int16)
