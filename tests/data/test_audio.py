import json
from pathlib import Path

import pytest
import soundfile
import torch

from audiocraft.data.audio import (
    audio_info,
    convert_audio,
    convert_channels,
    read_audio,
    resample,
    resample_kaiser_best,
    resample_sinc,
    to_mono,
    write_audio,
)
from audiocraft.data.media import MediaError
from audiocraft.data.video import read_media_audio, write_video
from audiocraft.utils.errors import UserError

RATE = 16_000


def tone(seconds: float = 0.5, channels: int = 1) -> torch.Tensor:
    t = torch.arange(int(seconds * RATE)) / RATE
    return 0.5 * torch.stack([torch.sin(2 * torch.pi * 440 * (1 + c) * t) for c in range(channels)])


@pytest.mark.parametrize('suffix', ['.wav', '.flac'])
@pytest.mark.parametrize('channels', [1, 2])
def test_write_then_read(tmp_path: Path, suffix: str, channels: int) -> None:
    path = write_audio(tmp_path / f'sub/a{suffix}', tone(channels=channels), RATE)
    wav, sample_rate = read_audio(path)
    assert sample_rate == RATE and wav.dtype == torch.float32 and wav.is_contiguous()
    assert torch.allclose(wav, tone(channels=channels), atol=2 / 32768)
    assert audio_info(path).duration == 0.5 and audio_info(path).channels == channels
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_one_dimension_is_mono_and_loud_samples_are_clipped(tmp_path: Path) -> None:
    wav, _ = read_audio(write_audio(tmp_path / 'a.wav', 3 * tone()[0], RATE))
    assert wav.shape == (1, 8000) and 0.999 < wav.abs().max() <= 1.
    wav, _ = read_audio(write_audio(tmp_path / 'b.wav', 3 * tone()[0], RATE, subtype='FLOAT'))
    assert wav.abs().max() > 1.4


def test_parts(tmp_path: Path) -> None:
    path = write_audio(tmp_path / 'a.wav', tone(), RATE)
    whole, _ = read_audio(path)
    part, _ = read_audio(path, start=0.1, duration=0.2)
    assert torch.equal(part, whole[:, 1600:4800])
    rest, _ = read_audio(path, start=0.4, duration=5.)
    assert torch.equal(rest, whole[:, 6400:])
    with pytest.raises(MediaError, match='too short') as caught:
        read_audio(path, start=0.6)
    assert caught.value.reason == 'too short'


@pytest.mark.parametrize('name, content, reason', [('none.wav', None, 'missing'), ('empty.wav', b'', 'empty'),
                                                   ('text.flac', b'hello ' * 30, 'unreadable')])
