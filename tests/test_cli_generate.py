"""`python -m audiocraft generate`: what it writes, and what it refuses before anything is loaded."""

import json
from pathlib import Path

import pytest
import torch
from features.generation import make_xp, moving_square, picture

from audiocraft.cli import dispatch, generate
from audiocraft.data.audio import read_audio
from audiocraft.data.video import read_media_audio, read_video, video_info
from audiocraft.features import online
from audiocraft.features.video_to_audio import VideoToAudio
from audiocraft.flow.samplers import METHODS


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('generate')
    make_xp(folder)
    (folder / 'videos').mkdir()
    moving_square(folder / 'videos' / 'a.mp4', 1.5)
    moving_square(folder / 'videos' / 'b.mkv', 1.2)
    moving_square(folder / 'long.mp4', 5.)
    picture(folder / 'x.png')
    return folder


def run(folder: Path, *args: object, code: int = 0) -> None:
    given = [str(folder / x) if isinstance(x, Path) else str(x) for x in args]
    arguments = ['generate', '--xp', str(folder / 'model'), '--device', 'cpu', '--steps', '1', *given]
    assert dispatch.main(arguments) == code


def seconds(path: Path) -> float:
    wav, rate = read_audio(path)
    assert rate == 16_000 and bool(wav.any())
    return wav.shape[-1] / rate


def test_a_video(folder: Path, capsys) -> None:
    run(folder, '--video', Path('videos/a.mp4'), '--prompt', 'a ball', '--out', Path('made/a.mkv'), '--seed', 7)
    assert capsys.readouterr().out == (f'{folder}/made/a.mkv: 1.50 s of sound, seed 7, guidance 3.0, method euler, '
                                       'steps 1\n')
    sound, rate = read_media_audio(folder / 'made' / 'a.mkv')
    assert rate == 16_000 and abs(sound.shape[-1] / rate - 1.5) < 0.1 and bool(sound.any())
    pictures = [read_video(path, fps=10., audio=False).frames[10.]
                for path in (folder / 'videos' / 'a.mp4', folder / 'made' / 'a.mkv')]
    assert torch.equal(*pictures)


def test_words_alone_and_several_samples(folder: Path, capsys) -> None:
    out = folder / 'words'
    run(folder, '--prompt', 'rain', '--samples', 3, '--seconds', 1, '--out', out / 'rain.wav')
    assert sorted(path.name for path in out.iterdir()) == ['rain_0.wav', 'rain_1.wav', 'rain_2.wav']
    assert len(capsys.readouterr().out.splitlines()) == 3
    wavs = [read_audio(out / f'rain_{i}.wav')[0] for i in range(3)]
    assert not torch.equal(wavs[0], wavs[1]) and not torch.equal(wavs[1], wavs[2])
    run(folder, '--prompt', 'rain', '--seconds', 1, '--out', out / 'one.flac')
    run(folder, '--prompt', 'rain', '--seconds', 1, '--out', out / 'same.flac')
    run(folder, '--prompt', 'rain', '--seconds', 1, '--out', out / 'other.flac', '--negative_prompt', 'wind')
    one, same, other = (read_audio(out / f'{name}.flac')[0] for name in ('one', 'same', 'other'))
    assert torch.equal(one, same) and not torch.equal(one, other)
    run(folder, '--prompt', 'rain', '--out', out / 'default.wav')
    assert seconds(out / 'default.wav') == 4


