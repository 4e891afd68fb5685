"""Features of pictures and words that no store has."""

from pathlib import Path

import pytest
import torch

from audiocraft.data.store_dataset import Batch
from audiocraft.data.video import Video
from audiocraft.features.controls import Conditions, Frozen
from audiocraft.features.online import OnlineFeatures, Still, require_weights
from audiocraft.features.tiny import TinyImage, TinyText
from audiocraft.utils.errors import UserError

from .generation import SECONDS, extractors, facts, moving_square, picture


@pytest.fixture(scope='module')
def media(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('media')
    moving_square(folder / 'a.mp4', SECONDS)
    moving_square(folder / 'b.mkv', SECONDS + 1, left=20)
    picture(folder / 'x.png')
    picture(folder / 'y.jpg', 90)
    (folder / 'sound.wav').write_bytes(b'x')
    return folder


@pytest.fixture
def online() -> OnlineFeatures:
    return OnlineFeatures(facts())


def item(caption: str, video: Video | None = None) -> Conditions:
    return Conditions(caption or 'none', video, caption, '')


def of_video(video: Video) -> dict[str, torch.Tensor]:
    """The features of one video, by the extractors alone."""
    made: dict[str, torch.Tensor] = {}
    for extractor in extractors().values():
        if extractor.consumes == 'frames':
            made |= extractor(extractor.prepare(video.frames[extractor.fps][:extractor.frames_needed(SECONDS)]))
    return made


def test_features_of_a_batch(online: OnlineFeatures, media: Path) -> None:
    videos = [online.read(media / name) for name in ('a.mp4', 'b.mkv')]
    batch = online([item('one', videos[0]), item('two', videos[1])])
    assert {key: x.shape[:2] for key, x in batch.tensors.items()} == {
        'clip_features': (2, 32), 'sync_features': (2, 96), 'text_features': (2, 4)}
    assert batch.ids == batch.captions == ['one', 'two'] and not batch.rows
    for row, video in enumerate(videos):
        for key, expected in of_video(video).items():
            assert torch.equal(batch.tensors[key][row], expected)
    short = online([item('one', videos[0])], 1.5).tensors
    assert short['clip_features'].shape[1] == 12 and short['sync_features'].shape[1] == 32


def test_items_without_a_video(online: OnlineFeatures, media: Path) -> None:
    a, b = (online.read(media / name) for name in ('a.mp4', 'b.mkv'))
    x, y = (online.read(media / name) for name in ('x.png', 'y.jpg'))
    assert isinstance(x, Still) and not isinstance(a, Still)
    batch = online([item('one'), item('two', x), item('three', a), item('four', y), item('five', b)])
    assert {key: rows.tolist() for key, rows in batch.rows.items()} == {'clip_features': [1, 2, 3, 4],
                                                                        'sync_features': [2, 4]}
    alone = {row: online([Conditions('', video, '', '')]).tensors for row, video in ((1, x), (2, a), (3, y), (4, b))}
    for key, rows in batch.rows.items():
        for at, row in enumerate(rows.tolist()):
            assert torch.equal(batch.tensors[key][at], alone[row][key][0]), (key, row)
    clip = batch.tensors['clip_features']
    assert clip.shape[1] == 32 and torch.equal(clip[0], clip[0, :1].expand_as(clip[0]))
    assert not torch.equal(clip[0], clip[2]) and len(batch.tensors['text_features']) == 5
    assert set(online([item('one')]).tensors) == {'text_features'}


def test_a_picture_is_what_a_video_of_it_is(online: OnlineFeatures, media: Path) -> None:
    still = online.read(media / 'x.png')
    video = Video(frames={rate: x.expand(200, *x.shape[1:]).contiguous() for rate, x in still.frames.items()})
    for made in (online([item('', video)]), online([item('', Frozen().change(item('', video)).video)])):
        torch.testing.assert_close(made.tensors['clip_features'], online([item('', still)]).tensors['clip_features'])


def test_each_extractor_is_loaded_when_it_is_needed(online: OnlineFeatures, media: Path) -> None:
    assert not online._loaded
    assert online.text('a ball').shape == (4, 8) and set(online._loaded) == {'text'}
    online.read(media / 'a.mp4', 1., ['sync_features'])
    assert set(online._loaded) == {'text', 'motion'}
    image = online.read(media / 'x.png', 1., ['clip_features'])
    assert online._loaded.keys() == {'text', 'motion', 'image'} and set(image.frames) == {8.}
    loaded = online.extractor('image')
    assert isinstance(loaded, TinyImage) and online.extractor('image') is loaded and not loaded.training
    online.release()
    assert not online._loaded and online.text('a drum').shape == (4, 8)


def test_only_the_keys_that_are_wanted(online: OnlineFeatures, media: Path) -> None:
    video = online.read(media / 'a.mp4')
    assert set(online([item('one', video)], keys=['sync_features']).tensors) == {'sync_features'}
    assert set(online([item('one', video)], keys=[]).tensors) == set()
    assert len(online.build_cfgs()) == 3 and len(online.build_cfgs(['text_features'])) == 1
    assert online.rates == {'clip_features': 8., 'sync_features': 24.}


def test_captions_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    prepare = TinyText.prepare
    monkeypatch.setattr(TinyText, 'prepare', lambda self, x: asked.append(x) or prepare(self, x))
    online = OnlineFeatures(facts(), captions=2)
    batch = online([item('a'), item('b'), item('a'), item('a')])
    assert asked == ['a', 'b'] and torch.equal(batch.tensors['text_features'][3], online.text('a'))
    assert not torch.equal(online.text('b'), online.text('a')) and asked == ['a', 'b']
    online.text('c')
    online.text('a')
    assert asked == ['a', 'b', 'c'], 'the last ones used are kept'
    online.text('b')
    assert asked == ['a', 'b', 'c', 'b']


def test_replace(online: OnlineFeatures, media: Path) -> None:
    """What new items do not have stays as it was, row by row."""
    video = online.read(media / 'a.mp4')
    old = Batch(['1', '2', '3', '4'], ['a', 'b', 'c', 'd'], {
        'mean': torch.ones(4, 5), 'clip_features': torch.full((2, 32, 28), 7.),
        'sync_features': torch.full((4, 96, 8), 8.)}, {'clip_features': torch.tensor([0, 1])})
    changed = online.replace(old, [item('w'), item('x', video), item('y', video), item('z')])
    assert changed.ids == old.ids and changed.captions == ['w', 'x', 'y', 'z']
    assert changed.rows['clip_features'].tolist() == [0, 1, 2] and set(changed.rows) == {'clip_features'}
    expected = online([item('', video)]).tensors
    clip, sync = changed.tensors['clip_features'], changed.tensors['sync_features']
    assert (clip[0] == 7).all() and all(torch.equal(x, expected['clip_features'][0]) for x in clip[1:])
    assert (sync[[0, 3]] == 8).all() and all(torch.equal(x, expected['sync_features'][0]) for x in sync[1:3])
    assert torch.equal(changed.tensors['mean'], old.tensors['mean']) and len(changed.tensors['text_features']) == 4
    assert (old.tensors['clip_features'] == 7).all() and len(old.tensors['clip_features']) == 2
    whole = online.replace(old, [item('w', video)] * 4)
    assert not whole.rows and len(whole.tensors['clip_features']) == 4
    words = online.replace(old, [item('w')] * 4)
    assert words.tensors['clip_features'] is old.tensors['clip_features'] and 'clip_features' in words.rows
    silent = online.replace(Batch(['1', '2'], ['', ''], {'mean': torch.ones(2, 5)}), [item('w'), item('x', video)])
    assert silent.rows['clip_features'].tolist() == silent.rows['sync_features'].tolist() == [1]


def test_find(online: OnlineFeatures, media: Path) -> None:
    found = online.find(media, 'b')
    assert found is not None and len(found.frames[8.]) == 32
    assert online.find(media, 'nothing') is None and online.find(media, 'sound') is None


def test_what_is_refused(online: OnlineFeatures, media: Path) -> None:
    with pytest.raises(UserError, match='does not say which extractors'):
        OnlineFeatures({'duration': 4.})
    with pytest.raises(UserError, match='0.01 s are too short: TinyMotion'):
        online([item('', online.read(media / 'a.mp4'))], 0.01, ['sync_features'])
    (media / 'text.png').write_text('no picture')
    with pytest.raises(UserError, match='text.png: unreadable'):
        online.read(media / 'text.png')


def test_weights_are_looked_for_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ('AUDIOCRAFT_WEIGHTS', 'HF_HUB_CACHE'):
        monkeypatch.setenv(variable, str(tmp_path))
    clip = {'_target_': 'audiocraft.features.clip.ClipText'}
    with pytest.raises(UserError) as caught:
        require_weights([clip, {**clip, 'weights': '//pretrained/synchformer'}, '//pretrained/mmaudio/vae_16k', 'x'])
    names = [line.split('"')[1] for line in str(caught.value).splitlines()]
    assert names == ['clip_dfn5b', 'synchformer', 'mmaudio/vae_16k']
    require_weights([{**clip, 'weights': None}, {'_target_': 'audiocraft.features.tiny.TinyText'}, 'xps/1234'])