def test_unusable_files_are_named(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    for read in (read_audio, audio_info):
        with pytest.raises(MediaError, match=name) as caught:
            read(tmp_path / name)
        assert caught.value.reason == reason and isinstance(caught.value, UserError)


def test_a_folder_and_a_header_without_samples(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match='it is a folder'):
        read_audio(tmp_path)
    soundfile.write(str(tmp_path / 'a.wav'), tone()[0, :0].numpy(), RATE)
    with pytest.raises(MediaError, match='too short'):
        read_audio(tmp_path / 'a.wav')


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_audio(tmp_path / 'a.wav', tone(), RATE)
    before = path.read_bytes()
    with pytest.raises(UserError, match='NaN'):
        write_audio(path, tone() * float('nan'), RATE)
    with pytest.raises(UserError, match='suffixes'):
        write_audio(tmp_path / 'a.txt', tone(), RATE)
    with pytest.raises(UserError, match='cannot write'):
        write_audio(path / 'b.wav', tone(), RATE)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_resampling_keeps_a_tone() -> None:
    wide = resample(tone(), RATE, 44_100)
    assert wide.shape == (1, 22_050)
    t = torch.arange(22_050) / 44_100
    assert torch.allclose(wide[0, 500:-500], 0.5 * torch.sin(2 * torch.pi * 440 * t)[500:-500], atol=0.01)
    assert resample(tone(), RATE, RATE) is not None and torch.equal(resample(tone(), RATE, RATE), tone())
    with pytest.raises(ValueError, match='sample rates'):
        resample(tone(), 0, RATE)


def test_the_kernel_is_cached_per_rates_and_filter() -> None:
    from audiocraft.data.audio import _resampler
    _resampler.cache_clear()
    for _ in range(3):
        resample(tone(), RATE, 8000)
        resample_kaiser_best(tone(), RATE, 8000)
        resample(tone().double(), RATE, 8000)
    assert _resampler.cache_info().misses == 3 and _resampler.cache_info().hits == 6
    assert not torch.allclose(resample(tone(), RATE, 8000), resample_kaiser_best(tone(), RATE, 8000), atol=1e-6)


def test_resampled_numbers_are_those_of_mmaudio() -> None:
    fixture = Path(__file__).parents[1] / 'golden/mmaudio/resample.safetensors'
    from safetensors import safe_open
    with safe_open(str(fixture), 'pt') as file:
        assert json.loads(file.metadata()['params'])['lowpass_filter_width'] == 64
        for name in [key[:-2] for key in file.keys() if key.endswith('.x')]:
            old, new = map(int, name.split('_'))
            x = file.get_tensor(f'{name}.x')
            assert torch.allclose(resample_kaiser_best(x, old, new), file.get_tensor(f'{name}.y'), atol=1e-6)
            assert torch.allclose(resample(x, old, new), file.get_tensor(f'{name}.y_default'), atol=1e-6)


def test_mono() -> None:
    assert to_mono(tone(channels=2)).shape == (1, 8000)
    assert torch.allclose(to_mono(tone(channels=2))[0], tone(channels=2).mean(0))


@pytest.mark.parametrize('subtype', ['PCM_16', 'PCM_24', 'PCM_32', 'PCM_U8', 'FLOAT', 'DOUBLE', 'ULAW'])
def test_samples_are_those_of_libsndfile(tmp_path: Path, subtype: str) -> None:
    wav = torch.rand(500, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    wav[:2, 0] = torch.tensor([-1., 1.])
    soundfile.write(tmp_path / 'a.wav', wav.numpy(), RATE, subtype=subtype)
    expected = soundfile.read(tmp_path / 'a.wav', dtype='float32')[0]
    made, _ = read_audio(tmp_path / 'a.wav', 100 / RATE, 300 / RATE)
    assert torch.equal(made, torch.from_numpy(expected[100:400]).T) and made.is_contiguous()


def test_channels() -> None:
    stereo = tone(channels=2)
    assert torch.equal(convert_channels(stereo, 2), stereo)
    assert torch.allclose(convert_channels(stereo, 1), stereo.mean(0, keepdim=True))
    assert torch.equal(convert_channels(stereo[:1], 3), stereo[:1].repeat(3, 1))
    assert torch.equal(convert_channels(tone(channels=8), 2), tone(channels=8)[:2])
    assert convert_channels(stereo[None].repeat(4, 1, 1), 1).shape == (4, 1, stereo.shape[-1])
    with pytest.raises(ValueError, match='2 channels cannot become 6'):
        convert_channels(stereo, 6)


def test_channels_and_rate_in_any_order() -> None:
    stereo = tone(channels=2)
    made = convert_audio(stereo, RATE, 24_000, 1)
    assert torch.allclose(made, convert_channels(resample_sinc(stereo, RATE, 24_000), 1), atol=1e-6)


@pytest.mark.parametrize('name', ['a.mp4', 'a.mov', 'a.mkv', 'a.webm'])
def test_parts_of_containers(tmp_path: Path, name: str) -> None:
    sound = torch.sin(torch.arange(48_000 * 4) ** 1.3 * 0.001)[None] * 0.5
    path = write_video(tmp_path / name, torch.zeros(40, 3, 32, 32, dtype=torch.uint8), 10., sound, 48_000)
    whole, rate = read_media_audio(path)
    info = audio_info(path)
    assert (info.sample_rate, info.channels, info.samples) == (rate, *whole.shape)
    for start, duration in [(0., None), (0., 0.5), (0.3, 0.5), (1.234, 0.5), (3.5, 5.), (2., None)]:
        first = round(start * rate)
        part, _ = read_audio(path, start, duration)
        expected = whole[:, first:None if duration is None else first + round(duration * rate)]
        assert part.shape == expected.shape
        assert torch.allclose(part, expected, atol=1e-3), 'one sample off would be 0.02'
    with pytest.raises(MediaError, match='too short'):
        read_audio(path, 9., 1.)