def test_a_folder_of_videos(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    loaded = []
    load = VideoToAudio.load
    monkeypatch.setattr(VideoToAudio, 'load', lambda *args, **options: loaded.append(1) or load(*args, **options))
    out = folder / 'all'
    run(folder, '--video', Path('videos'), Path('long.mp4'), '--prompt', 'a ball', '--samples', 2, '--out', out)
    names = sorted(f'{name}_{i}{suffix}' for name in ('a', 'b', 'long') for i in (0, 1)
                   for suffix in ('.json', '.mp4', '.wav'))
    assert sorted(path.name for path in out.iterdir()) == names and loaded == [1]
    lengths = {name: seconds(out / f'{name}_1.wav') for name in ('a', 'b', 'long')}
    assert lengths == {'a': 1.5, 'b': 1.2, 'long': 4.}, "the model's length at most"
    assert abs(video_info(out / 'long_0.mp4').duration - 4.) < 0.3
    record = json.loads((out / 'b_1.json').read_text())
    assert {key: record[key] for key in ('id', 'prompt', 'seed', 'sample', 'steps', 'method', 'guidance', 'duration')} \
        == {'id': 'b_1', 'prompt': 'a ball', 'seed': 42, 'sample': 1, 'steps': 1, 'method': 'euler', 'guidance': 3.,
            'duration': 1.2}
    assert record['reference'] == '../videos/b.mkv' and len(capsys.readouterr().out.splitlines()) == 6


@pytest.mark.parametrize('late', [False, True])
def test_one_bad_video_among_others(folder: Path, late: bool, monkeypatch: pytest.MonkeyPatch, capsys, caplog) -> None:
    some, out = folder / f'some_{late}', folder / f'out_{late}'
    some.mkdir()
    for name in ('a', 'b', 'c'):
        moving_square(some / f'{name}.mp4', 1.)
    if late:
        read = online.read_video
        monkeypatch.setattr(online, 'read_video', lambda path, **options: read(
            path.with_name('no.mp4') if path.stem == 'b' else path, **options))
    else:
        (some / 'b.mp4').write_text('no video')
    run(folder, '--video', some, '--out', out, code=1)
    assert sorted(path.name for path in out.glob('*.wav')) == ['a.wav', 'c.wav']
    assert 'error: 1 of 3 videos could not be used' in capsys.readouterr().err and '.mp4: ' in caplog.text


def test_a_picture(folder: Path) -> None:
    given = ['--image', Path('x.png'), '--seconds', 1.5, '--out']
    run(folder, *given, Path('still/x.mp4'))
    video = read_video(folder / 'still' / 'x.mp4', fps=2., audio=True)
    assert video.frames[2.].shape == (3, 3, 48, 64) and bool(video.audio.any())
    run(folder, *given, Path('still/x.webm'))
    assert video_info(folder / 'still' / 'x.webm').sample_rate == 48_000
    run(folder, *given, folder / 'still')
    assert seconds(folder / 'still' / 'x.wav') == 1.5 and (folder / 'still' / 'x.json').is_file()


@pytest.mark.parametrize('more', [('--motion_only',), ('--mask_away_clip',), ('--low_memory',), ('--dtype', 'bfloat16'),
                                  ('--method', 'midpoint'), ('--guidance', '1'), ('--codec', Path('codec'))])
def test_other_ways(folder: Path, more: tuple) -> None:
    run(folder, '--video', Path('videos/a.mp4'), '--seconds', 1, '--out', Path('other.wav'), *more)
    assert seconds(folder / 'other.wav') == 1


def test_nothing_is_given(folder: Path, caplog) -> None:
    with caplog.at_level('INFO'):
        run(folder, '--out', Path('free.wav'), '--seconds', 1)
    assert seconds(folder / 'free.wav') == 1 and 'whatever the model makes of nothing' in caplog.text


def test_the_sound_of_webm(folder: Path) -> None:
    for name in ('a.webm', 'b.WEBM'):
        run(folder, '--video', Path('videos/a.mp4'), '--out', Path(name))
        assert video_info(folder / name).sample_rate == 48_000


def test_what_is_refused_before_anything_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(VideoToAudio, 'load', None)
    (folder / 'text.mp4').write_text('not a video\n' * 100)
    (folder / 'twice').mkdir(exist_ok=True)
    moving_square(folder / 'twice' / 'a.mov', 1.)
    video, wav = ('--video', Path('videos/a.mp4')), ('--out', Path('no.wav'))
    for args, said in (
            ((*video, '--image', Path('x.png'), *wav), '--video and --image'),
            (('--motion_only', '--prompt', 'x', *wav), '--motion_only needs'),
            ((*video, '--seconds', 0, *wav), '--seconds 0'), ((*video, '--samples', 0, *wav), '--samples 0'),
            ((*video, '--seconds', 'inf', *wav), '--seconds inf'),
            ((*video, '--guidance', 'nan', *wav), '--guidance nan'),
            ((*video, '--out', Path('text.mp4/no.wav')), 'nothing can be written in'),
            ((*video, '--seconds', 3, *wav), 'a.mp4: too short: it lasts 1.50 s, --seconds asks for 3 s'),
            ((*video, Path('twice/a.mov'), '--out', Path('no')), 'have the same name'),
            (('--video', Path('videos'), *wav), '2 videos need a folder'),
            (('--video', Path('made_up'), *wav), 'made_up: missing'),
            (('--video', Path('text.mp4'), *wav), 'unreadable'),
            (('--video', Path('x.png'), *wav), 'give it as --image'),
            (('--image', Path('videos/a.mp4'), *wav), 'expected a name that ends in one of .png'),
            ((*video, '--out', Path('no.mp3')), '.wav .flac .ogg .mp4'), ((*video, '--out', Path('no.avi')), 'no.avi'),
            (('--prompt', 'x', '--out', Path('no.mp4')), 'there are no pictures')):
        run(folder, *args, code=1)
        error = capsys.readouterr().err
        assert said in error and len(error.splitlines()) == 1, error
    assert not list(folder.glob('no*'))


def test_what_the_model_refuses(folder: Path, capsys) -> None:
    run(folder, '--prompt', 'x', '--negative_prompt', 'y', '--guidance', 1, '--out', Path('no.wav'), code=1)
    assert 'a negative prompt takes a guidance scale above 1' in capsys.readouterr().err
    assert dispatch.main(['generate', '--xp', str(folder / 'codec'), '--out', str(folder / 'no.wav')]) == 1
    assert 'is not a video-to-audio model' in capsys.readouterr().err


def test_the_methods_are_those_of_the_samplers() -> None:
    action, = (x for x in generate.parser()._actions if x.dest == 'method')
    assert action.choices == METHODS
