"""DeSync with a tiny network: what is compared, and what becomes of pairs that cannot be."""

import logging
import typing as tp
from pathlib import Path

import pytest
import torch

from audiocraft.data.samples import Clip
from audiocraft.data.video import read_video, write_video
from audiocraft.features.nets.synchformer import SynchformerNetwork
from audiocraft.metrics.desync import DeSync, desync, offset_grid, windows_logits
from audiocraft.utils.files import sha256_of

TINY: dict[str, tp.Any] = dict(dim=12, depth=1, num_heads=2)
WHOLE: dict[str, tp.Any] = dict(visual=dict(TINY, size=32), audio=TINY, dim=16, depth=1, num_heads=2)


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, a video of 5.6 s and one of 2 s."""
    folder = tmp_path_factory.mktemp('desync')
    torch.manual_seed(1)
    network = SynchformerNetwork(**WHOLE)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.save(network.state_dict(), folder / 'weights.pth')
    draws = torch.Generator().manual_seed(0)
    for name, seconds in (('long', 5.6), ('short', 2.)):
        small = torch.randint(0, 256, (round(seconds * 25), 3, 4, 4), generator=draws, dtype=torch.uint8)
        write_video(folder / f'{name}.mp4', small.repeat_interleave(12, -1).repeat_interleave(12, -2), 25.)
    return folder


@pytest.fixture
def metric(folder: Path) -> DeSync:
    """With the weights of the folder."""
    return DeSync(weights=folder / 'weights.pth', device='cpu', network=WHOLE)


def sound(seconds: float, seed: int = 0, sample_rate: int = 16_000) -> Clip:
    """Noise."""
    draws = torch.Generator().manual_seed(seed)
    return Clip(f'generated{seed}', 0.1 * torch.randn(1, round(seconds * sample_rate), generator=draws), sample_rate)


def true(folder: Path, name: str, seconds: float = 5.6) -> Clip:
    """The clip of a video."""
    return Clip(name, torch.zeros(1, round(seconds * 16_000)), 16_000, media=folder / name)


def test_grid_and_mean() -> None:
    assert offset_grid()[[0, 10, 20]].tolist() == pytest.approx([-2., 0., 2.], abs=1e-6)
    logits = torch.zeros(2, 21)
    logits[0, 10] = logits[1, 5] = 1.
    assert desync([logits[:1], logits[1:]]) == pytest.approx(0.5)


def test_first_and_last_windows_count(folder: Path, metric: DeSync) -> None:
    metric.update([sound(5.6), sound(5.6, seed=1)], [true(folder, 'long.mp4')] * 2)
    results = metric.compute()
    assert results['desync_n'] == 2. and results['desync_weights'] == sha256_of(folder / 'weights.pth')
    assert set(results) == {'desync', 'desync_n', 'desync_weights'}
    video = metric.sync.video_features(read_video(folder / 'long.mp4', 25., 5.6, audio=False).frames[25.])
    assert len(video) == 16
    expected = []
    for seed in (0, 1):
        wav = sound(5.6, seed).audio[0]
        audio = metric.sync.audio_features(wav - wav.mean())
        windows = [x.unfold(0, 14, 2).movedim(-1, 1) for x in (video, audio)]
        expected.append(metric.sync.offset_logits(*windows))
        assert not torch.equal(*expected[-1]), 'the windows differ'
    assert results['desync'] == pytest.approx(desync(expected))
    metric.reset()
    assert metric.compute()['desync'] is None


def test_windows_lie_at_the_ends_of_what_both_have(metric: DeSync) -> None:
    seen = []
    metric.sync.offset_logits = lambda video, audio: seen.append((video, audio)) or torch.zeros(2, 21)  # type: ignore
    windows_logits(metric.sync, torch.arange(20), torch.arange(17))
    for side in seen[0]:
        assert side[0].tolist() == list(range(14)) and side[1].tolist() == list(range(3, 17))
    assert windows_logits(metric.sync, torch.arange(13), torch.arange(20)) is None


def test_another_rate_and_two_channels(folder: Path, metric: DeSync) -> None:
    clip = sound(5., sample_rate=44_100)
    clip.audio = clip.audio.repeat(2, 1)
    metric.update([clip], [true(folder, 'long.mp4')])
    assert metric.compute()['desync_n'] == 1.


def test_missing_weights_are_found_before_anything_is_done(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            metric = DeSync(weights=tmp_path / 'nothing.pth')
    assert len(caplog.records) == 1 and 'nothing.pth' in caplog.text
    metric.update([sound(5.)], [true(tmp_path, 'no.mp4')])
    results = metric.compute()
    assert results['desync'] is None
    assert str(results['desync_reason']).startswith('skipped_missing_weights: ')
    cached = DeSync(weights=tmp_path / 'nothing.pth', cache=str(tmp_path))
    assert str(cached.compute()['desync_reason']).startswith('skipped_missing_weights: ')


def test_missing_published_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ('AUDIOCRAFT_WEIGHTS', 'HF_HUB_CACHE'):
        monkeypatch.setenv(name, str(tmp_path))
    reason = DeSync().compute()['desync_reason']
    assert str(reason).startswith('skipped_missing_weights: ') and 'synchformer_state_dict.pth' in str(reason)


@pytest.mark.parametrize('seconds, name, length, words', [
    (4.7, 'long.mp4', 5.6, 'shorter than 14 segments (4.8 s)'), (0., 'long.mp4', 5.6, 'at least 14 segments'),
    (5., 'short.mp4', 2., 'shorter than 14 segments'), (5., 'sound.wav', 5.6, 'with a video'),
    (5., None, 5.6, 'with a video'), (5., 'nothing.mp4', 5.6, 'with a video')])
def test_pairs_that_cannot_be_scored(folder: Path, metric: DeSync, seconds: float, name: str | None, length: float,
                                     words: str) -> None:
    metric.update([sound(seconds)], [true(folder, name, length) if name else None])
    results = metric.compute()
    assert results['desync'] is None and words in str(results['desync_reason'])


def test_what_is_left_out_is_counted(folder: Path, metric: DeSync) -> None:
    metric.update([sound(5.), sound(1.), sound(5.)], [true(folder, 'long.mp4')] * 2 + [None])
    results = metric.compute()
    assert [results[f'desync_{name}'] for name in ('n', 'too_short', 'unpaired')] == [1., 1., 1.]


def test_cached_features_stand_for_the_video(folder: Path, metric: DeSync, tmp_path: Path) -> None:
    metric.update([sound(5.6)], [true(folder, 'long.mp4')])
    expected = metric.compute()
    video = metric.sync.video_features(read_video(folder / 'long.mp4', 25., 5.6, audio=False).frames[25.])
    torch.save({'generated0': video}, tmp_path / 'synchformer_video.pth')
    cached = DeSync(weights=folder / 'weights.pth', device='cpu', network=WHOLE, cache=str(tmp_path))
    cached.update([sound(5.6)], [None])
    assert cached.compute() == expected
    wav = sound(5.6).audio[0]
    torch.save({'generated0': metric.sync.audio_features(wav - wav.mean())}, tmp_path / 'synchformer_audio.pth')
    both = DeSync(weights=folder / 'weights.pth', device='cpu', network=WHOLE, cache=str(tmp_path),
                  generated_cache=str(tmp_path))
    assert both.compute() == expected
