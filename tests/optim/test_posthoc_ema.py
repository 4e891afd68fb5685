import json

import pytest
import torch
from torch import nn

from audiocraft.optim import PostHocEMA
from audiocraft.optim.posthoc_ema import MANIFEST, beta_of, combination, gamma_of
from audiocraft.utils.errors import UserError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer('count', torch.tensor(0))


def make(folder, every=8, **kwargs):
    net = Net()
    return net, PostHocEMA({'net': net}, snapshot_every=every, folder=folder, **kwargs)


def run(net, ema, start, stop):
    for step in range(start, stop):
        generator = torch.Generator().manual_seed(step)
        net.weight.data.copy_(torch.randn(3, generator=generator))
        net.count += 1
        ema.step()


def profile_average(gamma, steps):
    """The power-function average of `run`, by its definition: weights proportional to t ** gamma."""
    weights = torch.arange(1, steps + 1, dtype=torch.float64) ** gamma
    values = torch.stack([torch.randn(3, generator=torch.Generator().manual_seed(i)) for i in range(steps)]).double()
    return (weights[:, None] * values).sum(0) / weights.sum()


def test_gamma_solves_its_definition():
    for sigma in (0.05, 0.1, 0.2, 0.25):
        gamma = gamma_of(sigma)
        width = (gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5)  # EDM2 eq. 126: std of the profile
        assert width == pytest.approx(sigma, rel=1e-6)
    for sigma in (0., 0.3, -1.):
        with pytest.raises(UserError, match='sigma_rel'):
            gamma_of(sigma)


def test_decays():
    assert beta_of(9, 3., 1, False) == pytest.approx(0.9 ** 4)
    product = 1.
    for step in range(100, 110):
        product *= beta_of(step, 5., 1, False)
    assert beta_of(100, 5., 10) == pytest.approx(product, rel=2e-2)


def test_one_snapshot_is_its_own_best_fit():
    assert combination([10, 20], [3., 3.], 20, 3.).tolist() == pytest.approx([0., 1.], abs=1e-9)


def test_synthesis_comes_near_the_direct_average(tmp_path):
    net, ema = make(tmp_path, every=10)
    run(net, ema, 0, 200)
    states = ema.synthesize(0.08)['net']
    direct, narrow = (profile_average(gamma_of(sigma), 200) for sigma in (0.08, 0.05))
    assert (states['weight'] - direct).norm() < 0.2 * (direct - narrow).norm()
    assert states['frozen'].tolist() == [1., 1.] and states['count'].item() == 200
    earlier = ema.synthesize(0.08, step=100)['net']['weight']
    assert (earlier - profile_average(gamma_of(0.08), 100)).norm() < 0.2 * direct.norm()


def test_averaged_is_the_narrowest(tmp_path):
    net, ema = make(tmp_path, sigma_rels=[0.2, 0.05])
    run(net, ema, 0, 9)
    assert ema.sigma_rels == [0.05, 0.2]
    torch.testing.assert_close(ema.averaged()['net']['weight'], ema.state_dict()['averages'][0]['net']['weight'])
    with ema.swapped(ema.synthesize(0.1)):
        assert not torch.equal(net.weight, ema.averaged()['net']['weight'])


def test_resume_drops_later_snapshots_and_equals_the_straight_run(tmp_path):
    net, ema = make(tmp_path / 'straight')
    run(net, ema, 0, 40)
    expected = ema.synthesize(0.15)['net']['weight']
    net, ema = make(tmp_path / 'cut')
    run(net, ema, 0, 20)
    state = torch.load(_saved(tmp_path / 'state.pt', ema.state_dict()), weights_only=True)
    run(net, ema, 20, 30)  # writes snapshots of step 24, then the process dies
    assert (tmp_path / 'cut' / '0.24.safetensors').exists()
    net, ema = make(tmp_path / 'cut')
    ema.load_state_dict(state)
    assert sorted(path.name for path in (tmp_path / 'cut').iterdir()) == sorted(
        [f'{index}.{step}.safetensors' for index in (0, 1) for step in (8, 16)] + [MANIFEST])
    listed = json.loads((tmp_path / 'cut' / MANIFEST).read_text())['snapshots']
    assert [entry['step'] for entry in listed] == [8, 8, 16, 16]
    run(net, ema, 20, 40)
    assert torch.equal(ema.synthesize(0.15)['net']['weight'], expected)


def _saved(path, state):
    torch.save(state, path)
    return path


def test_snapshots_of_another_run_never_mix_in(tmp_path):
    net, ema = make(tmp_path)
    run(net, ema, 0, 40)
    net, ema = make(tmp_path)
    run(net, ema, 100, 108)
    assert [entry['step'] for entry in ema.snapshots] == [8, 8]
    torch.testing.assert_close(ema.synthesize(0.05)['net']['weight'], ema.averaged()['net']['weight'])


def test_missing_or_changed_snapshots_are_named(tmp_path):
    net, ema = make(tmp_path)
    with pytest.raises(UserError, match='none yet'):
        ema.synthesize(0.1)
    run(net, ema, 0, 16)
    path = tmp_path / '1.8.safetensors'
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(UserError, match='1.8.safetensors.*sha256'):
        ema.synthesize(0.1)
    path.unlink()
    with pytest.raises(UserError, match='1.8.safetensors.*missing'):
        ema.synthesize(0.1)


def test_other_widths_are_refused_at_resume(tmp_path):
    _, ema = make(tmp_path)
    _, other = make(tmp_path, sigma_rels=[0.05, 0.2])
    with pytest.raises(UserError, match='sigma_rels'):
        other.load_state_dict(ema.state_dict())
    with pytest.raises(UserError, match='different'):
        make(tmp_path, sigma_rels=[0.1, 0.1])
