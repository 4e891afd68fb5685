import json
from pathlib import Path

import pytest
import torch

from audiocraft.data.audio import read_audio, write_audio
from audiocraft.data.samples import Clip, SampleWriter, find_media, read_clip, read_events
from audiocraft.data.video import read_video, write_video
from audiocraft.utils.errors import UserError

RATE = 16_000


@pytest.fixture
def media(tmp_path: Path) -> Path:
    folder = tmp_path / 'media'
    wav = 0.1 * torch.randn(1, RATE, generator=torch.Generator().manual_seed(0))
    frames = torch.arange(25, dtype=torch.uint8)[:, None, None, None].expand(25, 3, 32, 48) * 8
    write_video(folder / 'a.mp4', frames, 25., wav, RATE)
    write_audio(folder / 'b.wav', wav, RATE)
    write_video(folder / 'c.mp4', frames, 25.)
    return folder


def test_read_clip_by_its_id(media: Path) -> None:
    for clip_id in 'ab':
        clip = read_clip(media, clip_id, RATE, 0.5)
        assert clip is not None and clip.id == clip_id and clip.media == find_media(media, clip_id)
        assert clip.audio.shape == (1, RATE // 2) and clip.sample_rate == RATE and clip.events is None
    longer = read_clip(media, 'b', 8000, 3.)
    assert longer is not None and longer.audio.shape == (1, 24_000) and not longer.audio[:, 8200:].any()
    whole = read_clip(media, 'a', RATE)
    assert whole is not None and whole.audio.shape == (1, RATE)
    assert read_clip(media, 'z', RATE, 1.) is None
    with pytest.raises(UserError, match='no audio track'):
        read_clip(media, 'c', RATE, 1.)
    with pytest.raises(UserError, match='no such folder'):
        read_clip(media / 'none', 'a', RATE, 1.)


def test_events_of_the_clip_win_over_those_of_the_folder(media: Path) -> None:
    table = {'a': {'events': [{'time': 0.1, 'kind': 'x'}, {'time': 0.8, 'kind': 'x'}]},
             'b': [{'time': 0.3, 'kind': 'z'}]}
    (media / 'events.json').write_text(json.dumps(table))
    clip = read_clip(media, 'a', RATE, 0.5)
    assert clip is not None and clip.events == [{'time': 0.1, 'kind': 'x'}]
    assert read_events(media, 'b') == [{'time': 0.3, 'kind': 'z'}] and read_events(media, 'c') is None
    (media / 'a.events.json').write_text('{"events": [{"time": 0.2, "kind": "y", "object": 1}]}')
    assert read_events(media, 'a') == [{'time': 0.2, 'kind': 'y', 'object': 1}]


@pytest.mark.parametrize('content', ['{"events": 3}', '[1]', '{', '{"events": [{"kind": "x"}]}'])
def test_damaged_events_are_named(media: Path, content: str) -> None:
    (media / 'a.events.json').write_text(content)
    with pytest.raises(UserError, match='a.events.json'):
        read_events(media, 'a')


def test_generated_clip_with_pictures(media: Path, tmp_path: Path) -> None:
    reference = read_clip(media, 'a', RATE, 1.)
    sound = 0.2 * torch.sin(torch.arange(RATE) / 5)[None]
    path = SampleWriter(tmp_path / 'xp/generate/100').add(
        Clip('a', sound, RATE, 'a b'), reference=reference, seed=3, checkpoint='ema', update=100, cfg_strength=4.5)
    record = json.loads(path.read_text())
    assert path == tmp_path / 'xp/generate/100/a.json'
    assert record == {'id': 'a', 'caption': 'a b', 'prompt': 'a b', 'seed': 3, 'checkpoint': 'ema', 'update': 100,
                      'sample_rate': RATE, 'duration': 1., 'reference': '../../../media/a.mp4', 'cfg_strength': 4.5}
    assert (path.parent / record['reference']).samefile(media / 'a.mp4')
    assert torch.allclose(read_audio(path.with_suffix('.wav'))[0], sound, atol=1e-4)
    video = read_video(path.with_suffix('.mp4'), (25.,), 1.)
    assert torch.equal(video.frames[25.], read_video(media / 'a.mp4', (25.,), 1.).frames[25.])
    assert video.audio is not None and torch.corrcoef(torch.cat([video.audio, sound]))[0, 1] > 0.98
    assert sorted(p.name for p in path.parent.iterdir()) == ['a.json', 'a.mp4', 'a.wav']


def test_generated_clip_without_pictures(media: Path, tmp_path: Path) -> None:
    reference = read_clip(media, 'b', RATE, 1.)
    assert reference is not None
    reference.events = [{'time': 0.5, 'kind': 'x'}]
    writer = SampleWriter(tmp_path / 'out')
    record = json.loads(writer.add(Clip('b', torch.zeros(1, 100), RATE), reference=reference, prompt='p').read_text())
    assert record['reference'] == '../media/b.wav' and record['prompt'] == 'p'
    assert record['events'] == reference.events
    assert json.loads(writer.add(Clip('n', torch.zeros(1, 100), RATE)).read_text())['reference'] is None
    assert sorted(p.suffix for p in (tmp_path / 'out').iterdir()) == ['.json', '.json', '.wav', '.wav']


@pytest.mark.parametrize('clip_id', ['', '..', 'a/b', '/a'])
def test_an_id_cannot_leave_the_folder(tmp_path: Path, clip_id: str) -> None:
    with pytest.raises(UserError, match='named'):
        SampleWriter(tmp_path).add(Clip(clip_id, torch.zeros(1, 10), RATE))
