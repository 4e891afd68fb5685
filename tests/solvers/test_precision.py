"""Weights and computations in half precision, each apart from the other, and what bears them."""

import pytest
import torch

from audiocraft import optim
from audiocraft.modules.activation_checkpoint import checkpoint_blocks
from audiocraft.modules.precision import cast_inputs
from audiocraft.utils.checkpoint import load_latest

from .test_processes import Team


@pytest.mark.parametrize('weights', ['float32', 'bfloat16'])
@pytest.mark.parametrize('autocast', ['false', 'true'])
def test_weights_and_autocast(toy, weights, autocast):
    runner = toy(f'weight_dtype={weights}', f'autocast={autocast}', solver=Precise)
    solver = runner.run()
    dtype = getattr(torch, weights)
    assert {param.dtype for param in solver.model.parameters()} == {dtype}
    assert Precise.computed == {torch.bfloat16 if autocast == 'true' else dtype}
    found = load_latest(runner.xp_folder / 'checkpoints')
    assert found.models['model']['last.weight'].dtype == dtype
    assert found.models['best']['last.weight'].dtype == found.models['ema']['last.weight'].dtype == (
        torch.float32 if dtype == torch.float32 else found.models['ema']['last.weight'].dtype)
    assert solver.history[-1]['train']['loss'] < solver.history[0]['train']['loss']
    assert 'loss_scale' not in solver.history[0]['train']


class Precise(Team):
    """Remembers in what type a layer computed."""
    computed: set = set()

    def build_model(self):
        super().build_model()
        type(self).computed = set()
        self.model.last.register_forward_hook(lambda module, args, output: self.computed.add(output.dtype))

    def run_step(self, idx, batch, metrics):
        with self.autocast():
            return super().run_step(idx, batch, metrics)


def test_float16_scales_the_loss(toy):
    runner = toy('autocast=true', 'autocast_dtype=float16', 'loss_scale.init=16384', solver=Precise)
    solver = runner.run()
    assert solver.updater.loss_scale.value == 16384.
    assert solver.history[-1]['train']['loss_scale'] == 16384. and solver.history[-1]['train']['skipped'] == 0
    assert load_latest(runner.xp_folder / 'checkpoints').state['objects']['updater']['loss_scale'] == {
        'value': 16384., 'good': 15, 'hits': 0}


def test_inputs_are_cast_unless_autocast_does():
    layer = torch.nn.Linear(2, 2).to(torch.bfloat16)
    cast_inputs(layer, torch.bfloat16)
    assert layer(torch.ones(1, 2)).dtype == torch.bfloat16
    with torch.autocast('cpu', torch.float16):
        assert layer(torch.ones(1, 2)).dtype == torch.float16


def test_checkpointed_blocks_compute_again_and_give_the_same():
    def run(checkpointed):
        torch.manual_seed(0)
        layer = lambda: torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout(0.5))  # noqa: E731
        blocks = torch.nn.ModuleList(layer() for _ in range(3))
        calls = []
        for block in blocks:
            block[0].register_forward_hook(lambda *args: calls.append(1))
        if checkpointed:
            checkpoint_blocks(blocks)
        torch.manual_seed(1)
        x = torch.ones(4, 3)
        for block in blocks:
            x = block(x)
        x.sum().backward()
        return [param.grad.tolist() for param in blocks.parameters()], len(calls), list(blocks.state_dict())
    (plain, once, names), (again, twice, same_names) = run(False), run(True)
    assert plain == again and names == same_names and (once, twice) == (3, 6)


def test_loss_scale_is_that_of_the_config(toy):
    with toy('weight_dtype=float16', 'loss_scale.window=7', solver=Team).solver() as solver:
        assert isinstance(solver.updater.loss_scale, optim.LossScale) and solver.updater.loss_scale.window == 7
