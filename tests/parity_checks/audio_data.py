"""Checks of AudioCraft's audio data: which pieces are drawn, levels, channels, integers, resampling."""

import logging
import re
import typing as tp

import torch

from audiocraft.data import levels
from audiocraft.data.audio import convert_audio, convert_channels
from audiocraft.data.audio_manifest import AudioMeta
from audiocraft.utils.config import build

from .base import Fixture, Report

DATASET = 'audiocraft.data.audio_dataset.AudioDataset'


def _dataset(metas: list[AudioMeta], kwargs: dict[str, tp.Any]) -> tp.Any:
    """The data set of recorded arguments: theirs are named otherwise in one case and absent in another."""
    renamed = {('segment' if key == 'segment_duration' else key): value for key, value in kwargs.items()
               if key not in ('return_info', 'load_wav')}
    return build({'_target_': DATASET, **renamed}, source=metas)


def check_audio_dataset_sampling(fixture: Fixture, report: Report) -> None:
    """File, place and length of every item of every pass; chances; lengths of a batch of whole files."""
    metas = [AudioMeta(**entry) for entry in fixture.json['meta']]
    for number, case in enumerate(fixture.json['cases']):
        dataset, name = _dataset(metas, case['kwargs']), f'case{number}'
        report.equal(f'{name}.kept', [meta.path for meta in dataset.metas], case['kept'])
        report.close(f'{name}.total_duration', sum(dataset.durations), case['total_duration'])
        counting = {key: case['kwargs'].get(key, True) for key in ('sample_on_duration', 'sample_on_weight')}
        report.close(f'{name}.probabilities', dataset.chances(**counting), case['probabilities'])
        plans = [(dataset.plan(row[1], row[0]), row) for row in case['rows']]
        report.equal(f'{name}.files', [dataset.metas[plan.file].path for plan, _ in plans],
                     [row[2] for _, row in plans])
        report.close(f'{name}.seek', [plan.seek for plan, _ in plans], [row[3] for _, row in plans])
        report.equal(f'{name}.frames', [[plan.n_frames, plan.total_frames] for plan, _ in plans],
                     [row[4:6] for _, row in plans])
    if whole := fixture.json.get('nosegment'):
        _check_whole_files(fixture, report, metas, whole)


def _check_whole_files(fixture: Fixture, report: Report, metas: list[AudioMeta], whole: dict[str, tp.Any]) -> None:
    kwargs = fixture.json['cases'][0]['kwargs']
    given = {key: kwargs[key] for key in ('sample_rate', 'channels') if key in kwargs}
    dataset = _dataset(metas, {**given, 'segment_duration': None})
    frames = [dataset.plan(index).n_frames for index in range(len(whole['n_frames']))]
    report.equal('nosegment.n_frames', frames, whole['n_frames'])
    report.equal('nosegment.total_frames', [max(frames)] * len(frames), whole['total_frames'])
    report.equal('nosegment.shape', [len(frames), dataset.channels, max(frames)], whole['shape'])


# What the recorded names stand for; the compressor was recorded at -16 LUFS.
LEVELS: dict[str, dict[str, tp.Any]] = {
    'peak': {'strategy': 'peak'}, 'peak_nonorm': {'strategy': 'peak', 'only_down': True},
    'clip': {'strategy': 'clip'}, 'rms': {'strategy': 'rms'}, 'loudness': {'strategy': 'loudness'},
    'loudness_comp': {'strategy': 'loudness', 'headroom': 16., 'compressor': True},
    'loudness_quiet': {'strategy': 'loudness'},  # of a ten-thousandth of the input
}


def check_audio_utils(fixture: Fixture, report: Report) -> None:
    """Every strategy of levels, the channels, integers and back, and every pair of rates."""
    wav, rate = fixture['in.wav'], int(fixture.metadata['config']['sample_rate'])
    logging.getLogger(levels.__name__).setLevel(logging.ERROR)  # that it is cut off is what is checked
    for name, expected in fixture.group('norm.').items():
        given = wav * 1e-4 if name == 'loudness_quiet' else wav
        report.close(f'norm.{name}', levels.normalize_audio(given, sample_rate=rate, **LEVELS[name]), expected)
    report.close('mono', convert_channels(wav, 1), fixture['mono'])
    report.close('stereo_from_mono', convert_channels(wav[:1], 2), fixture['stereo_from_mono'])
    report.equal('i16', levels.to_int16(wav / wav.abs().max()), fixture['i16'])
    report.close('f32', levels.to_float32(fixture['i16']), fixture['f32'])
    for name, given in fixture.group('resample.').items():
        if match := re.fullmatch(r'(\d+)\.(\d+)\.in', name):
            old, new = int(match[1]), int(match[2])
            expected = fixture[f'resample.{old}.{new}.out']
            report.close(f'resample.{old}.{new}', convert_audio(given, old, new, len(given)), expected)
            both = convert_audio(torch.cat([given, -given]), old, new, 2)
            report.close(f'resample.{old}.{new}.stereo', both, torch.cat([expected, -expected]))


CHECKS = {
    'audiocraft/audio_dataset_sampling': check_audio_dataset_sampling,
    'audiocraft/audio_utils': check_audio_utils,
}
