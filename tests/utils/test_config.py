"""Building from configs: what is made, what is refused, and what the messages say."""

import pytest
import torch
from omegaconf import OmegaConf

from audiocraft.utils import config
from audiocraft.utils.config import ABSENT, build, diff, flatten, from_yaml, locate, rebuild, suggest, to_plain, to_yaml
from audiocraft.utils.errors import UserError


def test_build_with_runtime_arguments():
    layer = build({'_target_': 'torch.nn.Linear', 'in_features': 3}, out_features=4)
    assert layer.weight.shape == (4, 3)
    assert layer.build_cfg == {'_target_': 'torch.nn.Linear', 'in_features': 3, 'out_features': 4}


def test_runtime_wins_and_objects_are_not_copied():
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = build({'_target_': 'torch.optim.SGD', 'lr': 1.}, params=[weight], lr=0.5)
    assert optimizer.param_groups[0]['lr'] == 0.5 and optimizer.param_groups[0]['params'][0] is weight
    assert 'params' not in optimizer.build_cfg


def test_interpolations_nested_nodes_and_plain_containers():
    cfg = OmegaConf.create({'dim': 4, 'node': {
        '_target_': 'torch.nn.TransformerEncoder', 'num_layers': 1, 'enable_nested_tensor': False,
        'encoder_layer': {'_target_': 'torch.nn.TransformerEncoderLayer', 'd_model': '${dim}', 'nhead': 2}}})
    built = build(cfg.node)
    assert built.layers[0].linear1.in_features == 4
    block = build(OmegaConf.create({'_target_': 'torch.nn.LayerNorm', 'normalized_shape': [2, 3]}))
    assert type(block.build_cfg['normalized_shape']) is list and block.weight.shape == (2, 3)


def test_partial():
    make = build({'_target_': 'torch.nn.Linear', '_partial_': True, 'in_features': 2})
    assert make(out_features=3).weight.shape == (3, 2)


@pytest.mark.parametrize('node, message', [
    ({'in_features': 3}, '_target_'),
    ({'_target_': 'os.system', 'command': 'true'}, 'Refusing to build "os.system"'),
    ({'_target_': 'audiocraft.utils.files.os.system', 'command': 'true'}, 'it is not a class or function of'),
    ({'_target_': 'torch.nn.Linar'}, 'did you mean "Linear"'),
    ({'_target_': 'audiocraft.nowhere.Thing'}, 'no "nowhere" in audiocraft'),
    ({'_target_': 'torch.nn.Linear', 'in_feature': 1, 'out_features': 1}, '"in_feature". did you mean "in_features'),
    ({'_target_': 'torch.nn.Linear', 'in_features': 1}, 'needs the argument.*out_features'),
    ({'_target_': 'torch.nn.Sequential', '_args_': [{'_target_': 'subprocess.run'}]}, 'Refusing to build "subprocess'),
    ({'_target_': 'torch.nn.TransformerEncoder', 'num_layers': 1, 'encoder_layer': {
        '_target_': 'torch.nn.TransformerEncoderLayer', 'd_modle': 3, 'nhead': 1}}, 'did you mean "d_model"'),
])
def test_refusals(node, message):
    with pytest.raises(UserError, match=message):
        build(node)


def test_further_packages_are_allowed_by_name(monkeypatch):
    monkeypatch.setattr(config, '_allowed', list(config._allowed))
    with pytest.raises(UserError, match='allow_targets'):
        locate('fractions.Fraction')
    config.allow_targets(['fractions'])
    assert str(build({'_target_': 'fractions.Fraction', 'numerator': 1, 'denominator': 2})) == '1/2'
    with pytest.raises(UserError):
        locate('fractionsother.Thing')


def test_what_a_checkpoint_may_name():
    for target in ('torch.nn.Linear', 'audiocraft.utils.files.write_atomic', 'audiocraft.utils.lock.XPLock',
                   'audiocraft.utils.files.os.system'):
        with pytest.raises(UserError):
            rebuild({'_target_': target})
    with pytest.raises(UserError, match='_target_'):
        rebuild({})


def test_rebuild_of_what_was_built():
    from audiocraft.modules.mlp import MLP
    node = {'_target_': 'audiocraft.modules.mlp.MLP', 'dim': 8, 'hidden_dim': 16}
    first = build(node)
    second = rebuild(first.build_cfg)
    assert isinstance(second, MLP)
    second.load_state_dict(first.state_dict())


def test_diff_and_flatten():
    old, new = {'a': {'b': 1, 'c': [1, 2]}, 'd': {}}, {'a': {'b': 2, 'c': [1, 2]}, 'e': 3, 'd': {}}
    assert flatten(old) == {'a.b': 1, 'a.c': [1, 2], 'd': {}}
    assert diff(old, new) == [('a.b', 1, 2), ('e', ABSENT, 3)]
    assert diff(new, old)[-1] == ('e', 3, ABSENT)


def test_yaml_there_and_back():
    cfg = OmegaConf.create({'b': 1e-4, 'a': '${b}', 'list': [1, None, 'x: y'], 'text': 'null'})
    assert from_yaml(to_yaml(cfg)) == to_plain(cfg) == {'b': 1e-4, 'a': 1e-4, 'list': [1, None, 'x: y'], 'text': 'null'}


def test_suggest():
    assert suggest('evalute', ['evaluate', 'valid']) == 'did you mean "evaluate"?'
    assert suggest('xyz', ['evaluate']) == ''
