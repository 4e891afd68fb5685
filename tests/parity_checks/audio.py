"""Checks of audio processing."""

import re

from audiocraft.data.audio import KAISER_BEST, resample, resample_kaiser_best

from .base import Fixture, Report


def check_resample(fixture: Fixture, report: Report) -> None:
    """Both resamplers, and the options of the sharper one."""
    params = fixture.metadata['params']
    report.numbers('params', {key: KAISER_BEST.get(key) for key in params}, params)
    for name, x in fixture.tensors.items():
        if match := re.fullmatch(r'(\d+)_(\d+)\.x', name):
            old, new = int(match[1]), int(match[2])
            report.close(f'{old}_{new}', resample_kaiser_best(x, old, new), fixture[f'{old}_{new}.y'])
            report.close(f'{old}_{new} default', resample(x, old, new), fixture[f'{old}_{new}.y_default'])


CHECKS = {'mmaudio/resample': check_resample}
