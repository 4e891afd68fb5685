"""A solver in a test: compose the config, enter an XP with a folder of its own, no command line."""

import contextlib
import copy
import functools
import os
import typing as tp
from pathlib import Path

import flashy
import pytest
import torch
from dora.conf import DoraConfig
from dora.xp import XP
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

from audiocraft import optim
from audiocraft.environment import CONFIG_ROOT
from audiocraft.solvers import base

QUICK = ['device=cpu', 'optim.epochs=3', 'optim.updates_per_epoch=5', 'optim.lr=0.01', 'logging.log_updates=2']


@functools.cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(CONFIG_ROOT), version_base='1.3'):
        return compose('config', [*QUICK, *overrides])


def compose_config(*overrides: str) -> DictConfig:
    """The config that a command line with these overrides gives."""
    return copy.deepcopy(_composed(overrides))


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk: half of the time of these tests. No test here cuts the power."""
    monkeypatch.setattr(os, 'fsync', lambda descriptor: None)


def make_xp(folder: Path, cfg: DictConfig, sig: str = 'c0ffee00') -> XP:
    """An XP in `folder/xps/<sig>`, with the exclusions of the config."""
    dora = DoraConfig(dir=folder, exclude=[*cfg.dora.exclude, 'dora.*', 'slurm.*'])
    xp = XP(dora=dora, cfg=cfg, argv=[], delta=[], sig=sig)
    xp.folder.mkdir(parents=True, exist_ok=True)
    return xp


class Runner:
    """Makes solvers in one XP folder, as successive processes would."""

    def __init__(self, folder: Path, solver: type, *overrides: str, sig: str = 'c0ffee00'):
        self.folder, self.solver_class, self.overrides, self.sig = folder, solver, overrides, sig

    @contextlib.contextmanager
    def solver(self, *overrides: str, **extra: tp.Any) -> tp.Iterator[tp.Any]:
        """A new solver, within its XP; `extra` goes into the config."""
        cfg = compose_config(*self.overrides, *overrides)
        with open_dict(cfg):
            for key, value in extra.items():
                OmegaConf.update(cfg, key.replace('__', '.'), value)
        with make_xp(self.folder, cfg, self.sig).enter():
            yield self.solver_class(cfg)

    def run(self, *overrides: str, **extra: tp.Any) -> tp.Any:
        """Run to the end, or to what ends it; returns the solver."""
        with self.solver(*overrides, **extra) as solver:
            solver.run()
        return solver

    @property
    def xp_folder(self) -> Path:
        """The folder of the XP."""
        return self.folder / 'xps' / self.sig


class Data(torch.utils.data.Dataset):
    """32 points of a line, some noise added each time one is read (from the global generator)."""

    def __init__(self, start: int = 0, noise: float = 0.1):
        self.start, self.noise = start, noise

    def __len__(self) -> int:
        return 28

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.linspace(-1, 1, 6) * (index + self.start + 1) / 30
        return x, (2 * x).sum()[None] + self.noise * torch.randn(1)


class Network(torch.nn.Module):
    """Dropout, batch norm (an integer buffer) and a parameter that is frozen."""

    def __init__(self, dim: int = 6):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(dim, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.2),
                                          torch.nn.Linear(8, 1))
        self.scale = torch.nn.Parameter(torch.ones(()), requires_grad=False)
        self.register_buffer('calls', torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls += 1
        return self.layers(x) * self.scale


class ToySolver(base.StandardSolver):
    """Uses everything at once: shuffled DataLoader, dropout, draws, Updater, schedule, EMA, best state."""

    def build_dataloaders(self) -> None:
        loader = torch.utils.data.DataLoader
        self.dataloaders = {'train': loader(Data(), batch_size=4, shuffle=True, drop_last=True),
                            'valid': loader(Data(100), batch_size=8)}

    def build_model(self) -> None:
        self.model = Network()
        self.optimizer = optim.build_optimizer(self.model.parameters(), self.cfg.optim)
        self.schedule = optim.build_lr_scheduler(self.optimizer, self.cfg.schedule, self.total_updates)
        self.updater = self.build_updater(self.model.parameters(), self.optimizer, self.schedule)
        self.counter = 0
        self.register_stateful('model', 'optimizer', 'schedule', 'updater', 'counter')
        self.register_best('model')
        self.register_ema('model')

    def best_metric(self) -> str:
        return 'loss'

    def run_step(self, idx: int, batch: tp.Any, metrics: dict) -> dict:
        x, y = batch
        noise = self.draws(len(x)).randn(x.shape[1])
        loss = (self.model(x + 0.01 * noise) - y).square().mean()
        metrics['loss'] = loss.detach()
        if self.is_training:
            self.counter += 1
            metrics.update(self.updater(loss))
        return metrics

    def evaluate(self) -> dict:
        return {'total': sum(p.sum().item() for p in self.model.parameters()), 'noise': torch.rand(1).item(),
                'missing': None}

    def generate(self) -> dict:
        return {'clips': 1.}


EMA = ['optim.ema.use=true', '+optim.ema._target_=audiocraft.optim.EMA', '+optim.ema.decay=0.9']


@pytest.fixture
def toy(tmp_path: Path) -> tp.Callable[..., Runner]:
    """Make a `Runner` of the toy solver (or another) in a folder of the test."""
    def make(*overrides: str, solver: type[flashy.BaseSolver] = ToySolver, name: str = 'a', ema: bool = True) -> Runner:
        return Runner(tmp_path / name, solver, *(EMA if ema else []), *overrides)
    return make
