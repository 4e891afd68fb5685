"""Checks of AudioCraft's scores that need no weights."""

import typing as tp

import torch

from audiocraft.metrics.chroma import frame_cosines
from audiocraft.metrics.kl import kl_probabilities
from audiocraft.modules.chroma import Chroma
from audiocraft.utils.config import build

from .base import Fixture, Report


def _chroma(fixture: Fixture, one_hot: bool) -> Chroma:
    config = fixture.metadata['config']
    return build({'_target_': 'audiocraft.modules.chroma.Chroma', 'sample_rate': config['sample_rate'],
                  'n_fft': 2 ** config['radix2_exp'], 'n_chroma': fixture['chroma.fbanks'].shape[0],
                  'one_hot': one_hot})


def check_metrics(fixture: Fixture, report: Report) -> None:
    """Chroma and its cosine, Kullback-Leibler divergence both ways, and the relative volume of the error."""
    sound, other = fixture['chroma.in'], fixture['chroma.y']
    for one_hot in (False, True):
        chroma = _chroma(fixture, one_hot)
        report.close('chroma.fbanks', chroma.filters, fixture['chroma.fbanks'])
        report.close(f'chroma.argmax{one_hot:d}', chroma(sound[:, 0]), fixture[f'chroma.argmax{one_hot:d}'])
        _check_short(fixture, report, chroma)
    _check_cosine(fixture, report)
    p, q = fixture['kl.target'], fixture['kl.pred']
    report.close('kl.pq', kl_probabilities(p, q), fixture['kl.pq'])
    report.close('kl.qp', kl_probabilities(q, p), fixture['kl.qp'])
    _check_relative_volume(fixture, report, sound, 0.9 * sound + 0.01 * other)


def _check_short(fixture: Fixture, report: Report, chroma: Chroma) -> None:
    """The first samples of the sound, fewer than a window; the file does not say how many."""
    name = f'chroma.short.argmax{chroma.one_hot:d}'
    expected, sound = fixture[name], fixture['chroma.in'][:, 0]
    soft = build({'_target_': 'audiocraft.modules.chroma.Chroma', 'sample_rate': chroma.sample_rate,
                  'n_fft': chroma.n_fft, 'n_chroma': chroma.n_chroma})
    clue = fixture['chroma.short.argmax0']
    errors = {samples: float((soft(sound[:, :samples]) - clue).abs().max()) for samples in range(1, chroma.n_fft)}
    samples = min(errors, key=lambda samples: errors[samples])
    report.close(name, chroma(sound[:, :samples]), expected)


def _check_cosine(fixture: Fixture, report: Report) -> None:
    """The recorded cosine is that of one metric; of the strongest classes or of all of them, the file does not say."""
    expected = fixture.metadata['config']['chroma_cosine']
    hop, samples = 2 ** fixture.metadata['config']['radix2_exp'] // 4, fixture['chroma.in'].shape[-1]
    values = []
    for one_hot in (False, True):
        chroma = _chroma(fixture, one_hot)
        pair = [chroma(fixture[name][:, 0])[:, :-(-samples // hop)] for name in ('chroma.in', 'chroma.y')]
        values.append(float(frame_cosines(*pair).mean()))
    report.close('chroma_cosine', min(values, key=lambda value: abs(value - expected)), expected)


def _check_relative_volume(fixture: Fixture, report: Report, true: torch.Tensor, estimate: torch.Tensor) -> None:
    config = fixture.metadata['config']
    expected: dict[str, tp.Any] = config['rvm']
    # The recording also counts bands that hold no point of the spectrum.
    measure = build({'_target_': 'audiocraft.metrics.relative_volume.RelativeMelVolume', 'groups': len(expected) - 1,
                     'sample_rate': config['sample_rate'], 'count_empty': True})
    bands = measure(estimate[:, 0], true[:, 0])
    report.close('rvm', bands.mean(), expected['rvm'])
    for index, value in enumerate(measure.grouped(bands)):
        report.close(f'rvm_{index}', value, expected[f'rvm_{index}'])


CHECKS = {'audiocraft/metrics': check_metrics}
