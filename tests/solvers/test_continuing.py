"""A training that MMAudio began goes on here: a file in its layout continues as our own checkpoint would."""

import logging
import random
import typing as tp
from pathlib import Path

import pytest
import torch
from processes import run_ranks
from safetensors.torch import load_file
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR, SequentialLR

from audiocraft.data.store_writer import StoreWriter
from audiocraft.models.published.mmaudio_training import FROZEN
from audiocraft.solvers.mmaudio import MMAudioSolver
from audiocraft.utils.checkpoint import Checkpoint, read_checkpoint
from audiocraft.utils.errors import UserError

from .conftest import Runner

KEYS = {'mean': ((10, 4), torch.float32), 'std': ((10, 4), torch.float32), 'text_features': ((3, 6), torch.float32),
        'clip_features': ((4, 5), torch.float32), 'sync_features': ((8, 7), torch.float32)}
OPTIONS = ['solver=mmaudio/debug', 'model.hidden_dim=16', 'model.num_heads=2', 'model.depth=2', 'model.fused_depth=1',
           'dataset.batch_size=4', 'optim.epochs=2', 'optim.updates_per_epoch=4', 'optim.lr=0.01', 'evaluate.every=0',
           'generate.every=0', 'autocast=false', 'schedule=steps', 'schedule.warmup=2', 'schedule.milestones=[2,4]',
           '++optim.ema.snapshot_every=2']
AT = 5  # in the middle of the second epoch


def runner(folder: Path, store: Path, *options: str) -> Runner:
    stages = [f'dset.{stage}.stores=[{store}]' for stage in ('train', 'valid', 'evaluate', 'generate')]
    return Runner(folder, MMAudioSolver, *OPTIONS, *stages, *options)


@pytest.fixture(scope='module')
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('data') / 'video'
    writer = StoreWriter(path, keys=KEYS, rows=8, facts={'duration': 1.})
    generator = torch.Generator().manual_seed(0)
    for i in range(8):
        writer.add(str(i), {'caption': 'x'}, {key: torch.rand(shape, generator=generator)
                                              for key, (shape, _) in KEYS.items()})
    writer.close()
    writer.finish()
    return path


@pytest.fixture(scope='module')
def whole(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """The training that nobody interrupted, with a checkpoint in its middle."""
    run = runner(tmp_path_factory.mktemp('whole'), store)
    run.run(f'checkpoint.save_every={AT}', 'checkpoint.keep_last=null')
    return run


def checkpoint_at(run: Runner, update: int) -> Checkpoint:
    return read_checkpoint(run.xp_folder / 'checkpoints' / str(update))


def torch_schedule(optimizer: torch.optim.Optimizer, updates: int) -> dict[str, tp.Any]:
    """The state of torch's own schedule after some updates."""
    warm = LambdaLR(optimizer, lambda i: (i + 1) / 3)
    schedule = SequentialLR(optimizer, [warm, MultiStepLR(optimizer, [2, 4], 0.1)], [2])
    for _ in range(updates):
        optimizer.step()
        schedule.step()
    return schedule.state_dict()


def as_mmaudio(run: Runner, folder: Path, **changes: tp.Any) -> Path:
    """The checkpoint in the middle of a run as MMAudio's training would have written it, weights in another order."""
    checkpoint, ours = checkpoint_at(run, AT), []
    with run.solver() as solver:
        ours = [name for name, param in solver.model.named_parameters() if param.requires_grad]
    names = list(checkpoint.models['model'])
    random.Random(1).shuffle(names)
    weights = {name: checkpoint.models['model'][name] for name in names}
    moments = {name: checkpoint.state['objects']['optimizer']['state'][number] for number, name in enumerate(ours)
               if number in checkpoint.state['objects']['optimizer']['state']}
    trained = [name for name in names if name not in FROZEN]
    params = {name: torch.nn.Parameter(weights[name].clone()) for name in trained}
    optimizer = torch.optim.AdamW(params.values(), lr=0.01, betas=(0.9, 0.95), eps=1e-6, weight_decay=1e-6)
    scheduler = torch_schedule(optimizer, AT)
    for name, param in params.items():
        if name in moments:
            optimizer.state[param] = moments[name]
    averages = checkpoint.state['ema']['averages']
    frozen = {f'ema_model.{name}': weights[name] for name in FROZEN} | {'ema_model.latent_rot': torch.zeros(3)}
    extra = {'initted': True, 'step': AT}
    ema = {f'ema_models.{index}.{key}': value for index, states in enumerate(averages) for key, value in
           {'_extra_state': extra, **frozen, **{f'ema_model.{k}': v for k, v in states['model'].items()}}.items()}
    (folder / 'ema_ckpts').mkdir(parents=True)
    for path in (run.xp_folder / 'ema').glob('*.safetensors'):
        snapshot = {f'ema_model.{key.partition("/")[2]}': value for key, value in load_file(path).items()}
        torch.save({**snapshot, **frozen, '_extra_state': extra}, folder / 'ema_ckpts' / f'{path.stem}.pt')
    torch.save({'it': AT - 1, 'weights': weights, 'optimizer': optimizer.state_dict(), 'scheduler': scheduler,
                'ema': ema, **changes}, folder / 'x_ckpt_last.pth')
    return folder / 'x_ckpt_last.pth'


def assert_same(one: tp.Any, other: tp.Any, where: str = '') -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f'{where}.{key}')
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, (left, right) in enumerate(zip(one, other)):
            assert_same(left, right, f'{where}[{index}]')
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, where


