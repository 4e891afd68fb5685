"""What folders hold besides good videos: each file is used or listed with the reason, and none stops the run."""

import collections
import logging
import os
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from data.test_video import pictures as quarters
from data.test_video import rotate, write

from audiocraft.data.manifest import read_table, write_table
from audiocraft.data.store import Store, check_store
from audiocraft.data.video import write_video
from audiocraft.features import inputs as reading
from audiocraft.features.codec import Codec
from audiocraft.features.extract import extract
from audiocraft.models.mel_vae import MelVAE
from audiocraft.utils.errors import UserError

from .media import EXTRACTORS, codec, frames, make_audio, make_video, noise

CAPTIONS = {'00008004': 'null', 'a': 'NA', 'A': 'a "quoted", text', 'vfr': 'two\twords', 'turned': 'Glöckchen 鈴 🔔',
            'hevc10': "it's", 'phone': ' spaces ', 'surround': 'nan', 'upper': 'line\nbreak'}


def run(data: Path, out: Path, **options) -> Store:
    settings = dict(codec=codec(), extractors=EXTRACTORS, duration=1., batch_size=4, num_workers=2)
    extract(data_dir=data, output_dir=out, **{**settings, **options})
    return Store(out)


def reasons(store: Store) -> dict[str, str]:
    rejected = store.files.rejected
    return {row['id']: row['reason'] for row in read_table(rejected)} if rejected.exists() else {}


def pictures(count: int = 12) -> np.ndarray:
    return frames(1, count / 10.).permute(0, 2, 3, 1).contiguous().numpy()


def sound(seconds: float = 1.2, rate: int = 16_000) -> np.ndarray:
    return noise(1, seconds, rate).numpy()


def surround(path: Path) -> Path:
    """Six channels."""
    with av.open(str(path), 'w') as container:
        video, audio = container.add_stream('libx264', rate=10), container.add_stream('aac', rate=48_000)
        video.height, video.width, video.pix_fmt, audio.layout = 48, 64, 'yuv420p', '5.1'
        for picture in pictures():
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')))
        container.mux(video.encode(None))
        block = av.AudioFrame.from_ndarray(noise(3, 1.2, 48_000, 6).numpy(), format='fltp', layout='5.1')
        block.sample_rate = 48_000
        container.mux(audio.encode(block))
        container.mux(audio.encode(None))
    return path


