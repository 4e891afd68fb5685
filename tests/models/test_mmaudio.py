"""The flow network: what the recorded numbers do not show."""

import pytest
import torch
import yaml

from audiocraft.environment import CONFIG_ROOT
from audiocraft.flow.guidance import combine
from audiocraft.models.mmaudio import MMAudio
from audiocraft.utils.config import build

DIMS = dict(latent_dim=4, clip_dim=6, sync_dim=5, text_dim=7, latent_seq_len=10, clip_seq_len=4, sync_seq_len=16,
            text_seq_len=3)
TINY = dict(DIMS, hidden_dim=16, depth=3, fused_depth=1, num_heads=2)


def tiny(seed=0, **changes):
    """A tiny network whose zero-initialized layers are drawn too."""
    torch.manual_seed(seed)
    model = MMAudio(**{**TINY, **changes})
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def inputs(batch=3, model=None):
    model = model or MMAudio(**TINY)
    return (torch.randn(batch, model.latent_seq_len, 4), torch.randn(batch, model.clip_seq_len, 6),
            torch.randn(batch, model.sync_seq_len, 5), torch.randn(batch, 3, 7))


@pytest.mark.parametrize('v2', [False, True])
def test_initial_output_is_zero_and_gradients_reach_the_output(v2):
    model = MMAudio(**TINY, v2=v2)
    flow = model(*inputs(), torch.rand(3))
    assert flow.shape == (3, 10, 4) and not flow.any()
    (flow - 1).square().mean().backward()
    assert model.final_layer.conv.bias.grad.any()


def test_every_trainable_parameter_gets_a_gradient():
    model = tiny()
    latent, clip, sync, text = inputs()
    nulls = model.null_features()
    clip[0], sync[0] = nulls['clip_features'], nulls['sync_features']
    model(latent, clip, sync, text, torch.rand(3)).square().mean().backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    # The queries of features that nobody looks at any more go nowhere.
    assert all('q_norm' in name and 'joint_blocks.1' in name for name in missing), missing


def test_guidance_is_one_call_and_equals_two():
    model = tiny().eval()
    latent, *features = inputs()
    with torch.no_grad():
        cond, empty, t = model.preprocess_conditions(*features), model.empty_conditions(3), torch.tensor(0.3)
        apart = combine(model.predict_flow(latent, t, cond), model.predict_flow(latent, t, empty), 4.5)
        calls = []
        model.final_layer.register_forward_hook(lambda *args: calls.append(1))
        torch.testing.assert_close(model.field(cond, empty, 4.5)(t, latent), apart, rtol=1e-5, atol=1e-4)
        assert len(calls) == 1
        assert torch.equal(model.field(cond, empty, 1.)(t, latent), model.predict_flow(latent, t, cond))


def test_items_of_a_batch_do_not_mix():
    model = tiny().eval()
    full, t = inputs(), torch.rand(3)
    with torch.no_grad():
        alone = model(*(x[1:2] for x in full), t[1:2])
        torch.testing.assert_close(model(*full, t)[1:2], alone, rtol=1e-5, atol=1e-5)


def test_empty_conditions():
    model = tiny()
    cond = model.empty_conditions(2)
    expected = model.preprocess_conditions(
        model.empty_clip_feat.expand(2, 4, 6), model.empty_sync_feat.expand(2, 16, 5),
        model.empty_string_feat.expand(2, 3, 7))
    torch.testing.assert_close(cond.sync, expected.sync)
    torch.testing.assert_close(cond.clip_c, expected.clip_c)
    one, many = model.empty_conditions(2, torch.ones(1, 3, 7)), model.empty_conditions(2, torch.ones(2, 3, 7))
    torch.testing.assert_close(one.text, many.text)
    assert not torch.allclose(one.text, cond.text)


def test_statistics_of_latents():
    model = MMAudio(**TINY, latent_mean=[1., 2., 3., 4.], latent_std=torch.full((4,), 2.))
    x = torch.randn(2, 10, 4)
    before = x.clone()
    torch.testing.assert_close(model.normalize(x), (x - torch.tensor([1., 2., 3., 4.])) / 2)
    torch.testing.assert_close(model.unnormalize(model.normalize(x)), x)
    assert torch.equal(x, before)
    assert MMAudio(**TINY).normalize(x).isnan().all()


def test_constants_are_saved_but_not_trained():
    model = MMAudio(**TINY)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {'latent_mean', 'latent_std', 'empty_string_feat'} and frozen <= set(model.state_dict())
    assert not {'latent_rot', 'clip_rot', 't_embed.freqs'} & set(model.state_dict())


def test_other_lengths_with_the_same_weights():
    model = tiny()
    model.update_seq_lengths(17, 7, 24)
    assert model(*inputs(model=model), torch.rand(3)).shape == (3, 17, 4)
    other = MMAudio(**{**TINY, 'latent_seq_len': 17, 'clip_seq_len': 7, 'sync_seq_len': 24})
    assert torch.equal(model.clip_rot, other.clip_rot)


def test_wrong_lengths_are_named():
    model = MMAudio(**TINY)
    latent, clip, sync, text = inputs()
    with pytest.raises(ValueError, match='sync features have length 8, but the network is set to 16'):
        model(latent, clip, sync[:, :8], text, torch.rand(3))
    with pytest.raises(ValueError, match='9 latents, but the network is set to 10'):
        model(latent[:, :9], clip, sync, text, torch.rand(3))
    with pytest.raises(ValueError, match='multiple of 8, got 20'):
        model.update_seq_lengths(10, 4, 20)
    with pytest.raises(ValueError, match='fused_depth'):
        MMAudio(**{**TINY, 'fused_depth': 3})
    with pytest.raises(ValueError, match='15 and 2 heads'):
        MMAudio(**{**TINY, 'hidden_dim': 15})


@pytest.mark.parametrize('path', sorted((CONFIG_ROOT / 'model' / 'mmaudio').glob('*.yaml')), ids=lambda path: path.stem)
def test_configs_build(path):
    with torch.device('meta'):
        model = build(yaml.safe_load(path.read_text()), **DIMS)
    assert model.blocks()


def test_rebuilds_from_its_configuration():
    model = build({'_target_': 'audiocraft.models.mmaudio.MMAudio', **TINY, 'latent_mean': [0.] * 4})
    assert model.build_cfg['latent_mean'] == [0.] * 4