def synthesized(run: Runner) -> dict[str, torch.Tensor]:
    with run.solver() as solver:
        solver.restore()
        return {name: (1e4 * x).round() for name, x in solver.ema.synthesize(0.08)['model'].items()}


def test_a_training_goes_on_to_the_same_end(whole: Runner, store: Path, tmp_path: Path,
                                            caplog: pytest.LogCaptureFixture) -> None:
    path = as_mmaudio(whole, tmp_path / 'theirs')
    run = runner(tmp_path / 'ours', store, f'continue_from={path}')
    with caplog.at_level(logging.INFO):
        solver = run.run()
    assert solver.update == 8 and solver.history[0] == {} and solver.history[1]['valid']['loss'] > 0
    ended, expected = checkpoint_at(run, 8), checkpoint_at(whole, 8)
    assert_same(ended.models['model'], expected.models['model'], 'weights')
    assert_same(ended.models['ema'], expected.models['ema'], 'average')
    assert_same(ended.state['ema']['averages'], expected.state['ema']['averages'], 'averages')
    for name in ('optimizer', 'schedule', 'updater'):
        assert_same(ended.state['objects'][name], expected.state['objects'][name], name)
    expected_snapshots = [(s['index'], s['step']) for s in expected.state['ema']['snapshots']]
    assert sorted((s['index'], s['step']) for s in ended.state['ema']['snapshots']) == sorted(expected_snapshots)
    assert_same(synthesized(run), synthesized(whole), 'another width')
    for said in ('it 4) goes on after update 5', 'moments of', 'after 5 steps', 'rate 0.001',
                 'epoch 2 of 2, 1 of its 4 updates done', 'sigma_rels [0.05, 0.1]', 'snapshots: 4 of',
                 'not in the file: random generators'):
        assert said in caplog.text, said
    assert 'which counts' not in caplog.text and 'NOT' not in caplog.text


def crash() -> None:
    raise KeyboardInterrupt


def test_it_is_kept_at_once_and_not_read_again(whole: Runner, store: Path, tmp_path: Path) -> None:
    path = as_mmaudio(whole, tmp_path / 'theirs')
    run = runner(tmp_path / 'ours', store, f'continue_from={path}')
    with pytest.raises(KeyboardInterrupt), run.solver() as solver:
        solver.run_epoch = crash
        solver.run()
    kept = checkpoint_at(run, AT)
    assert_same(kept.models['model'], checkpoint_at(whole, AT).models['model'])
    assert kept.state['progress']['done'] == 1 and kept.state['history'] == [{}]
    path.unlink()
    assert run.run().update == 8
    assert_same(checkpoint_at(run, 8).models['model'], checkpoint_at(whole, 8).models['model'])


