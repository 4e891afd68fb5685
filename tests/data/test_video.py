import pickle
import struct
import subprocess
import sys
import typing as tp
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from audiocraft.data.audio import read_audio
from audiocraft.data.media import MediaError
from audiocraft.data.video import read_media_audio, read_video, remux_audio, thumbnails, video_info, write_video
from audiocraft.utils.errors import UserError

RATE = 16_000
CLICKS = (0.25, 0.6, 0.9)


def gray(index: int) -> int:
    return 20 + 8 * index


def pictures(count: int, height: int = 36, width: int = 64) -> np.ndarray:
    """Grey pictures `[T, H, W, 3]`: the level tells which one it is, the bright upper left quarter which way is up."""
    out = np.empty((count, height, width, 3), np.uint8)
    for index in range(count):
        out[index] = gray(index)
    out[:, :height // 2, :width // 2] = 250
    return out


def index_of(frame: torch.Tensor) -> int:
    """Which picture of `pictures` a frame `[3, H, W]` is, from its lower right quarter."""
    return round((float(frame[:, frame.shape[1] * 3 // 4, frame.shape[2] * 3 // 4].float().mean()) - 20) / 8)


def clicks(seconds: float, rate: int = RATE) -> np.ndarray:
    """Decaying tones `[1, T]` that begin at `CLICKS`."""
    t = np.arange(int(seconds * rate)) / rate
    wav = 1e-4 * np.random.default_rng(0).standard_normal(len(t))
    for time in CLICKS:
        wav += 0.5 * np.where(t >= time, np.sin(2 * np.pi * 900 * (t - time)) * np.exp(-(t - time) / 0.02), 0)
    return wav[None].astype(np.float32)


def onsets(wav: torch.Tensor, rate: int) -> list[float]:
    """When each click of a decoded sound passes a third of its peak, seconds."""
    found = []
    for time in CLICKS:
        start = int((time - 0.1) * rate)
        near = wav[0, start:int((time + 0.1) * rate)].abs()
        found.append((start + int((near > near.max() / 3).nonzero()[0])) / rate)
    return found


def write(path: Path, *, frames: tp.Optional[np.ndarray] = None, times_ms: tp.Optional[tp.Sequence[int]] = None,
          wav: tp.Optional[np.ndarray] = None, codec: str = 'libx264', audio_codec: str = 'aac', rate: int = RATE,
          pixels: str = 'yuv420p', audio_ms: int = 0, fps: int = 25, **options: str) -> Path:
    """Write a file with PyAV directly, in ways that `write_video` does not offer."""
    with av.open(str(path), 'w') as container:
        stream: tp.Any = container.add_stream(codec, rate=fps, options=options) if frames is not None else None
        sound: tp.Any = container.add_stream(audio_codec, rate=rate) if wav is not None else None
        if sound is not None:
            sound.layout = 'mono'
        if stream is not None and frames is not None:
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
            if times_ms:
                stream.codec_context.time_base = Fraction(1, 1000)
            for index, picture in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(picture, format='rgb24')
                frame.pts = times_ms[index] if times_ms else index
                frame.time_base = Fraction(1, 1000 if times_ms else fps)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        if sound is not None and wav is not None:
            form = 'fltp' if sound.codec_context.format.is_planar else 'flt'
            if audio_codec.startswith('pcm_s16'):
                form, wav = 's16', (wav * 32767).astype(np.int16)
            block = av.AudioFrame.from_ndarray(wav, format=form, layout='mono')
            block.sample_rate, block.pts, block.time_base = rate, audio_ms * rate // 1000, Fraction(1, rate)
            container.mux(sound.encode(block))
            container.mux(sound.encode(None))
    return path


def rotate(path: Path, degrees: int) -> Path:
    """Set the display matrix of the (only) video track of an mp4: players turn it clockwise by `degrees`."""
    data = bytearray(path.read_bytes())
    at = data.index(b'tkhd') + 4
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    one = 1 << 16
    matrix = struct.pack('>9i', cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30)
    data[at + 40:at + 76] = matrix
    path.write_bytes(bytes(data))
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    frames = torch.from_numpy(pictures(25)).permute(0, 3, 1, 2)
    return write_video(tmp_path / 'clip.mp4', frames, 25., torch.from_numpy(clicks(1.)), RATE)


def test_pictures_at_several_rates_and_sound_at_once(clip: Path) -> None:
    video = read_video(clip, (8., 24., 25.), 1.)
    assert {rate: tuple(frames.shape) for rate, frames in video.frames.items()} == {
        8.: (8, 3, 36, 64), 24.: (24, 3, 36, 64), 25.: (25, 3, 36, 64)}
    assert all(frames.dtype == torch.uint8 and frames.is_contiguous() for frames in video.frames.values())
    for rate, frames in video.frames.items():
        # The nearest picture; 1 / 8 s is 3.125 pictures, the earlier one of two equally near.
        nearest = [int(np.ceil(slot / rate * 25 - 0.5)) for slot in range(len(frames))]
        assert [index_of(frame) for frame in frames] == nearest
        assert torch.allclose(video.times[rate], torch.tensor(nearest).double() / 25, atol=1e-6)
    assert video.audio is not None and video.audio.shape == (1, RATE) and video.audio.dtype == torch.float32
    assert (video.sample_rate, video.duration, video.rotation) == (RATE, 1., 0)


def test_without_a_duration_all_is_read(clip: Path) -> None:
    video = read_video(clip, 10.)
    assert video.frames[10.].shape[0] == 10 and video.duration == pytest.approx(1.)
    assert video.audio is not None and video.audio.shape == (1, RATE)
    silent = read_video(clip, (25.,), audio=False)
    assert silent.audio is None and silent.sample_rate is None and silent.frames[25.].shape[0] == 25
    sound = read_video(clip, (), 0.5)
    assert sound.frames == {} and sound.audio is not None and sound.audio.shape == (1, RATE // 2)


def test_small_pictures_are_averages(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(60, 180, (5, 1, 64, 64), dtype=torch.uint8, generator=generator).expand(-1, 3, -1, -1)
    path = write_video(tmp_path / 'a.mkv', frames, 5., options={'crf': '1'})
    full = read_video(path, 5., 1., audio=False).frames[5.].float()
    small = read_video(path, 5., 1., (8, 16), audio=False).frames[5.].float()
    assert small.shape == (5, 3, 8, 16)
    assert (small - torch.nn.functional.avg_pool2d(full, (8, 4))).abs().mean() < 2.


@pytest.mark.parametrize('name, codec, audio_codec, rate', [
    ('a.mp4', 'libx264', 'aac', 16_000), ('a.mov', 'libx264', 'pcm_s16le', 44_100), ('a.mkv', 'libx264', 'aac', 22_050),
    ('a.mkv', 'ffv1', 'libopus', 48_000), ('a.webm', 'libvpx-vp9', 'libopus', 48_000),
    ('a.webm', 'libvpx', 'libopus', 48_000), ('a.avi', 'mpeg4', 'pcm_s16le', 44_100)])
def test_containers_and_alignment(tmp_path: Path, name: str, codec: str, audio_codec: str, rate: int) -> None:
    extra: tp.Any = {'deadline': 'realtime', 'cpu-used': '8'} if 'vp' in codec else {}
    wav = clicks(1., rate)
    path = write(tmp_path / name, frames=pictures(25), wav=wav, codec=codec, audio_codec=audio_codec, rate=rate,
                 **extra)
    video = read_video(path, (25.,), 1.)
    assert [index_of(frame) for frame in video.frames[25.]] == list(range(25))
    assert video.audio is not None and video.audio.shape == (1, rate) and video.sample_rate == rate
    assert onsets(video.audio, rate) == pytest.approx(CLICKS, abs=0.003)
    alone, alone_rate = read_media_audio(path)
    assert alone_rate == rate and onsets(alone, rate) == pytest.approx(CLICKS, abs=0.003)
    assert alone.shape[1] == pytest.approx(rate, abs=0.1 * rate)


def test_ten_bit_pictures_of_odd_size(tmp_path: Path) -> None:
    path = write(tmp_path / 'a.mkv', frames=pictures(5, 37, 63), codec='ffv1', pixels='yuv420p10le')
    frames = read_video(path, (25.,), 0.2, audio=False).frames[25.]
    assert frames.shape == (5, 3, 37, 63) and [index_of(frame) for frame in frames] == list(range(5))
    odd = write_video(tmp_path / 'b.mp4', frames, 25.)
    assert read_video(odd, (25.,), 0.2, audio=False).frames[25.].shape == (5, 3, 38, 64)


def test_audio_reads_through_read_audio(clip: Path, tmp_path: Path) -> None:
    part, rate = read_audio(clip, 0.5, 0.25)
    assert rate == RATE and part.shape == (1, 4000)
    assert torch.equal(part, read_media_audio(clip)[0][:, 8000:12_000])
    m4a = write(tmp_path / 'a.m4a', wav=clicks(1.))
    wav, rate = read_audio(m4a)
    assert wav.shape == (1, RATE) and onsets(wav, RATE) == pytest.approx(CLICKS, abs=0.003)
    with pytest.raises(MediaError, match='no video track') as caught:
        read_video(m4a)
    assert caught.value.reason == 'no video track'


@pytest.mark.parametrize('degrees', [90, 180, 270])
def test_rotation_is_applied_and_survives_new_sound(tmp_path: Path, degrees: int) -> None:
    path = rotate(write(tmp_path / 'a.mp4', frames=pictures(10)), degrees)
    out = remux_audio(path, torch.from_numpy(clicks(1.)), RATE, tmp_path / 'b.mp4')
    for file in (path, out):
        video = read_video(file, (25.,), 0.4, audio=False)
        frame = video.frames[25.][0, 0]
        height, width = (36, 64) if degrees == 180 else (64, 36)
        assert frame.shape == (height, width)
        quarters = frame[height // 4::height // 2, width // 4::width // 2] > 200
        # The bright quarter goes from the upper left clockwise.
        expected = {90: [[0, 1], [0, 0]], 180: [[0, 0], [0, 1]], 270: [[0, 0], [1, 0]]}[degrees]
        assert quarters.int().tolist() == expected
        small = read_video(file, (25.,), 0.4, (10, 20), audio=False)
        assert small.frames[25.].shape == (10, 3, 10, 20)
        info = video_info(file)
        assert (info.height, info.width) == (height, width)


def test_variable_rate_and_rounded_timestamps(tmp_path: Path) -> None:
    # 24 pictures a second with timestamps in whole milliseconds, as mkv has them: none is lost or taken twice.
    times = [round(1000 * index / 24) for index in range(24)]
    path = write(tmp_path / 'a.mkv', frames=pictures(24), times_ms=times, fps=24)
    assert [index_of(f) for f in read_video(path, (24.,), 1., audio=False).frames[24.]] == list(range(24))
    # A picture that stands still for 0.4 s and then a burst.
    times = [0, 40, 80, 480, 490, 500, 510, 600, 640, 680]
    path = write(tmp_path / 'b.mkv', frames=pictures(10), times_ms=times)
    video = read_video(path, (10.,), 0.7, audio=False)
    assert [index_of(f) for f in video.frames[10.]] == [0, 2, 2, 3, 3, 5, 7]
    assert video.times[10.].tolist() == pytest.approx([0, .08, .08, .48, .48, .5, .6])


def test_time_counts_from_the_first_picture(tmp_path: Path) -> None:
    # Pictures from 0.2 s on, sound from 0: the sound before the first picture goes, and the clicks come 0.2 s earlier.
    times = [200 + 40 * index for index in range(20)]
    path = write(tmp_path / 'a.mkv', frames=pictures(20), times_ms=times, wav=clicks(1.))
    video = read_video(path, (25.,), 0.8)
    assert index_of(video.frames[25.][0]) == 0 and video.audio is not None
    late = torch.nn.functional.pad(video.audio, (int(0.2 * RATE), 0))
    assert onsets(late, RATE) == pytest.approx(CLICKS, abs=0.003)
    assert torch.equal(read_media_audio(path)[0][:, :video.audio.shape[1]], video.audio)
    # And sound that begins 0.2 s after the pictures has zeros before it.
    path = write(tmp_path / 'b.mkv', frames=pictures(30), wav=clicks(1.), audio_ms=200)
    wav = read_video(path, (25.,), 1.2).audio
    assert wav is not None and not wav[:, :int(0.17 * RATE)].any()
    assert onsets(wav[:, int(0.2 * RATE):], RATE) == pytest.approx(CLICKS, abs=0.003)


def test_too_short(clip: Path, tmp_path: Path) -> None:
    assert read_video(clip, (25.,), 1.02).frames[25.].shape[0] == 26  # the last picture serves a little longer
    with pytest.raises(MediaError, match=r'clip.mp4: too short: 1.0 s, needs 4 s') as caught:
        read_video(clip, (8., 25.), 4.)
    assert caught.value.reason == 'too short'
    with pytest.raises(MediaError, match='too short: 1.0 s of audio'):
        read_video(clip, (), 4.)
    path = write(tmp_path / 'a.mp4', frames=pictures(25), wav=clicks(0.5))
    with pytest.raises(MediaError, match='0.5 s of audio, needs 1 s'):
        read_video(path, (25.,), 1.)


def steady(path: Path, seconds: float, fps: int, sound: tp.Optional[float] = None) -> Path:
    """Write small pictures and sound of about these lengths; times are whole milliseconds."""
    count = round(seconds * fps)
    return write(path, frames=np.full((count, 16, 16, 3), 128, np.uint8), codec='mpeg4', fps=fps,
                 times_ms=[round(1000 * index / fps) for index in range(count)], wav=clicks(sound or seconds))


@pytest.mark.parametrize('seconds, fps, sound', [(7.99, 30, 7.99), (7.96, 25, 7.95), (7.92, 12, 7.93), (7.99, 60, 8.)])
def test_a_little_may_be_missing_at_the_end(tmp_path: Path, seconds: float, fps: int, sound: float) -> None:
    video = read_video(steady(tmp_path / 'a.mkv', seconds, fps, sound), (8., 25.), 8.)
    assert {rate: len(frames) for rate, frames in video.frames.items()} == {8.: 64, 25.: 200}
    assert video.audio is not None and video.audio.shape == (1, 8 * RATE)
    assert not video.audio[:, round((sound + 0.08) * RATE):].any()


@pytest.mark.parametrize('seconds, sound', [(7.8, 8.), (8., 7.8)])
def test_much_may_not_be_missing(tmp_path: Path, seconds: float, sound: float) -> None:
    with pytest.raises(MediaError, match=r'too short: 7\.8.* needs 8 s'):
        read_video(steady(tmp_path / 'a.mkv', seconds, 25, sound), (8., 25.), 8.)


def test_the_recorded_picking_loses_pictures(tmp_path: Path) -> None:
    path = steady(tmp_path / 'a.mkv', 8., 25)
    nearest, late = (read_video(path, (25.,), 8., audio=False, picking=name) for name in ('nearest', 'late'))
    assert (nearest.times[25.] * 25).round().tolist() == list(range(200))
    assert len(late.frames[25.]) == len(late.times[25.]) == 199
    assert set(late.times[25.].tolist()) < set(nearest.times[25.].tolist())
    with pytest.raises(ValueError, match='early'):
        read_video(path, (25.,), 8., picking='early')


def halves(frames: torch.Tensor) -> torch.Tensor:
    """Every other pixel, of frames of any size."""
    return frames[..., ::2, ::2]


@pytest.mark.parametrize('kind', ['plain', 'rotated', 'ten bits', 'variable rate'])
def test_pictures_are_reduced_as_they_are_decoded(tmp_path: Path, kind: str) -> None:
    path = tmp_path / 'a.mp4'
    if kind == 'ten bits':
        write(path, frames=pictures(25), codec='libx265', pixels='yuv420p10le', preset='ultrafast',
              **{'x265-params': 'log-level=none:pools=1:frame-threads=1'})
    elif kind == 'variable rate':
        path = write(tmp_path / 'a.mkv', frames=pictures(25), times_ms=[int(1000 * (i / 25) ** 1.2) for i in range(25)])
    else:
        write(path, frames=pictures(25))
    if kind == 'rotated':
        rotate(path, 90)
    whole = read_video(path, (8., 25.), 0.9, audio=False)
    seen: list[torch.Tensor] = []

    def reduce(frames: torch.Tensor) -> torch.Tensor:
        seen.append(frames)
        return halves(frames)
    video = read_video(path, (8., 25.), 0.9, audio=False, reduce={25.: reduce, 8.: None})
    assert torch.equal(video.frames[8.], whole.frames[8.])
    assert torch.equal(video.frames[25.], halves(whole.frames[25.])) and video.frames[25.].is_contiguous()
    assert [index_of(frame) for frame in video.frames[25.]] == [index_of(frame) for frame in whole.frames[25.]]
    assert {tuple(frames.shape) for frames in seen} == {(1, 3, 64, 36) if kind == 'rotated' else (1, 3, 36, 64)}
    assert len(seen) == len(set(video.times[25.].tolist())), 'a picture that is taken twice is reduced once'


def test_a_file_without_sound(tmp_path: Path) -> None:
    path = write(tmp_path / 'a.mp4', frames=pictures(10))
    for read in (read_video, read_media_audio, read_audio):
        with pytest.raises(MediaError, match='a.mp4: no audio track') as caught:
            read(path)
        assert caught.value.reason == 'no audio track'
    assert not video_info(path).has_audio


@pytest.mark.parametrize('content', [b'this is not a video\n' * 50, b'\x00' * 4000, b''])
def test_a_file_that_is_no_video(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / 'a.mp4'
    path.write_bytes(content)
    for read in (read_video, read_media_audio, video_info):
        with pytest.raises(MediaError, match='a.mp4') as caught:
            read(path)
        assert caught.value.reason == ('unreadable' if content else 'empty')
    with pytest.raises(MediaError, match='missing'):
        read_video(tmp_path / 'none.mp4')


def test_truncated_files(clip: Path, tmp_path: Path) -> None:
    data = clip.read_bytes()
    (tmp_path / 'a.mp4').write_bytes(data[:len(data) // 2])  # its index, at the end, is gone
    with pytest.raises(MediaError) as caught:
        read_video(tmp_path / 'a.mp4', (8.,), 1.)
    assert caught.value.reason == 'unreadable'
    whole = write(tmp_path / 'b.mkv', frames=pictures(25), wav=clicks(1.))
    whole.write_bytes(whole.read_bytes()[:whole.stat().st_size // 2])
    with pytest.raises(MediaError) as caught:
        read_video(whole, (8.,), 1.)
    assert caught.value.reason in ('too short', 'unreadable')


def test_errors_cross_processes() -> None:
    error = pickle.loads(pickle.dumps(MediaError('a.mp4', 'too short', '1 s')))
    assert (str(error), error.reason, error.detail) == ('a.mp4: too short: 1 s', 'too short', '1 s')


def test_new_sound_keeps_the_pictures(clip: Path, tmp_path: Path) -> None:
    for name in ('b.mp4', 'b.mkv', 'b.mov'):
        wav = torch.from_numpy(np.repeat(clicks(1., 44_100), 2, 0))
        out = remux_audio(clip, wav, 44_100, tmp_path / name)
        video = read_video(out, (25.,), 1.)
        assert torch.equal(video.frames[25.], read_video(clip, (25.,), 1.).frames[25.])
        assert video.audio is not None and video.audio.shape == (2, 44_100)
        assert onsets(video.audio, 44_100) == pytest.approx(CLICKS, abs=0.003)
    same = remux_audio(clip, torch.zeros(1, RATE), RATE, clip)
    assert not read_media_audio(same)[0].abs().max() > 1e-4


@pytest.mark.parametrize('name', ['b.mkv', 'b.mp4'])
def test_new_sound_for_a_file_without_times_of_decoding(tmp_path: Path, name: str) -> None:
    """Matroska does not store them, and pictures are out of order in it."""
    path = write(tmp_path / 'a.mkv', frames=pictures(25))
    with av.open(str(path)) as container:
        times = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert times != sorted(times)
    for duration, count in [(None, 25), (0.8, 20)]:
        out = remux_audio(path, torch.from_numpy(clicks(1.)), RATE, tmp_path / name, duration=duration)
        video = read_video(out, (25.,), count / 25)
        assert [index_of(frame) for frame in video.frames[25.]] == list(range(count))
        assert onsets(*read_media_audio(out)) == pytest.approx(CLICKS, abs=0.003)


def test_new_sound_for_a_part_and_for_foreign_codecs(tmp_path: Path) -> None:
    long = write(tmp_path / 'a.webm', frames=pictures(25), codec='libvpx', wav=clicks(1., 48_000),
                 audio_codec='libopus', rate=48_000)
    out = remux_audio(long, torch.from_numpy(clicks(1.)), RATE, tmp_path / 'b.mp4')  # mp4 holds no VP8
    video = read_video(out, (25.,), 1.)
    assert [index_of(frame) for frame in video.frames[25.]] == list(range(25))
    assert video.audio is not None and onsets(video.audio, RATE) == pytest.approx(CLICKS, abs=0.003)
    plain = write(tmp_path / 'c.mp4', frames=pictures(25))
    cut = remux_audio(plain, torch.zeros(1, RATE // 2), RATE, tmp_path / 'd.mp4', duration=0.5)
    assert video_info(cut).duration == pytest.approx(0.5, abs=0.13)
    assert index_of(read_video(cut, (25.,), 0.5).frames[25.][11]) == 11


def test_bad_requests_are_explained_and_leave_nothing(clip: Path, tmp_path: Path) -> None:
    frames = torch.zeros(3, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(UserError, match='no container'):
        write_video(tmp_path / 'a.txt', frames, 25.)
    with pytest.raises(UserError, match='sample rate 12345'):
        write_video(tmp_path / 'a.mp4', frames, 25., torch.zeros(1, 100), 12_345)
    with pytest.raises(UserError, match='mono or stereo'):
        remux_audio(clip, torch.zeros(5, 100), RATE, tmp_path / 'a.mp4')
    with pytest.raises(ValueError, match='uint8'):
        write_video(tmp_path / 'a.mp4', frames.float(), 25.)
    assert [path.name for path in tmp_path.iterdir()] == ['clip.mp4']


def test_thumbnails_and_header(clip: Path) -> None:
    assert [index_of(frame) for frame in thumbnails(clip, 5)] == [2, 7, 12, 17, 22]
    assert thumbnails(clip, 2, (12, 20)).shape == (2, 3, 12, 20)
    info = video_info(clip)
    assert (info.duration, info.fps, info.width, info.height) == (1., 25., 64, 36)
    assert info.has_audio and info.sample_rate == RATE


def test_without_pyav_the_extra_is_named() -> None:
    code = ('import sys; sys.modules["av"] = None\n'
            'from audiocraft.utils.errors import UserError\n'
            'import audiocraft.data.samples\n'
            'try:\n    import audiocraft.data.video\n'
            'except UserError as error:\n    print(error)')
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert 'audiocraft[video]' in out