def make_odd_folder(folder: Path) -> Path:
    """One file of each kind, good ones and bad ones."""
    folder.mkdir()
    make_video(folder / '00008004.mp4', 1)
    for name, seed in (('a.mp4', 2), ('a.mkv', 3), ('A.mp4', 4), ('.hidden.mp4', 5), ('whole.mp4', 6)):
        make_video(folder / name, seed)
    (folder / 'a.mkv.mov').write_bytes(b'')  # its id is the name of another file
    shutil.move(make_video(folder / 'upper.mp4', 7), folder / 'upper.MP4')
    times = [0, 30, 200, 210, 420, 425, 600, 730, 800, 910, 1000, 1150]
    write(folder / 'vfr.mkv', frames=pictures(), times_ms=times, wav=sound())
    rotate(make_video(folder / 'turned.mp4', 8), 90)
    write(folder / 'hevc10.mp4', frames=pictures(), fps=10, codec='libx265', pixels='yuv420p10le', wav=sound(),
          **{'x265-params': 'log-level=none'})
    write(folder / 'phone.mp4', frames=pictures(), fps=10, wav=sound(rate=8000), rate=8000)
    surround(folder / 'surround.mkv')
    # What cannot be used.
    make_video(folder / 'mute.mp4', sound=False)
    write(folder / 'silent.mp4', frames=pictures(), fps=10, wav=0 * sound())
    write(folder / 'sound_only.mp4', wav=sound())
    make_video(folder / 'short.mp4', seconds=0.8)
    whole = (folder / 'whole.mp4').read_bytes()
    (folder / 'cut.mp4').write_bytes(whole[:len(whole) // 2])  # its index was at the end
    long = make_video(folder / 'long.mkv', 9, seconds=3.).read_bytes()
    (folder / 'long.mkv').unlink()
    (folder / 'cut_short.mkv').write_bytes(long[:len(long) // 5])  # readable up to there
    (folder / 'empty.mp4').write_bytes(b'')
    (folder / 'folder.mp4').mkdir()
    (folder / 'gone.mp4').symlink_to(folder / 'nowhere.mp4')
    for i in range(9):  # two whole batches
        (folder / f'text{i}.mp4').write_text('not a film\n' * 50)
    shutil.copy(folder / 'a.mp4', os.fsencode(folder) + b'/bad\xff.mp4')
    shutil.copy(folder / 'a.mp4', folder / 'locked.mp4')
    (folder / 'locked.mp4').chmod(0)
    return folder


BAD = {'mute': 'no audio track', 'silent': 'silent', 'sound_only': 'no video track', 'short': 'too short',
       'cut': 'unreadable', 'cut_short': 'too short', 'empty': 'empty', 'folder': 'missing: it is a folder',
       'gone': 'missing', 'a.mkv': 'empty', 'a.mkv#1': 'duplicate: a.mp4 has the same id "a"',
       'bad\\udcff.mp4': 'unreadable: its name is not utf-8', 'locked': 'unreadable',
       **{f'text{i}': 'unreadable: not a media file' for i in range(9)}}


@pytest.fixture
def locked(monkeypatch) -> None:
    """Whoever runs the tests as root can read everything."""
    genuine = av.open

    def refused(path, *args, **kwargs):
        if Path(path).name == 'locked.mp4':
            raise av.error.PermissionError(13, 'Permission denied', path)
        return genuine(path, *args, **kwargs)
    monkeypatch.setattr(av, 'open', refused)


@pytest.mark.usefixtures('locked')
def test_a_folder_of_odd_files(tmp_path: Path, caplog) -> None:
    folder = make_odd_folder(tmp_path / 'media')
    write_table(tmp_path / 'captions.tsv', [{'id': k, 'label': v} for k, v in CAPTIONS.items()], ['id', 'label'])
    with caplog.at_level(logging.INFO):
        store = run(folder, tmp_path / 'out', captions_tsv=tmp_path / 'captions.tsv')
    assert check_store(store.files.folder, deep=True) == []
    assert set(store.ids) == {*CAPTIONS, 'whole'}
    assert dict(zip(store.ids, store.captions)) == {**CAPTIONS, 'whole': ''}
    found = reasons(store)
    assert found.keys() == BAD.keys()
    assert {id: reason[:len(BAD[id])] for id, reason in found.items()} == BAD
    assert '1 hidden files' in caplog.text and '"a.mkv#1"' in caplog.text
    in_folder = [name for name in os.listdir(folder) if not name.startswith('.')]
    assert len(store) + len(found) == len(in_folder), 'each file is somewhere'


def test_turned_pictures_are_upright(tmp_path: Path) -> None:
    """A file that is to be turned gives what the turned pictures give."""
    media = tmp_path / 'media'
    media.mkdir()
    lossless = {'crf': '0', 'preset': 'veryfast'}
    upright = np.rot90(quarters(12), -1, (1, 2)).copy()
    write(media / 'plain.mp4', frames=upright, fps=10, wav=sound(), **lossless)
    rotate(write(media / 'turned.mp4', frames=quarters(12), fps=10, wav=sound(), **lossless), 90)
    features = run(media, tmp_path / 'out').tensors['clip_features'][:, :, :12]  # the colours of four quarters
    torch.testing.assert_close(features[1], features[0], rtol=0, atol=0.1)
    assert features[0, 0, :4].argmax() == 1, 'the bright quarter, first on the upper left, is on the upper right'


def test_errors_of_the_machine_are_no_reason_to_leave_files_out(tmp_path: Path, monkeypatch) -> None:
    make_video(tmp_path / 'media' / 'v.mp4', 1)
    for error in (OSError(24, 'Too many open files'), MemoryError()):
        def failing(*args, error=error):
            raise error
        monkeypatch.setattr(reading.Reader, '_video', failing)
        with pytest.raises(type(error)):
            run(tmp_path / 'media', tmp_path / 'out')
    monkeypatch.setattr(reading.Reader, '_video', lambda *_: {}['no such key'])
    with pytest.raises(UserError, match='not one item was accepted'):
        run(tmp_path / 'media', tmp_path / 'out')
    assert 'unreadable: KeyError' in (tmp_path / 'out.partial' / 'rejected.tsv').read_text()


def test_damage_after_the_item_is_found_by_the_pass_for_the_peak(tmp_path: Path, monkeypatch) -> None:
    make_video(tmp_path / 'media' / 'v.mp4', 1)
    make_video(tmp_path / 'media' / 'w.mp4', 2)

    def damaged(path):
        if path.stem == 'v':
            raise reading.soundfile.LibsndfileError(4)
        yield sound()
    monkeypatch.setattr(reading, '_pieces', damaged)
    reading.peak_of.cache_clear()
    store = run(tmp_path / 'media', tmp_path / 'out')
    reading.peak_of.cache_clear()
    assert store.ids == ['w'] and reasons(store)['v'].startswith('unreadable')


# -- lengths ---------------------------------------------------------------------------------------------------------

def tiny_44k() -> MelVAE:
    torch.manual_seed(0)
    return MelVAE(sample_rate=44_100, n_fft=2048, hop=512, n_mels=16, fmax=22_050., latent_dim=4, width=8, depth=1)


def film(path: Path, seconds: float, sound_seconds: float | None = None) -> Path:
    rate, length = 44_100, seconds if sound_seconds is None else sound_seconds
    shown = frames(1, 10., 25.)[:round(seconds * 25)]
    wav = noise(7, 10., rate)[:, :round(length * rate)]
    return write_video(path, shown, 25., wav, rate, options={'preset': 'ultrafast'})


def test_eight_seconds_at_44k_are_345_latents(tmp_path: Path) -> None:
    """353280 samples, more than 8 s: real sound where the file has it, silence where it ends; nothing is lost."""
    media = tmp_path / 'media'
    media.mkdir()
    film(media / 'd10.mp4', 10.)
    film(media / 'd800.mp4', 8.)
    film(media / 'd799.mp4', 8., 7.99)
    film(media / 'd790.mp4', 7.92)
    film(media / 'd780.mp4', 7.8)
    store = run(media, tmp_path / 'out', codec=tiny_44k(), duration=8., normalize_audio=False)
    assert store.ids == ['d10', 'd790', 'd799', 'd800'] and list(reasons(store)) == ['d780']
    assert store.keys['mean'][0] == (345, 4) and store.facts['duration'] == 8.
    longer, exact = store.tensors['mean'][0], store.tensors['mean'][3]
    torch.testing.assert_close(longer[:340], exact[:340], rtol=5e-2, atol=5e-2)
    whole = noise(7, 10., 44_100)
    torch.testing.assert_close(longer, Codec(tiny_44k())(whole[None, :, :353_280])['mean'][0], rtol=.1, atol=.15)
    silent = torch.nn.functional.pad(whole[None, :, :352_800], (0, 480))
    last = Codec(tiny_44k())(silent)['mean'][0, -1]
    assert float((exact[-1] - last).abs().max()) < float((longer[-1] - last).abs().max())


def test_other_durations(tmp_path: Path) -> None:
    media = tmp_path / 'media'
    media.mkdir()
    film(media / 'v.mp4', 3.)
    for duration, latents in ((1., 44), (2.5, 108)):
        store = run(media, tmp_path / f'{duration}', codec=tiny_44k(), duration=duration)
        assert store.keys['mean'][0][0] == latents and len(store) == 1


# -- only what is listed ---------------------------------------------------------------------------------------------

def test_only_listed_videos(tmp_path: Path, caplog) -> None:
    media = tmp_path / 'media'
    for name in ('b.mp4', 'c.mp4', 'd.mp4', 'd.mkv', 'e.mp4'):
        make_video(media / name, 1)
    (media / 'e.mp4').write_bytes(b'')
    listed = {'b': 'rain', 'd': 'wind', 'gone1': 'x', 'gone2': 'y', 'gone3': 'z', 'gone0': ''}
    write_table(tmp_path / 'train.tsv', [{'id': k, 'label': v} for k, v in listed.items()], ['id', 'label'])
    with caplog.at_level(logging.WARNING):
        store = run(media, tmp_path / 'out', captions_tsv=tmp_path / 'train.tsv', only_listed=True)
    assert store.ids == ['b', 'd'] and store.captions == ['rain', 'wind']
    kinds = collections.Counter(reason.split(':')[0] for reason in reasons(store).values())
    assert kinds == {'missing': 4, 'duplicate': 1}, 'c and e are no affair of this table'
    assert '4 of 6 ids' in caplog.text and '"gone0", "gone1", "gone2", ...' in caplog.text
    assert len([record for record in caplog.records if 'gone' in record.getMessage()]) == 1, 'one line for all'
    everything = run(media, tmp_path / 'all', captions_tsv=tmp_path / 'train.tsv')
    assert everything.ids == ['b', 'c', 'd'] and 'gone0' not in reasons(everything)


def test_only_listed_clips(tmp_path: Path) -> None:
    audio = tmp_path / 'audio'
    audio.mkdir()
    for name in ('x', 'y'):
        make_audio(audio / f'{name}.flac', 1, 2.)
    rows = [{'id': f'{name}_0', 'name': name, 'start_sample': 0, 'end_sample': 16_400} for name in ('x', 'y', 'z')]
    write_table(tmp_path / 'clips.tsv', rows, ['id', 'name', 'start_sample', 'end_sample'])
    listed = [{'id': name, 'caption': 'a'} for name in ('x', 'z', 'short')]
    write_table(tmp_path / 'captions.tsv', listed, ['id', 'caption'])
    store = run(audio, tmp_path / 'out', clips_tsv=tmp_path / 'clips.tsv', captions_tsv=tmp_path / 'captions.tsv',
                only_listed=True)
    assert store.ids == ['x_0']
    assert {id: reason.split(':')[0] for id, reason in reasons(store).items()} == {'z_0': 'missing', 'short': 'missing'}


def test_a_caption_of_nothing_is_named(tmp_path: Path) -> None:
    make_video(tmp_path / 'media' / 'v.mp4', 1)
    (tmp_path / 'captions.csv').write_text('id,caption\nv,rain\n,wind\n')
    with pytest.raises(UserError, match='line 3: its "id" is empty'):
        run(tmp_path / 'media', tmp_path / 'out', captions_tsv=tmp_path / 'captions.csv')