def test_what_differs_is_said(whole: Runner, store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = as_mmaudio(whole, tmp_path / 'theirs', scheduler={'last_epoch': 9}, ema=None)
    options = 'optim.lr=0.02', 'optim.optimizer.eps=1e-8', 'optim.optimizer.weight_decay=0.1'
    with caplog.at_level(logging.INFO):
        runner(tmp_path / 'ours', store, f'continue_from={path}', *options).run()
    for said in ('eps is 1e-08 by this config, which counts; it was 1e-06', 'weight_decay is 0.1', 'counted 9 updates',
                 'rate is 0.002 by this config, which counts; the file has 0.001', 'averages: none in the file'):
        assert said in caplog.text, said
    caplog.clear()
    path = as_mmaudio(whole, tmp_path / 'more')
    with caplog.at_level(logging.INFO):
        runner(tmp_path / 'other', store, f'continue_from={path}', 'optim/ema=none', 'optim=sgd').run()
    assert 'averages: NOT taken' in caplog.text and 'optimizer: NOT taken' in caplog.text


def test_what_does_not_fit_is_refused(whole: Runner, store: Path, tmp_path: Path) -> None:
    path = as_mmaudio(whole, tmp_path / 'theirs')
    for options, message in ((['optim.epochs=1'], '5 updates done.*1 x 4 = 4'),
                             (['optim.ema.sigma_rels=[0.05]'], 'holds 2 averages'),
                             (['model.hidden_dim=32'], 'do not fit the model')):
        with pytest.raises(UserError, match=message):
            runner(tmp_path / options[0], store, f'continue_from={path}', *options).run()


def test_other_files_give_the_weights_alone(whole: Runner, store: Path, tmp_path: Path,
                                            caplog: pytest.LogCaptureFixture) -> None:
    weights = checkpoint_at(whole, AT).models['model']
    torch.save(weights, tmp_path / 'x_last.pth')
    run = runner(tmp_path / 'ours', store, f'continue_from={tmp_path / "x_last.pth"}')
    with caplog.at_level(logging.INFO), run.solver() as solver:
        solver._continue_from(restored=False)
        assert_same(dict(solver.model.state_dict()), weights)
        assert solver.update == 0 and solver.ema.steps == 0 and not solver.optimizer.state
    assert 'Weights only' in caplog.text


def test_it_can_be_evaluated_without_training(whole: Runner, store: Path, tmp_path: Path) -> None:
    path = as_mmaudio(whole, tmp_path / 'theirs')
    run = runner(tmp_path / 'ours', store, f'continue_from={path}', 'execute_only=valid', 'optim.epochs=1')
    with run.solver() as solver:
        metrics = solver.run_one_stage('valid')
    assert metrics['loss'] > 0 and solver.update == AT
    assert not (run.xp_folder / 'checkpoints').exists() and not list((run.xp_folder / 'ema').glob('*.safetensors'))


def continued_together(store: Path, folder: Path, path: Path, *options: str) -> int:
    return runner(folder, store, f'continue_from={path}', *options).run().update


def test_two_processes_that_share_the_weights(whole: Runner, store: Path, tmp_path: Path) -> None:
    path = as_mmaudio(whole, tmp_path / 'theirs')
    assert run_ranks(continued_together, 2, store, tmp_path / 'ours', path, 'distrib=fsdp') == [8, 8]
    run = runner(tmp_path / 'ours', store)
    kept, expected = checkpoint_at(run, AT), checkpoint_at(whole, AT)
    assert_same(kept.models['model'], expected.models['model'], 'weights')
    assert_same(kept.state['objects']['optimizer']['state'], expected.state['objects']['optimizer']['state'], 'moments')
    assert_same(kept.state['ema']['averages'], expected.state['ema']['averages'], 'averages')
    assert len(checkpoint_at(run, 8).state['ema']['snapshots']) == 8
    for name, tensor in checkpoint_at(whole, 8).models['model'].items():
        torch.testing.assert_close(checkpoint_at(run, 8).models['model'][name], tensor, rtol=1e-3, atol=1e-4)
