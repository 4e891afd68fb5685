"""Check of whole updates of the compression solver: discriminators, balanced losses, commitment, codebooks, Adam."""

import copy
import tempfile
import typing as tp
from pathlib import Path

import torch
from dora.conf import DoraConfig
from dora.xp import XP
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

from audiocraft.data.audio_dataset import AudioBatch
from audiocraft.environment import CONFIG_ROOT
from audiocraft.models.published.audiocraft import SEANET_DEFAULTS
from audiocraft.modules.norm_conv import rename_weight_norm
from audiocraft.solvers.compression import CompressionSolver

from .base import Fixture, Report

TOLERANCE = 1e-3  # three updates by Adam
State = dict[str, torch.Tensor]


def _losses(recorded: dict[str, tp.Any]) -> dict[str, tp.Any]:
    nodes = {
        'l1': {'_target_': 'torch.nn.L1Loss'}, 'l2': {'_target_': 'torch.nn.MSELoss'},
        'mel': {'_target_': 'audiocraft.losses.mel.MelLoss', **recorded.get('mel', {})},
        'msspec': {'_target_': 'audiocraft.losses.mel.MultiScaleMelLoss', **recorded.get('msspec', {})},
        'mrstft': {'_target_': 'audiocraft.losses.stft.MultiResolutionSTFTLoss', **recorded.get('mrstft', {})},
        'sisnr': {'_target_': 'audiocraft.losses.sisnr.SISNRLoss', **recorded.get('sisnr', {})},
    }
    return {name: node for name, node in nodes.items() if recorded['losses'].get(name, 0) > 0}


def _adversarial(recorded: dict[str, tp.Any], optim: dict[str, tp.Any]) -> dict[str, tp.Any]:
    options = recorded['adversarial']
    assert options['adversaries'] == ['msstftd'], 'only spectrogram discriminators were recorded'
    discriminator = {'_target_': 'audiocraft.adversarial.msstft.MultiScaleSTFTDiscriminator', **recorded['msstftd']}
    adversary = {'_target_': 'audiocraft.adversarial.adversary.Adversary', 'loss': options['adv_loss'],
                 'feature_loss': options['feat_loss'], 'discriminator': discriminator}
    return {'every': options['every'], 'discriminators': {'msstftd': adversary}, 'optim': optim}


def _config(meta: dict[str, tp.Any]) -> DictConfig:
    """The config of the solver that does what was recorded."""
    recorded = meta['cfg']
    adam = {'_target_': 'torch.optim.Adam', **recorded['optim'][recorded['optim']['optimizer']]}
    optim = {'lr': recorded['optim']['lr'], 'optimizer': adam}
    # What a recording does not say is what its classes took.
    seanet = {**SEANET_DEFAULTS, **meta['seanet']}
    del seanet['channels'], seanet['dimension']
    quantizer = {'_target_': 'audiocraft.quantization.rvq.ResidualVectorQuantizer', **meta['rvq'],
                 'dimension': meta['seanet']['dimension']}
    model = {'_target_': 'audiocraft.models.encodec.EncodecModel', 'sample_rate': meta['sample_rate'],
             'channels': meta['seanet']['channels'], 'seanet': seanet, 'quantizer': quantizer}
    with initialize_config_dir(str(CONFIG_ROOT), version_base='1.3'):
        cfg = compose('config', ['solver=compression/debug', 'device=cpu', 'schedule=none', 'optim/ema=none'])
    with open_dict(cfg):
        cfg.sample_rate, cfg.channels, cfg.model = meta['sample_rate'], meta['seanet']['channels'], model
        cfg.losses, cfg.weights = _losses(recorded), {**recorded['losses'], 'penalty': 1.}
        cfg.weights = {name: weight for name, weight in cfg.weights.items()
                       if name in (*cfg.losses, 'adv', 'feat', 'penalty')}
        cfg.balancer = {'_target_': 'audiocraft.losses.balancer.Balancer', **recorded['balancer']}
        cfg.adversarial = _adversarial(recorded, optim)
        cfg.optim = OmegaConf.merge(cfg.optim, {**optim, 'max_norm': recorded['optim'].get('max_norm') or None})
    return cfg


class _Solver(CompressionSolver):
    """The solver without data."""

    def build_dataloaders(self) -> None:
        self.dataloaders = {'train': [], 'valid': []}


def _penalty_norm(model: torch.nn.Module, wav: torch.Tensor) -> torch.Tensor:
    """The norm of the gradient of the penalty alone, on a copy of the model."""
    model = copy.deepcopy(model)
    model(wav).penalty.backward()
    return torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()


def _expected(step: dict[str, float]) -> dict[str, float]:
    """The metrics of one update under our names."""
    return {'grad_norm' if name == 'ratio2' else 'penalty_norm' if name == 'ratio1' else name: value
            for name, value in step.items()}


def _states(solver: CompressionSolver) -> State:
    states = {'model': solver.model.state_dict(),
              'adversary': solver.discriminators['msstftd'].discriminator.state_dict()}
    return {f'{name}.{key}': value for name, state in states.items()
            for key, value in rename_weight_norm(state, 'legacy').items()}


def _compare_states(fixture: Fixture, report: Report, solver: CompressionSolver, step: int) -> None:
    expected, found = fixture.state(f'sd{step}.'), _states(solver)
    report.equal(f'names after update {step}', sorted(found), sorted(expected))
    for key in found.keys() & expected.keys():
        report.close(f'after update {step}: {key}', found[key], expected[key], tolerance=TOLERANCE)


def check_compression_step(fixture: Fixture, report: Report) -> None:
    """The metrics of each recorded update, and all weights and codebooks after those that were kept."""
    meta = fixture.metadata['config']
    cfg = _config(meta)
    with tempfile.TemporaryDirectory() as folder:
        xp = XP(dora=DoraConfig(dir=Path(folder)), cfg=cfg, argv=[], delta=[], sig='c0ffee00')
        xp.folder.mkdir(parents=True)
        with xp.enter():
            solver = _Solver(cfg)
        solver.model.load_state_dict(fixture.state('sd0.model.'), strict=True)
        solver.discriminators['msstftd'].discriminator.load_state_dict(fixture.state('sd0.adversary.'), strict=True)
        solver.is_training, solver._current_stage = True, 'train'
        for step, expected in enumerate(meta['metrics'], 1):
            wav = fixture[f'in.batch{step - 1}']
            found = {'penalty_norm': _penalty_norm(solver.model, wav)}
            solver.run_step(step - 1, AudioBatch([''] * len(wav), wav), found)
            for kind in ('adv', 'feat'):
                found[kind] = sum(value for name, value in found.items() if name.startswith(f'{kind}_'))
            for name, value in _expected(expected).items():
                report.close(f'update {step}: {name}', found[name], value, tolerance=TOLERANCE)
            if any(key.startswith(f'sd{step}.') for key in fixture.tensors):
                _compare_states(fixture, report, solver, step)


CHECKS = {'audiocraft/compression_step': check_compression_step}
