import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from audiocraft import optim
from audiocraft.utils.errors import UserError

ADAMW = {'_target_': 'torch.optim.AdamW', 'betas': [0.9, 0.95], 'weight_decay': 0.1}


def test_takes_parameters_or_module_and_any_config():
    model = nn.Linear(3, 2)
    cfg = {'lr': 0.5, 'optimizer': ADAMW, 'epochs': 3}
    for params in (model, model.parameters(), [{'params': model.parameters(), 'weight_decay': 0.}]):
        for node in (cfg, OmegaConf.create(cfg)):
            optimizer = optim.build_optimizer(params, node)
            assert isinstance(optimizer, torch.optim.AdamW)
            assert optimizer.param_groups[0]['lr'] == 0.5
            assert optimizer.param_groups[0]['betas'] == (0.9, 0.95)
            assert len(optimizer.param_groups[0]['params']) == 2
            params = model


def test_frozen_and_tied_parameters():
    model = nn.ModuleDict({'a': nn.Linear(3, 3), 'b': nn.Linear(3, 3)})
    model['b'].weight = model['a'].weight
    model['a'].bias.requires_grad_(False)
    params = [*model['a'].parameters(), *model['b'].parameters()]
    optimizer = optim.build_optimizer(params, {'lr': 1, 'optimizer': ADAMW})
    assert len(optimizer.param_groups[0]['params']) == 2


@pytest.mark.parametrize('cfg, words', [
    ({'lr': 'oops', 'optimizer': ADAMW}, 'optim.lr must be a number'),
    ({'optimizer': ADAMW}, 'optim.lr must be a number'),
    ({'lr': float('nan'), 'optimizer': ADAMW}, 'optim.lr must be finite'),
    ({'lr': 1.}, 'optim.optimizer must be a node'),
    ({'lr': 1., 'optimizer': {**ADAMW, 'beta': 3}}, 'beta'),
])
def test_errors_name_the_key(cfg, words):
    with pytest.raises(UserError, match=words):
        optim.build_optimizer(nn.Linear(2, 2), cfg)


def test_nothing_to_train():
    with pytest.raises(UserError, match='nothing to train'):
        optim.build_optimizer([], {'lr': 1., 'optimizer': ADAMW})
    with pytest.raises(UserError, match='nothing to train'):
        optim.build_optimizer(nn.Linear(2, 2).requires_grad_(False), {'lr': 1., 'optimizer': ADAMW})


def test_schedule_of_none_is_constant_and_torch_schedulers_work():
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.5)
    schedule = optim.build_lr_scheduler(optimizer, None, 10)
    schedule.step()
    assert optimizer.param_groups[0]['lr'] == 0.5
    torchs = optim.build_lr_scheduler(optimizer, {'_target_': 'torch.optim.lr_scheduler.ConstantLR', 'factor': 0.5}, 10)
    assert optimizer.param_groups[0]['lr'] == 0.25 and torchs.last_epoch == 0
    with pytest.raises(UserError, match='_target_'):
        optim.build_lr_scheduler(optimizer, {'warmup': 3}, 10)


def test_ema_by_config(tmp_path):
    model = nn.Linear(2, 2)
    assert optim.build_ema({'model': model}, None) is None
    assert optim.build_ema({'model': model}, {'use': False, 'decay': 0.9}) is None
    ema = optim.build_ema({'model': model}, OmegaConf.create({'use': True, 'decay': 0.9}))
    assert isinstance(ema, optim.EMA) and ema.decay == 0.9
    node = {'use': True, '_target_': 'audiocraft.optim.PostHocEMA'}
    posthoc = optim.build_ema({'model': model}, node, folder=tmp_path)
    assert isinstance(posthoc, optim.PostHocEMA) and posthoc.folder == tmp_path
    with pytest.raises(UserError, match='register_ema'):
        optim.build_ema({}, {'use': True, 'decay': 0.9})
