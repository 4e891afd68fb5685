import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from audiocraft.data.manifest import read_table
from audiocraft.data.samples import read_clip, read_events
from audiocraft.data.video import read_video
from audiocraft.examples.drawing import _draw_body
from audiocraft.examples.scene import KINDS
from audiocraft.examples.video import Settings, clip_id, draw_video_example, make_video_examples
from audiocraft.utils.errors import UserError

SETTINGS = Settings(seed=3, seconds=4., fps=25., size=(160, 120), sample_rate=16_000)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope='module')
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video_examples(tmp_path_factory.mktemp('made') / 'set', clips=3, seed=3, workers=1)


def test_the_folder(made: Path) -> None:
    names = [clip_id(index) for index in range(3)]
    assert sorted(path.name for path in made.iterdir()) == sorted(
        ['captions.tsv', 'events.json', 'example.json', *(f'{n}.mp4' for n in names),
         *(f'{n}.events.json' for n in names)])
    table = json.loads((made / 'events.json').read_text())
    assert list(table) == names
    captions = {row['id']: row['caption'] for row in read_table(made / 'captions.tsv')}
    for name, record in table.items():
        single = json.loads((made / f'{name}.events.json').read_text())
        assert single.items() >= record.items() and single['caption'] == captions[name]
        assert (record['id'], record['seconds']) == (name, 4.)
        assert set(record['kinds']) == {record['kind']} <= set(KINDS)
        assert record['kind'] in captions[name]
        assert all(set(event) == {'time', 'kind', 'object'} and event['object'] < len(record['kinds'])
                   for event in record['events'])
        assert read_events(made, name) == record['events']


def test_the_media_are_what_was_drawn(made: Path) -> None:
    for index in range(3):
        example = draw_video_example(SETTINGS, index)
        video = read_video(made / f'{clip_id(index)}.mp4', (25.,), 4.)
        assert video.frames[25.].shape == (100, 3, 120, 160) and video.sample_rate == 16_000
        assert video.audio is not None and video.audio.shape == (1, 64_000)
        error = video.audio.numpy() - example.audio
        assert 10 * np.log10((example.audio ** 2).mean() / (error ** 2).mean()) > 20
        luma = video.frames[25.].float().mean(1).numpy()
        drawn = (example.pictures[:, :120].astype(np.float64) - 16) * 255 / 219
        assert np.corrcoef(luma.ravel(), drawn.ravel())[0, 1] > 0.9


def test_decoded_strikes_are_on_time(made: Path) -> None:
    late = []
    for index in range(3):
        clip = read_clip(made, clip_id(index), 16_000, 4.)
        assert clip is not None and clip.events
        for event in clip.events:
            start = round((event['time'] - 0.02) * 16_000)
            rise = np.abs(np.diff(clip.audio[0, start:start + 640].numpy()))  # sharp things win over what still rings
            late.append((start + int(np.argmax(rise > rise.max() / 3))) / 16_000 - event['time'])
    assert max(map(abs, late)) < 0.005


def test_same_call_same_media_whatever_the_workers(made: Path, tmp_path: Path) -> None:
    two = make_video_examples(tmp_path / 'two', clips=9, seed=3, workers=2, seconds=1., size=(96, 72))
    one = make_video_examples(tmp_path / 'one', clips=2, seed=3, workers=1, seconds=1., size=(96, 72))
    make_video_examples(one, clips=9, seed=3, workers=1, seconds=1., size=(96, 72))
    assert digests(one) == digests(two)
    other = make_video_examples(tmp_path / 'other', clips=2, seed=4, workers=1, seconds=1., size=(96, 72))
    assert digests(other)['clip_00000.mp4'] != digests(one)['clip_00000.mp4']


def test_what_is_missing_is_made_again(tmp_path: Path) -> None:
    def make() -> Path:
        return make_video_examples(tmp_path / 'a', clips=2, seed=0, seconds=1., size=(96, 72), workers=1)
    folder = make()
    before = digests(folder)
    stamp = (folder / 'clip_00000.mp4').stat().st_mtime_ns
    for name in ('clip_00001.mp4', 'events.json', 'captions.tsv'):
        (folder / name).unlink()
    make()
    assert digests(folder) == before and (folder / 'clip_00000.mp4').stat().st_mtime_ns == stamp
    (folder / 'clip_00001.events.json').unlink()
    make()
    assert digests(folder) == before


