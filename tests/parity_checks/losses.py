"""Checks of the losses of waveforms, and of the balancer of their gradients."""

import re
import typing as tp

import torch
import torch.nn.functional as F

from audiocraft.losses.mel import MelSpectrogram
from audiocraft.utils.config import build

from .base import Fixture, Report

TARGETS = {'mel': 'audiocraft.losses.mel.MelLoss', 'msspec': 'audiocraft.losses.mel.MultiScaleMelLoss',
           'mrstft': 'audiocraft.losses.stft.MultiResolutionSTFTLoss', 'sisnr': 'audiocraft.losses.sisnr.SISNRLoss',
           'l1': 'torch.nn.L1Loss', 'l2': 'torch.nn.MSELoss'}


def check_losses(fixture: Fixture, report: Report) -> None:
    """Each loss and its gradient; a mel spectrogram and its filters."""
    config = fixture.metadata['config']
    for name, kwargs in config['kwargs'].items():
        loss = build({'_target_': TARGETS[name.split('_')[0]], **kwargs})
        x = fixture['in.x'].requires_grad_()
        value = loss(x, fixture['in.y'])
        gradient, = torch.autograd.grad(value, x)
        report.close(f'out.{name}', value, fixture[f'out.{name}'].reshape(()))
        report.close(f'values.{name}', value, config['values'][name])
        report.close(f'grad.{name}', gradient, fixture[f'grad.{name}'])
    _check_mel(fixture, report, dict(config['melspec']))


def _check_mel(fixture: Fixture, report: Report, config: dict[str, tp.Any]) -> None:
    length = int(config.pop('input').partition(':')[2].rstrip(']'))  # 'x[..., :1500]'
    # The file gives the sample rate of the losses only; it is the same one.
    config.setdefault('sample_rate', fixture.metadata['config']['kwargs']['mel']['sample_rate'])
    log, floor = config.pop('log', True), config.pop('floor_level', 1e-5)
    mel = MelSpectrogram(**config)
    report.close('melspec.fb', mel.filters.t(), fixture['melspec.fb'])
    found = mel(fixture['in.x'][..., :length])
    found = (floor + found).log10() if log else found
    report.close('melspec.out', found.flatten(1, 2), fixture['melspec.out'])


def _toy_spectral_loss(output: torch.Tensor, target: torch.Tensor, n_fft: int, hop: int) -> torch.Tensor:
    """The loss that the recording of the balancer uses in place of a spectral one."""
    window = torch.hann_window(n_fft)
    made, true = (torch.stft(wav[:, 0], n_fft, hop, window=window, return_complex=True).abs()
                  for wav in (output, target))
    return (made - true).abs().mean()


def _recorded_losses(config: dict[str, tp.Any], output: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    n_fft, hop = map(int, re.search(r'stft(\d+)/(\d+)', config['toy_msspec']).groups())  # type: ignore[union-attr]
    made = {'l1': F.l1_loss(output, target), 'l2': F.mse_loss(output, target),
            'msspec': _toy_spectral_loss(output, target, n_fft, hop)}
    return {name: made[name] for name in config['loss_order']}


# What each of the recorded runs set, which the file does not say; the numbers fit no other decay and norm.
VARIANTS: dict[str, dict[str, tp.Any]] = {
    'balanced': {'monitor': True}, 'batchnorm': {'per_batch_item': False, 'total_norm': 2., 'ema_decay': 0.5},
    'plain': {'balance_grads': False}}


def check_balancer(fixture: Fixture, report: Report) -> None:
    """Successive calls: the losses, the effective loss, the gradient of the output, and the ratios."""
    config = fixture.metadata['config']
    for variant in sorted({key.partition('.')[0] for key in fixture.tensors if '.eff' in key}):
        kwargs = config.get('kwargs', VARIANTS)[variant]
        balancer = build({'_target_': 'audiocraft.losses.balancer.Balancer', **kwargs})
        for step in range(sum(key.startswith(f'{variant}.eff') for key in fixture.tensors)):
            output = fixture[f'in.y_pred{step}'].clone().requires_grad_()
            losses = _recorded_losses(config, output, fixture[f'in.y{step}'])
            balanced = balancer(losses, output, config['weights'])
            balanced.loss.backward()
            report.close(f'{variant}.losses{step}', torch.stack(list(losses.values())),
                         fixture[f'{variant}.losses{step}'])
            report.close(f'{variant}.eff{step}', balanced.loss, fixture[f'{variant}.eff{step}'])
            report.close(f'{variant}.grad{step}', output.grad, fixture[f'{variant}.grad{step}'])
            ratios = {name: ratio.item() for name, ratio in balanced.ratios.items()}
            report.numbers(f'{variant}.metrics{step}', ratios, config['info'][f'{variant}.metrics{step}'])


CHECKS = {'audiocraft/losses': check_losses, 'audiocraft/balancer': check_balancer}
