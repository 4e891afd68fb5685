"""Extraction end to end: what is in the store, what is left out, resuming, several processes."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from audiocraft.cli.extract import read_config
from audiocraft.data.audio import write_audio
from audiocraft.data.manifest import read_table, write_table
from audiocraft.data.store import Store, check_store
from audiocraft.data.video import read_video
from audiocraft.features import extract as extraction
from audiocraft.features.codec import Codec
from audiocraft.features.extract import extract
from audiocraft.features.inputs import list_clips
from audiocraft.utils.checkpoint import save_checkpoint
from audiocraft.utils.errors import UserError

from .media import CODEC, DURATION, EXTRACTORS, codec, extractors, make_audio, make_video, make_videos, noise

# Samples of an item: a second is 31.25 frames of the tiny codec, and the 32nd one gets what comes after the second.
SPAN = 32 * 512


def run(data: Path, out: Path, **options) -> Store:
    """Extract with the tiny codec and extractors."""
    settings = dict(codec=codec(), extractors=EXTRACTORS, duration=DURATION, batch_size=4, **options)
    extract(data_dir=data, output_dir=out, **settings)
    return Store(out)


@pytest.fixture(scope='module')
def videos(tmp_path_factory) -> Path:
    return make_videos(tmp_path_factory.mktemp('videos') / 'media', 6)


def contents(store: Store) -> dict[str, bytes]:
    """The bytes of every file of a store but the facts."""
    inside = {path.name: path.read_bytes() for path in store.files.folder.iterdir()}
    return {**inside, 'tsv': store.files.tsv.read_bytes()}


def test_a_store_of_videos(videos: Path, tmp_path: Path) -> None:
    store = run(videos, tmp_path / 'out', captions_tsv=videos.parent / 'captions.tsv')
    assert check_store(store.files.folder, deep=True) == []
    assert store.ids == [f'v{i}' for i in range(6)]
    assert store.captions == [f'square number {i}' for i in range(6)]
    assert store.rows[0].keys() == {'id', 'label', 'duration'}, 'the columns that MMAudio reads'
    assert {key: shape for key, (shape, _) in store.keys.items()} == {
        'mean': (32, 4), 'std': (32, 4), 'clip_features': (4, 28), 'sync_features': (8, 32), 'text_features': (4, 8)}
    facts = store.facts
    assert (facts['sample_rate'], facts['frame_rate'], facts['duration']) == (16_000, 31.25, 1.)
    assert facts['extractors']['codec']['build_cfg'] == CODEC and facts['fps'] == {'clip_features': 4.,
                                                                                  'sync_features': 8.}
    assert len(facts['latent_mean']) == 4


def test_rows_hold_what_the_models_give_for_the_file(videos: Path, tmp_path: Path) -> None:
    store = run(videos, tmp_path / 'out', captions_tsv=videos.parent / 'captions.tsv')
    models = extractors()
    video = read_video(videos / 'v3.mp4', [4., 8.], DURATION, size=(120, 160))
    whole = read_video(videos / 'v3.mp4', [], 1.2).audio
    wav = (whole / whole.abs().max() * 0.95)[:, :SPAN]
    row = {key: tensor[3] for key, tensor in store.tensors.items()}
    latents = Codec(codec())(wav[None])
    torch.testing.assert_close(row['mean'], latents['mean'][0], rtol=1e-3, atol=1e-4)
    assert torch.equal(row['clip_features'], models['image'].prepare(video.frames[4.]))
    assert torch.equal(row['sync_features'], models['motion'].prepare(video.frames[8.]))
    assert torch.equal(row['text_features'], models['text'].prepare('square number 3'))
    assert not torch.equal(row['sync_features'], store.tensors['sync_features'][2])


def test_levels_are_kept_on_demand(videos: Path, tmp_path: Path) -> None:
    loud, plain = (run(videos, tmp_path / str(flag), normalize_audio=flag) for flag in (True, False))
    wav = read_video(videos / 'v0.mp4', [], 1.2).audio[:, :SPAN]
    torch.testing.assert_close(plain.tensors['mean'][0], Codec(codec())(wav[None])['mean'][0], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(loud.tensors['mean'][0], plain.tensors['mean'][0], atol=1e-2)


def test_unusable_files_are_listed_with_the_reason(tmp_path: Path) -> None:
    media = make_videos(tmp_path / 'media', 2)
    make_video(media / 'mute.mp4', sound=False)
    make_video(media / 'short.mp4', seconds=0.5)
    (media / 'broken.mp4').write_bytes(b'this is no film')
    (media / 'empty.mp4').write_bytes(b'')
    (media / 'notes.txt').write_text('not media')
    store = run(media, tmp_path / 'out')
    assert store.ids == ['v0', 'v1']
    reasons = {row['id']: row['reason'] for row in read_table(store.files.rejected)}
    assert {name: reason.split(':')[0] for name, reason in reasons.items()} == {
        'mute': 'no audio track', 'short': 'too short', 'broken': 'unreadable', 'empty': 'empty'}
    assert '1 s' in reasons['short'], 'both numbers are named'
    assert store.facts['rejected'] == 4


def test_the_second_time_there_is_nothing_to_do(videos: Path, tmp_path: Path, caplog, monkeypatch) -> None:
    before = contents(run(videos, tmp_path / 'out'))
    monkeypatch.setattr(extraction, 'Reader', None)  # nothing may be decoded
    with caplog.at_level(logging.INFO):
        assert contents(run(videos, tmp_path / 'out')) == before
    assert 'already complete' in caplog.text and 'nothing to do' in caplog.text


def test_another_request_does_not_overwrite_a_store(videos: Path, tmp_path: Path) -> None:
    before = contents(run(videos, tmp_path / 'out'))
    with pytest.raises(UserError, match='normalize_audio'):
        run(videos, tmp_path / 'out', normalize_audio=False)
    with pytest.raises(UserError, match='items_sha256'):
        run(videos, tmp_path / 'out', captions_tsv=videos.parent / 'captions.tsv')
    assert contents(Store(tmp_path / 'out')) == before


@pytest.mark.parametrize('fail_at', [1, 4, 5])
def test_resumed_equals_uninterrupted(videos: Path, tmp_path: Path, monkeypatch, fail_at: int) -> None:
    expected = contents(run(videos, tmp_path / 'whole'))
    load, decoded = extraction._load, []

    def failing(reader, item):
        decoded.append(item.id)
        if item.id == f'v{fail_at}':
            raise KeyboardInterrupt
        return load(reader, item)

    monkeypatch.setattr(extraction, '_load', failing)
    options = dict(latent_dir=tmp_path / 'state', num_workers=1)
    with pytest.raises(KeyboardInterrupt):
        run(videos, tmp_path / 'out', **options)
    assert not (tmp_path / 'out').exists()
    monkeypatch.setattr(extraction, '_load', load)
    assert contents(run(videos, tmp_path / 'out', **options)) == expected
    assert list((tmp_path / 'state').iterdir()) == [], 'nothing is left behind'


def test_a_short_batch_gives_the_bits_of_a_full_one(videos: Path, tmp_path: Path) -> None:
    few = tmp_path / 'few'
    few.mkdir()
    (few / 'v5.mp4').write_bytes((videos / 'v5.mp4').read_bytes())
    one, all_of_them = run(few, tmp_path / 'one'), run(videos, tmp_path / 'all')
    assert torch.equal(one.tensors['mean'][0], all_of_them.tensors['mean'][5])


SCRIPT = """
import sys
sys.path[:0] = [{root!r}, {root!r} + '/tests']
from features import media
from audiocraft.features.extract import extract
from audiocraft.features.inputs import list_clips
extract(data_dir={data!r}, output_dir={out!r}, codec=media.codec(), extractors=media.EXTRACTORS,
        duration=media.DURATION, batch_size=4, num_workers=1)
