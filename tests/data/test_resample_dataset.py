"""Copies at another rate: whole, resumable, with a manifest, and what is broken is told."""

import logging
from pathlib import Path

import pytest
import torch

from audiocraft.cli import dispatch
from audiocraft.data.audio import audio_info, read_audio, resample_sinc, write_audio
from audiocraft.data.audio_manifest import find_audio, read_manifest, write_manifest
from audiocraft.data.resample_dataset import resample_dataset
from audiocraft.utils.errors import UserError


def tone(seconds: float, rate: int) -> torch.Tensor:
    return torch.sin(torch.arange(int(seconds * rate)) * 2 * torch.pi * 440 / rate)[None] * 0.5


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / 'in'
    write_audio(root / 'a.wav', tone(1., 8000).expand(2, -1), 8000)
    write_audio(root / 'x' / 'a.flac', tone(.5, 16_000), 16_000)
    write_audio(root / 'x' / 'b.ogg', tone(.5, 48_000), 48_000)
    write_audio(root / 'tiny.wav', torch.ones(1, 1), 48_000)
    (root / 'bad.wav').write_bytes(b'no sound')
    return root


def test_the_same_tree_and_a_manifest(source: Path, tmp_path: Path) -> None:
    done = resample_dataset(source, tmp_path / 'out', sample_rate=16_000, channels=1)
    names = ['a.wav', 'x/a.wav', 'x/b.wav']
    metas = read_manifest(tmp_path / 'out')
    assert sorted(str(Path(meta.path).relative_to(tmp_path / 'out')) for meta in metas) == names
    assert (done.made, done.kept) == (3, 0) and done.manifest == tmp_path / 'out' / 'data.jsonl'
    reasons = {error.path.name: error.reason for error in done.broken}
    assert reasons == {'bad.wav': 'unreadable', 'tiny.wav': 'too short'}
    for meta in metas:
        info = audio_info(meta.path)
        assert (info.sample_rate, info.channels) == (16_000, 1) and meta.duration == info.duration
    wav, _ = read_audio(tmp_path / 'out' / 'a.wav')
    torch.testing.assert_close(wav, resample_sinc(read_audio(source / 'a.wav')[0][:1], 8000, 16_000), atol=2e-4, rtol=0)


def test_goes_on_where_it_was_stopped(source: Path, tmp_path: Path) -> None:
    out = tmp_path / 'out'
    resample_dataset(source, out, sample_rate=16_000, channels=1, workers=1)
    before = {path: path.stat().st_mtime_ns for path in out.rglob('*.wav')}
    manifest = (out / 'data.jsonl').read_bytes()
    (out / 'x' / 'b.wav').unlink()
    (out / 'a.wav').write_bytes(b'torn')
    again = resample_dataset(source, out, sample_rate=16_000, channels=1)
    assert (again.made, again.kept) == (2, 1) and (out / 'data.jsonl').read_bytes() == manifest
    changed = {path.name for path in out.rglob('*.wav') if path.stat().st_mtime_ns != before[path]}
    assert changed == {'a.wav', 'b.wav'} and (out / 'x' / 'a.wav').stat().st_mtime_ns == before[out / 'x' / 'a.wav']
    write_audio(source / 'x' / 'a.flac', tone(.25, 16_000), 16_000)
    assert resample_dataset(source, out, sample_rate=16_000, channels=1).made == 1, 'its original has changed'
    with pytest.raises(UserError, match=r'sample_rate 16000 \(now 8000\)'):
        resample_dataset(source, out, sample_rate=8000, channels=1)


def test_of_a_manifest(source: Path, tmp_path: Path) -> None:
    metas = [meta.__class__(meta.path, meta.duration, meta.sample_rate, weight=2., info_path=str(tmp_path / 'i.json'))
             for meta in find_audio(source).metas if 'tiny' not in meta.path]
    manifest = write_manifest(tmp_path / 'm.jsonl.gz', metas)
    resample_dataset(manifest, tmp_path / 'out', sample_rate=8000, channels=2, suffix='.flac', strategy='rms')
    copies = read_manifest(tmp_path / 'out')
    assert [(meta.weight, meta.info_path) for meta in copies] == [(2., str(tmp_path / 'i.json'))] * 3
    assert [Path(meta.path).suffix for meta in copies] == ['.flac'] * 3
    wav, rate = read_audio(copies[0].path)
    assert rate == 8000 and wav.shape[0] == 2
    assert float(wav.mean(0).pow(2).mean().sqrt()) == pytest.approx(10 ** (-18 / 20), rel=0.01)


def test_names_must_not_meet(source: Path, tmp_path: Path) -> None:
    write_audio(source / 'x' / 'a.wav', tone(.5, 8000), 8000)
    with pytest.raises(UserError, match='would both be written'):
        resample_dataset(source, tmp_path / 'out', sample_rate=8000, channels=1)
    (source / 'x' / 'a.flac').unlink()
    with pytest.raises(UserError, match='overwritten by its copy'):
        resample_dataset(source / 'x', source / 'x', sample_rate=8000, channels=1)
    assert read_audio(source / 'x' / 'a.wav')[0].shape[-1] == 4000


def test_the_command(source: Path, tmp_path: Path, capsys, caplog) -> None:
    call = ['resample_dataset', str(source), str(tmp_path / 'out'), '--sample_rate', '8000', '--channels', '1']
    with caplog.at_level(logging.WARNING):
        assert dispatch.main(call) == 0
    assert '3 files, 3 of them made now; 2 broken files left out' in capsys.readouterr().out
    assert 'bad.wav: unreadable' in caplog.text
    assert dispatch.main([*call, '--workers', '1']) == 0 and '0 of them made now' in capsys.readouterr().out
    assert dispatch.main([*call[:-1], '0']) == 1
    (tmp_path / 'none').mkdir()
    (tmp_path / 'none' / 'x.wav').touch()
    assert dispatch.main(['resample_dataset', str(tmp_path / 'none'), *call[2:]]) == 1
