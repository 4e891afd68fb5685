"""Optimizers, learning-rate schedules, the update, and moving averages of weights."""

from .builders import build_ema, build_lr_scheduler, build_optimizer
from .ema import EMA, Average
from .loss_scale import LossScale
from .posthoc_ema import PostHocEMA
from .schedules import Schedule
from .updater import Updater

__all__ = ['EMA', 'Average', 'LossScale', 'PostHocEMA', 'Schedule', 'Updater', 'build_ema', 'build_lr_scheduler',
           'build_optimizer']