"""


def test_several_processes_and_a_kill(videos: Path, tmp_path: Path) -> None:
    expected = contents(run(videos, tmp_path / 'whole'))
    out, journal = tmp_path / 'out', tmp_path / 'out.partial' / 'journal-0.jsonl'
    extract(data_dir=videos, output_dir=out, codec=codec(), extractors=EXTRACTORS, duration=DURATION, batch_size=4,
            rank=1, world_size=3)
    # Rank 0 of three is killed while it waits for rank 2, which never comes.
    script = SCRIPT.format(root=str(Path(__file__).parents[2]), data=str(videos), out=str(out))
    killed = subprocess.Popen([sys.executable, '-c', script], env={**os.environ, 'RANK': '0', 'WORLD_SIZE': '3'})
    deadline = time.monotonic() + 100
    while not (journal.exists() and journal.read_text().count('\n') == 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert journal.read_text().count('\n') == 2 and not out.exists()
    # The rest with another number of processes.
    for rank in (1, 0):
        extract(data_dir=videos, output_dir=out, codec=codec(), extractors=EXTRACTORS, duration=DURATION, batch_size=4,
                rank=rank, world_size=2)
    assert contents(Store(out)) == expected


def clips_table(path: Path, *rows: tuple[str, str, int, int]) -> Path:
    columns = ['id', 'name', 'start_sample', 'end_sample']
    write_table(path, [dict(zip(columns, row)) for row in rows], columns)
    return path


def test_a_store_of_audio_clips(tmp_path: Path) -> None:
    audio = tmp_path / 'audio'
    make_audio(audio / 'a.wav', 1, 3., 22_050, channels=2)
    write_audio(audio / 'b.wav', torch.zeros(1, 48_000), 16_000)
    make_audio(audio / 'b.flac', 2, 3.)  # flac comes before wav
    clips = clips_table(tmp_path / 'clips.tsv', ('a_0', 'a', 0, 22_200), ('a_1', 'a', 30_000, 52_200),
                        ('b_0', 'b', 100, 17_000), ('b_0', 'b', 100, 17_000), ('b_0', 'b', 20_000, 37_000))
    captions = tmp_path / 'captions.csv'
    captions.write_text('id,label\na,old\nb,"rain, wind"\na,a bell\n')
    store = run(audio, tmp_path / 'out', clips_tsv=clips, captions_tsv=captions)
    assert store.ids == ['a_0', 'a_1', 'b_0', 'b_0#1'], 'a repeated row counts once, another clip of the id is kept'
    assert store.captions == ['a bell', 'a bell', 'rain, wind', 'rain, wind'], 'by name, the last one counts'
    assert set(store.keys) == {'mean', 'std', 'text_features'} and 'caption' in store.rows[0]
    wav = noise(2, 3.)
    wav = (wav * 32767).round() / 32768
    latents = Codec(codec())((wav / wav.abs().max() * 0.95)[None, :, 100:100 + SPAN])
    torch.testing.assert_close(store.tensors['mean'][2], latents['mean'][0], rtol=5e-3, atol=5e-3)


def test_clips_that_cannot_be_used(tmp_path: Path) -> None:
    audio = tmp_path / 'audio'
    make_audio(audio / 'a.wav', 1, 2.)
    write_audio(audio / 'still.wav', torch.zeros(1, 32_000), 16_000)
    clips = clips_table(tmp_path / 'clips.tsv', ('fine', 'a', 0, 16_000), ('past', 'a', 20_000, 40_000),
                        ('short', 'a', 0, 15_000), ('still', 'still', 0, 16_000), ('gone', 'nowhere', 0, 16_000))
    store = run(audio, tmp_path / 'out', clips_tsv=clips)
    assert store.ids == ['fine']
    reasons = {row['id']: row['reason'].split(':')[0] for row in read_table(store.files.rejected)}
    assert reasons == {'past': 'too short', 'short': 'too short', 'still': 'silent', 'gone': 'missing'}


def test_the_codec_of_an_xp(videos: Path, tmp_path: Path) -> None:
    model = codec()
    save_checkpoint(tmp_path / 'xp' / 'checkpoints', 3, models={'model': model.state_dict()},
                    state={'models': {'model': model.build_cfg}})
    reference = str(tmp_path / 'xp')
    extract(data_dir=videos, output_dir=tmp_path / 'out', codec=reference, duration=DURATION, batch_size=4)
    store = Store(tmp_path / 'out')
    assert store.facts['codec'] == reference and set(store.keys) == {'mean', 'std'}
    assert torch.equal(store.tensors['mean'][:], run(videos, tmp_path / 'direct').tensors['mean'][:])


def test_messages(videos: Path, tmp_path: Path) -> None:
    (tmp_path / 'nothing').mkdir()
    write_table(tmp_path / 'others.tsv', [{'id': 'x', 'caption': 'y'}], ['id', 'caption'])
    clips = clips_table(tmp_path / 'clips.tsv', ('a', 'a', 50, 20))
    cases = [
        (tmp_path / 'nowhere', {}, 'no such folder'), (tmp_path / 'nothing', {}, 'holds no video'),
        (videos, {'captions_tsv': tmp_path / 'others.tsv'}, 'not one of its 1 ids'),
        (videos, {'clips_tsv': clips}, 'are not a clip'), (videos, {'sample_rate': 44_100}, '44100.*16000'),
        (videos, {'only_listed': True}, 'give --captions_tsv'), (videos, {'dtype': 'float16'}, 'float32, bfloat16'),
        (videos, {'only_listed': True, 'windows': True, 'captions_tsv': tmp_path / 'others.tsv'}, 'manifest'),
        (videos, {'only_listed': True, 'captions_tsv': tmp_path / 'others.tsv'}, 'not one of its 1 ids, such as "x"'),
    ]
    for data, options, message in cases:
        with pytest.raises(UserError, match=message):
            run(data, tmp_path / 'out', **options)
    with pytest.raises(UserError, match='which another extractor gives'):
        extract(data_dir=videos, output_dir=tmp_path / 'out', codec=codec(), duration=DURATION,
                extractors={'one': EXTRACTORS['text'], 'two': EXTRACTORS['text']})
    with pytest.raises(UserError, match='not one item was accepted'):
        extract(data_dir=videos, output_dir=tmp_path / 'out', codec=codec(), duration=60.)


def test_all_missing_weights_are_named_before_anything_is_read(tmp_path: Path, monkeypatch) -> None:
    for variable in ('AUDIOCRAFT_WEIGHTS', 'HF_HUB_CACHE', 'HF_HOME'):
        monkeypatch.setenv(variable, str(tmp_path))
    config = read_config('video_mmaudio_44k', [])
    with pytest.raises(UserError) as caught:
        extract(data_dir=tmp_path / 'nowhere', output_dir=tmp_path / 'out', **config)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3 and all(f'"{name}"' in line for name, line in zip(
        ('mmaudio/vae_44k', 'clip_dfn5b', 'synchformer'), lines))


def test_each_process_has_its_own_gpu(monkeypatch) -> None:
    chosen: list[str] = []
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    monkeypatch.setattr(torch.cuda, 'set_device', lambda device: chosen.append(str(device)))
    monkeypatch.setenv('LOCAL_RANK', '6')
    assert [str(extraction.choose_device(name)) for name in ('cuda', 'auto', 'cpu', 'cuda:1')] == [
        'cuda:2', 'cuda:2', 'cpu', 'cuda:1']
    assert chosen == ['cuda:2', 'cuda:2', 'cuda:1']
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert extraction.choose_device('auto') == torch.device('cpu')


@pytest.mark.parametrize('rows, words', [
    ([('a#1', 'x', 0, 9), ('a', 'x', 0, 9), ('a', 'x', 1, 9)], 'two of its clips would be called "a#1"'),
    ([('', 'x', 0, 9)], 'no id or no name')])
def test_clips_that_cannot_be_told_apart(tmp_path: Path, rows: list, words: str) -> None:
    (tmp_path / 'audio').mkdir()
    with pytest.raises(UserError, match=words):
        list_clips(tmp_path / 'audio', clips_table(tmp_path / 'clips.tsv', *rows))


@pytest.mark.parametrize('options, words', [
    ({'duration': 0.}, 'duration=0'), ({'duration': float('nan')}, 'duration=nan'), ({'batch_size': 0}, 'batch_size=0'),
    ({'normalize_audio': 'maybe'}, 'expected true or false')])
def test_values_that_make_no_sense(tmp_path: Path, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        extract(**{'data_dir': tmp_path, 'output_dir': tmp_path / 'out', 'codec': codec(), 'duration': 1., **options})
