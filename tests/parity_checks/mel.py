"""Checks of log-mel spectrograms."""

import torch

from audiocraft.modules.mel import MEL_16K, MEL_44K, LogMel
from audiocraft.utils.config import build

from .base import Fixture, Report

PRESETS = {'16k': MEL_16K, '44k': MEL_44K}
NAMES = {'sampling_rate': 'sample_rate', 'n_fft': 'n_fft', 'num_mels': 'n_mels', 'hop_size': 'hop', 'fmin': 'fmin',
         'fmax': 'fmax', 'log': 'log'}


def _log_mel(config: dict) -> LogMel:
    return build({'_target_': 'audiocraft.modules.mel.LogMel', **config})


def check_mel(fixture: Fixture, report: Report) -> None:
    """Filters, window, and the spectrogram of a waveform."""
    params = fixture.metadata['params']
    mel = _log_mel({ours: params[theirs] for theirs, ours in NAMES.items()})
    report.close('mel_basis', mel.mel_basis, fixture['mel_basis'])
    report.close('hann_window', mel.hann_window, fixture['hann_window'])
    report.equal('win_size', mel.n_fft, params['win_size'])
    report.close('mel', mel(fixture['waveform']), fixture['mel'])
    silence = mel(torch.zeros(1, params['n_fft'])).exp() if params['log'] == 'ln' else 10 ** mel(
        torch.zeros(1, params['n_fft']))
    report.close('clamp', silence.max(), params['clamp'])


def check_mel_silence(fixture: Fixture, report: Report) -> None:
    """The presets: how many frames there are, and what silence gives."""
    for name, recorded in fixture.json.items():
        mel = _log_mel(PRESETS[name])
        found = mel(torch.zeros(1, recorded['n_samples']))
        report.equal(f'{name} shape', list(found.shape), recorded['shape'])
        report.close(f'{name} frame0', found[0, :, 0], recorded['frame0'])
        for length, frames in recorded['frames_for_n_samples'].items():
            report.equal(f'{name} frames of {length}', mel(torch.zeros(1, int(length))).shape[-1], frames)


CHECKS = {'mmaudio/mel_16k': check_mel, 'mmaudio/mel_44k': check_mel, 'mmaudio/mel_silence': check_mel_silence}