def test_fewer_clips_than_there_are_keeps_all(made: Path) -> None:
    before = digests(made)
    make_video_examples(made, clips=1, seed=3, workers=1)
    assert digests(made) == before


@pytest.mark.parametrize('change, words', [
    ({'clips': 0}, 'clips must be at least 1'), ({'workers': 0}, 'workers'), ({'seed': -1}, 'seed'),
    ({'seconds': 0.5}, 'seconds'), ({'size': (161, 120)}, 'even'), ({'size': (32, 32)}, '96x72'),
    ({'sample_rate': 12_345}, 'sample_rate'), ({'fps': 1}, 'fps')])
def test_wrong_settings_are_named(tmp_path: Path, change: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_video_examples(tmp_path / 'a', **{'clips': 1, 'seed': 0, **change})
    assert not (tmp_path / 'a').exists()


def test_wrong_folders_are_named(made: Path, tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('x')
    with pytest.raises(UserError, match='is a file'):
        make_video_examples(tmp_path / 'file', clips=1, seed=0)
    with pytest.raises(UserError, match='not empty'):
        make_video_examples(tmp_path, clips=1, seed=0)
    with pytest.raises(UserError, match=r'made otherwise: seed 3 \(now 4\)'):
        make_video_examples(made, clips=1, seed=4)
    (tmp_path / 'damaged').mkdir()
    (tmp_path / 'damaged/example.json').write_text('{')
    with pytest.raises(UserError, match='damaged'):
        make_video_examples(tmp_path / 'damaged', clips=1, seed=0)


def test_without_pyav_the_extra_is_named(tmp_path: Path) -> None:
    code = ('import sys; sys.modules["av"] = None\n'
            'from audiocraft.utils.errors import UserError\n'
            'from audiocraft.examples.video import make_video_examples\n'
            f'try:\n    make_video_examples({str(tmp_path / "a")!r}, clips=1, seed=0)\n'
            'except UserError as error:\n    print(error)')
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert 'audiocraft[video]' in out and not (tmp_path / 'a').exists()


def test_nothing_but_the_motion_tells_when() -> None:
    """Pictures nearest to strikes are as bright as others, and there is as much of the object in them."""
    at = np.arange(100) / 25
    light, area = [], []
    for index in range(12):
        example = draw_video_example(SETTINGS, index)
        struck = np.zeros(100, bool)
        struck[[min(99, round(event['time'] * 25)) for event in example.scene.events()]] = True
        levels = example.pictures[:, :120].mean((1, 2))
        light.append(levels[struck].mean() - levels[~struck].mean())
        for body in range(len(example.scene.bodies)):
            # The object alone, white on black: as much of it at any time.
            luma, chroma = np.zeros((100, 200, 240), np.float32), [np.zeros((100, 100, 120), np.float32)] * 2
            _draw_body(luma, chroma, example.scene, body, at, 40, np.ones(3))
            area.append((luma.sum((1, 2)), struck))
    assert abs(np.mean(light)) < 0.15 and np.max(np.abs(light)) < 1.
    assert max(np.ptp(seen) / seen.mean() for seen, _ in area) < 0.04  # what anti-aliasing leaves of a diamond's tips
    assert abs(np.mean([seen[at_strike].mean() / seen.mean() - 1 for seen, at_strike in area])) < 0.003


def test_motion_shows_in_strongly_pooled_pictures(made: Path) -> None:
    """Pooled to 16 x 16, pictures near a strike still change from one to the next: faster than when it hangs."""
    frames = read_video(made / 'clip_00000.mp4', (25.,), 4., (16, 16), audio=False).frames[25.].float()
    change = (frames[1:] - frames[:-1]).abs().mean((1, 2, 3))
    times = [round(event['time'] * 25) for event in read_events(made, 'clip_00000') or []]
    near = max(float(change[max(0, t - 3):t + 3].mean()) for t in times)
    assert near > 1.5 * float(change.median()) > 0
